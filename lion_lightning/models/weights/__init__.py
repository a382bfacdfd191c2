"""Weights as tensors: shards and full tensors, reading, writing and hashing them."""
