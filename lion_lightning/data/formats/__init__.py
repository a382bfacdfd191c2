"""Raw rows become examples: columns, turns, pairs, prompts."""
