"""Checkpoints of a Trainer on disk, and Hugging Face folders made of them."""
