"""This process among the others: its rank, agreement on settings, and work shared through a folder."""
