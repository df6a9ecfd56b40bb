"""From a recipe to files, one block at a time."""
