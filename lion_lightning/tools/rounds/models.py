"""The answers of each model of a pool: how they score, and how often they are chosen and rejected."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean

from rich.table import Table

from lion_lightning.printing import literal
from lion_lightning.rollouts.rollout import Rollout
from lion_lightning.rollouts.rounds import Round


@dataclass
class ModelAnswers:
    """Metrics of a model's answers.

    Attributes:
        scores: Score of each.
        chosen: Number of pairs in which one is chosen.
        rejected: Number of pairs in which one is rejected.
    """

    scores: list[float] = field(default_factory=list)
    chosen: int = 0
    rejected: int = 0


def models_table(finished: Round) -> Table | None:
    """A row for each model that answered the round's prompts, best first; None where answers name no model."""
    found = answers_by_model(rollout for rollout in finished.rollouts if not rollout.monitor)
    if not any(found):  # all of them without a name
        return None
    table = Table("model", title=f"Models of round {finished.number}", title_justify="left")
    for name in ("answers", "score", "chosen", "rejected"):
        table.add_column(name, justify="right", no_wrap=True)
    for model, own in sorted(found.items(), key=lambda item: -fmean(item[1].scores)):
        numbers = (f"{len(own.scores):,}", f"{fmean(own.scores):z.3f}", f"{own.chosen:,}", f"{own.rejected:,}")
        table.add_row(literal(model or "-"), *numbers)
    return table


def answers_by_model(rollouts: Iterable[Rollout]) -> dict[str, ModelAnswers]:
    """Scores of the answers by the model's name, and pairs of them, without ties, which are not trained on."""
    found: defaultdict[str, ModelAnswers] = defaultdict(ModelAnswers)
    for rollout in rollouts:
        models = [answer.model for answer in rollout.answers]
        for model, score in zip(models, rollout.scores, strict=False):  # none before they are judged
            found[model].scores.append(score)
        for better, worse in rollout.pairs:
            if rollout.scores[better] > rollout.scores[worse]:
                found[models[better]].chosen += 1
                found[models[worse]].rejected += 1
    return dict(found)
