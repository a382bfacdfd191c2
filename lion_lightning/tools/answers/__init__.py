"""`lion answers`: answer the questions of public benchmarks, in their file formats."""

from lion_lightning.tools.answers.alpaca_eval import AlpacaEval
from lion_lightning.tools.answers.arena_hard import ArenaHard
from lion_lightning.tools.answers.base import AnsweredQuestion, Format, Question
from lion_lightning.tools.answers.mt_bench import MTBench
from lion_lightning.tools.answers.run import write_answers

FORMATS: dict[str, Format] = {"alpaca_eval": AlpacaEval(), "arena_hard": ArenaHard(), "mt_bench": MTBench()}
"""Formats by their name in ``lion answers --format``."""

__all__ = ["FORMATS", "AlpacaEval", "AnsweredQuestion", "ArenaHard", "Format", "MTBench", "Question", "write_answers"]
