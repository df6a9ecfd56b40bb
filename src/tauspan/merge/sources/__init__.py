"""What a merge reads: models, task vectors and adapters, with one interface."""
