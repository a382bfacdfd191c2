"""The same data, weights and settings through other code: ``python -m benchmarks.oracle``."""
