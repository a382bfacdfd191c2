"""Losses, gradient norms and final weights of small runs of each stage, as they were when they were recorded.

A change of the code that is not meant to change numbers must leave them equal: on one machine bit for bit
(``python -m tests.golden``), on any other to 1e-6 of each value (the test beside this file). A change that moves a
number says so, and why, in its commit and in CHANGELOG.md, and writes the record anew
(``python -m tests.golden --write``).
"""
