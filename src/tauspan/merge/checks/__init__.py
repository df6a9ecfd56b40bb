"""Whether models fit together, said before they are merged."""
