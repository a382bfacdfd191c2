"""`lion chat`: talk with a model on the terminal."""
