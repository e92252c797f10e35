"""From a dataset folder to batches.

`layouts` finds the LGG slices, `description` those of a `dataset.yaml`; `image_files` decodes
images, `nifti` volumes. `about` says what is known of a dataset. `store_builder` checks and
decodes a dataset once, `slice_store` opens the result. `split` assigns patients to training,
validation and test. `preprocess` filters and resizes, `inputs` applies it volume by volume,
`input_store` caches the result. `augment` changes slices by chance, `loader` yields batches;
`resident` and `warp` do both on the device. `phantom` generates a dataset, `patients` describes
one.
"""
