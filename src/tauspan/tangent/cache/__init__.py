"""The parts of a batch's pass that depend on theta0 alone, computed once and kept."""
