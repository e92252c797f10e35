"""brainseg.data."""
