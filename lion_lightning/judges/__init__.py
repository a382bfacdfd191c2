"""Judges: reward models, PairRM, language models, verifiers, and weighted sums of them."""

from lion_lightning.judges.base import Judge, JudgeScores, score_answers
from lion_lightning.judges.llm import PairwiseLLMJudge, RubricLLMJudge
from lion_lightning.judges.pair_rm import PairRMJudge
from lion_lightning.judges.reward_model import RewardModelJudge
from lion_lightning.judges.verifiers import (
    ByColumn,
    ExactMatch,
    Instructions,
    JSONSchema,
    Length,
    MathAnswer,
    Regex,
    VerifierJudge,
)
from lion_lightning.judges.weighted import WeightedJudge

__all__ = [
    "ByColumn",
    "ExactMatch",
    "Instructions",
    "JSONSchema",
    "Judge",
    "JudgeScores",
    "Length",
    "MathAnswer",
    "PairRMJudge",
    "PairwiseLLMJudge",
    "Regex",
    "RewardModelJudge",
    "RubricLLMJudge",
    "VerifierJudge",
    "WeightedJudge",
    "score_answers",
]
