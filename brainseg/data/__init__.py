"""From a dataset folder to batches.

`layouts` finds and decodes slices, `slice_store` caches them, `split` assigns patients to
training, validation and test; `preprocess` filters and resizes, `augment` changes slices by
chance, `loader` yields batches. `phantom` generates a dataset, `patients` describes one.
"""
