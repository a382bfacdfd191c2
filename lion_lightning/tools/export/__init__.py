"""`lion export`: write a checkpoint as a Hugging Face folder."""
