"""Callbacks that measure a run: speed, memory, and what was learnt when."""
