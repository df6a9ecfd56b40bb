"""One edited model from an encoder and task vectors: applied, saved, measured; its coefficients chosen."""
