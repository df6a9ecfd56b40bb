"""Rows of the Jacobian: data, outputs, layers' factors, and their products."""
