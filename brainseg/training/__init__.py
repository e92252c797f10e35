"""brainseg.training."""
