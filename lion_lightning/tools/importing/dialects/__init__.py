"""The dialects of configs: a table of keys each."""
