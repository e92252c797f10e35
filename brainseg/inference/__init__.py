"""Trained networks in use: prediction, evaluation and export.

`predictor` turns slices into masks; everything else uses it. `readers` and `nifti` read users'
files, `writers` and `overlay` write masks, tables and pictures, `evaluation` judges a network on
the validation and test parts of its split, and `onnx` exports it to other programs.
"""
