"""Runs a merging rule over tensors in memory, block by block."""
