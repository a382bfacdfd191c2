"""The parts of the on-policy loop: plan, generate and score a round, keep it on disk, pair it."""
