"""Rows with answers: preference pairs, ranked answers, and single answers with labels."""
