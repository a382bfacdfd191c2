"""Checks of a pipeline before its first stage trains."""
