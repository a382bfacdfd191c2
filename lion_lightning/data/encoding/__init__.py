"""Examples become token ids, with an exact mask of what is trained."""
