"""Counted messages about rows, and reports of sources."""
