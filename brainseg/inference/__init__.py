"""Trained networks in use: prediction, evaluation and export.

`predictor` turns slices into masks. `readers` reads users' files, `predicted_masks` masks of other
tools; `writers` and `overlay` write masks, tables and pictures. `evaluation` judges a network on
the validation and test parts of its split, `mask_metrics` has distances of outlines and lesions,
and `onnx` exports a network to other programs.
"""
