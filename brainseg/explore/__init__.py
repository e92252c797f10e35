"""brainseg.explore."""
