"""Approximations of a kernel that state their error."""
