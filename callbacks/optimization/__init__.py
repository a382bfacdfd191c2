"""Callbacks that change how the optimizer steps."""
