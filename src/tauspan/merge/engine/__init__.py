"""What runs a rule over tensors, block by block, in memory."""
