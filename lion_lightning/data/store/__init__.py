"""Tokens of a source on disk: made once, read without loading them."""
