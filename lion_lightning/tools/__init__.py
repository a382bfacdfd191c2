"""What a person runs: a folder each, with its `main`."""
