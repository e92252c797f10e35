"""brainseg.inference."""
