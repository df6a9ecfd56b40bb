"""What a merge reads: models, task vectors and adapters under one face."""
