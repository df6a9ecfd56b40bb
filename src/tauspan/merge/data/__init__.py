"""Merging with data: statistics of models, and coefficients chosen on validation."""
