"""brainseg.storage."""
