"""Two-stage training.

`trainer` runs a training, `epoch` one pass over training or validation slices, `checkpoint` saves
an epoch so that training can resume after it.
"""
