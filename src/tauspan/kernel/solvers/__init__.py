"""Kernels as linear operators and their solvers; each solution comes with numbers that bound its error."""
