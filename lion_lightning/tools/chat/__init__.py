"""`lion chat`: talk to a model on the terminal."""
