"""The answers of each model of a pool: how they score, and how often they are chosen and rejected."""

from __future__ import annotations

from collections import Counter, defaultdict
from statistics import fmean

from rich.table import Table

from lion_lightning.printing import literal
from lion_lightning.rollouts.rounds import Round


def models_table(finished: Round) -> Table | None:
    """A row for each model that answered the round's prompts, best first; None where answers name no model."""
    scores: defaultdict[str, list[float]] = defaultdict(list)
    chosen: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for rollout in finished.rollouts:
        if rollout.monitor:
            continue
        models = [answer.model for answer in rollout.answers]
        for model, score in zip(models, rollout.scores, strict=True):
            scores[model].append(score)
        for better, worse in rollout.pairs:
            if rollout.scores[better] > rollout.scores[worse]:  # ties are not trained on
                chosen[models[better]] += 1
                rejected[models[worse]] += 1
    if not any(scores):
        return None
    table = Table("model", title=f"Models of round {finished.number}", title_justify="left")
    for name in ("answers", "score", "chosen", "rejected"):
        table.add_column(name, justify="right", no_wrap=True)
    for model in sorted(scores, key=lambda model: -fmean(scores[model])):
        counts = [f"{count[model]:,}" for count in (chosen, rejected)]
        table.add_row(literal(model or "-"), f"{len(scores[model]):,}", f"{fmean(scores[model]):z.3f}", *counts)
    return table
