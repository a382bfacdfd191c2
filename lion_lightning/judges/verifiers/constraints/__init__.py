"""Constraints on answers that can be checked without a model (IFEval, arXiv 2311.07911), a function each.

Each takes the answer and the constraint's arguments. Texts of rows are compared as they are and never used as patterns,
and every function takes time linear in the answer: neither a row nor an answer can make one hang.
"""
