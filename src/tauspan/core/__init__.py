"""What every other room builds on: errors, named tensors, strict YAML, reports, progress, processes."""
