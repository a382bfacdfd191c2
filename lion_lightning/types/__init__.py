"""The vocabulary that every layer speaks: samples as trees of segments, flat batches, log-probs."""

from lion_lightning.types.batch import PackedBatch, Sample, SampleSegment, Segment, keep_answers, segment_table
from lion_lightning.types.logps import AnswerLogps, LossOutput, PairLogps, SumOver, TokenLogps
from lion_lightning.types.prompts import Answer, Prompt

__all__ = [
    "Answer",
    "AnswerLogps",
    "LossOutput",
    "PackedBatch",
    "PairLogps",
    "Prompt",
    "Sample",
    "SampleSegment",
    "Segment",
    "SumOver",
    "TokenLogps",
    "keep_answers",
    "segment_table",
]
