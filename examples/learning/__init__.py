"""Which rows a model learns last, and what comes of training on them."""
