"""What of a batch's pass depends on theta0 alone, computed once and kept."""
