"""Questions and answers in the files of other people's benchmarks."""

from lion_lightning.tools.answers.alpaca_eval import AlpacaEval
from lion_lightning.tools.answers.arena_hard import ArenaHard
from lion_lightning.tools.answers.base import Finished, Format, Question
from lion_lightning.tools.answers.mt_bench import MTBench
from lion_lightning.tools.answers.writing import write_answers

FORMATS: dict[str, Format] = {"alpaca_eval": AlpacaEval(), "arena_hard": ArenaHard(), "mt_bench": MTBench()}
"""The formats by the names that ``lion answers --format`` takes."""

__all__ = ["FORMATS", "AlpacaEval", "ArenaHard", "Finished", "Format", "MTBench", "Question", "write_answers"]
