"""The choice of coefficients: the paper's grid, and solvers with a certificate."""
