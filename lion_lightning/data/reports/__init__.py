"""What became of rows and sources, counted and told."""
