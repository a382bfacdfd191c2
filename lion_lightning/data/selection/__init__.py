"""What of the tokenized sources an epoch trains on: mixing, filters, lengths."""
