"""Losses of single answers that are labeled desirable or not: KTO and its relatives."""
