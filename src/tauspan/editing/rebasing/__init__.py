"""A vector for another base, and the measure of whether it does there what it did."""
