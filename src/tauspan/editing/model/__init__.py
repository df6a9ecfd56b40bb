"""The edited model: applied, saved and loaded, and its outputs at any coefficients of some directions."""
