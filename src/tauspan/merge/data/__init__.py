"""Merges that look at data: statistics, and coefficients."""
