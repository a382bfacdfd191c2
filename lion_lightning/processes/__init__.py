"""Signals, locks, threads and limited child processes."""
