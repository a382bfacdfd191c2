"""Losses of preference pairs: DPO and its relatives."""
