"""Data: sources, their forms and masks, mixing, packing and loading."""
