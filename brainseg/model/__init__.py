"""The network, its weights and its files.

`networks` builds and runs a U-Net, `encoders` lists encoders and downloads their weights, `loss`
is a weighted sum of Dice, BCE, focal and Tversky, `model_file` saves trained weights, `device`
chooses where to compute.
"""
