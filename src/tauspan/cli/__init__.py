"""The program `tauspan`."""
