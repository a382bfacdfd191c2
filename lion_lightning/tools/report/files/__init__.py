"""Files of a run, read with a check of what is in them."""
