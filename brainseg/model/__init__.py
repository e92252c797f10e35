"""The network, its weights and its files.

`networks` builds and runs a U-Net, `encoders` lists encoders and downloads their weights, `loss`
is Dice + BCE, `model_file` saves trained weights, `device` chooses where to compute.
"""
