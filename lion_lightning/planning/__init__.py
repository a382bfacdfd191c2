"""Estimates before a run starts: memory of a device, and FLOPs of a step."""
