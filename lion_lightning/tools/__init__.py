"""Commands, one folder each, with its `main`."""
