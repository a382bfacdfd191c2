"""Contents of a module's checkpoints, and exact resume."""
