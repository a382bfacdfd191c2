"""``lion models``: what runs of each type of causal LM that the installed transformers knows."""
