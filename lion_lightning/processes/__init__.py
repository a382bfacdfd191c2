"""Processes of this package: start, stop signals, locks, threads, and limited child processes."""
