"""The tangent kernel as a linear operator, and computations with it for one task or between tasks."""
