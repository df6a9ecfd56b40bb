"""The tangent kernel as an operator, and what is asked of it between tasks."""
