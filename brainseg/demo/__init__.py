"""brainseg.demo."""
