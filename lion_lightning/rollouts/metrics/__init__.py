"""Metrics of a finished round."""
