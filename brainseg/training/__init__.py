"""Two-stage training.

`trainer` runs a training, `epoch` one pass over training or validation slices, `optimizer` builds
the optimizer and the learning rates of a stage, `checkpoint` saves an epoch so that training can
resume after it.
"""
