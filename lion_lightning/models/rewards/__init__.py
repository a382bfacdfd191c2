"""Reward models: a sequence classifier of transformers with one output, on packed rows."""
