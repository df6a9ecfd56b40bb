"""The base of every other room: errors, named tensors, strict YAML, reports, progress, processes."""
