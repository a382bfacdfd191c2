"""Optimizers in plain PyTorch."""
