"""Which prompts each round asks: read, chosen, and shared out over the rounds."""
