"""Ways to compute f and J tau of a module, and the check that says which one is right for a call."""
