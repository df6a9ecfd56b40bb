"""Merging rules: pure functions, and the table of them."""
