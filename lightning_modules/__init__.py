"""LightningModules, one a file, and the plain PyTorch parts they are made of.

Imports nothing, so that `networks`, `quantizers` and `losses` can be used without Lightning.
"""
