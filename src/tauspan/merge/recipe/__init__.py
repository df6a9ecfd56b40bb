"""Recipes: tauspan's own and mergekit's."""
