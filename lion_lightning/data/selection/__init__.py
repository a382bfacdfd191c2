"""Selection of the examples of an epoch: filters, duplicates, validation split, mixture."""
