"""brainseg.model."""
