"""`lion inspect`: filters, loss masks and packing of a config's data."""
