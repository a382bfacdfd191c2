"""Seeded fuzz: mutated configs, rows, checkpoints, files of earlier runs and replies of servers get one line or work.

``python -m tests.fuzz --seconds 180 --seed 0`` prints how many cases of each kind were taken, how many refused, and
every case that broke the rules of :mod:`tests.fuzz.outcome`.
"""
