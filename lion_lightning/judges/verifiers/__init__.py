"""Verifiers: callables that check an answer, and the judge that scores with them."""

from lion_lightning.judges.verifiers.by_column import ByColumn
from lion_lightning.judges.verifiers.checks import ExactMatch, JSONSchema, Length, MathAnswer, Regex
from lion_lightning.judges.verifiers.instructions import Instructions
from lion_lightning.judges.verifiers.judge import Verifier, VerifierJudge

__all__ = [
    "ByColumn",
    "ExactMatch",
    "Instructions",
    "JSONSchema",
    "Length",
    "MathAnswer",
    "Regex",
    "Verifier",
    "VerifierJudge",
]
