"""How much two task vectors, added, disturb what each does alone: maps of the disentanglement error, and drift."""
