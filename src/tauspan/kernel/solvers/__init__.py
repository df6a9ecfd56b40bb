"""Solvers that know a kernel by its products alone; each answer has its certificate."""
