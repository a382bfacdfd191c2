"""`lion init`: a config to edit, from a model, data and what is to be trained."""
