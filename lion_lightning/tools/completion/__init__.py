"""`lion completion`: what the Tab key completes in bash, zsh and fish."""
