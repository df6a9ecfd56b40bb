"""Recipes, what they run, and the paper reproduced."""
