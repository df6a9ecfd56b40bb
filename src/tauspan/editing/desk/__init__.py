"""The desk: one self-contained HTML page on which the coefficients of an edit are moved and every accuracy follows."""
