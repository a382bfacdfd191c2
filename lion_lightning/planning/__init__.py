"""What a run will need, reckoned before it starts: memory of a device, and time of a step."""
