"""Checks whether models fit together, before they are merged."""
