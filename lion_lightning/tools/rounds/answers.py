"""Answers of rounds, with their scores: printed by `lion rounds`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import chain

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lion_lightning.printing import literal
from lion_lightning.rollouts.rollout import Rollout
from lion_lightning.rollouts.rounds import Round

SHOWN = 400
"""Printed characters of a prompt or an answer."""


def print_answers(console: Console, rounds: Sequence[Round], samples: int) -> None:
    """Print answers to the same monitor prompts in the first and the last round, then trees of the last."""
    first, last = rounds[0], rounds[-1]
    # Monitor prompts are the same in all rounds; a new one is compared to itself.
    before = {rollout.group: rollout for rollout in first.rollouts if rollout.monitor}
    rows = []
    for rollout in [rollout for rollout in last.rollouts if rollout.monitor][:samples]:
        earlier = before.get(rollout.group, rollout)
        rows.append([rollout.prompt.question, _first_answer(earlier, first), _first_answer(rollout, last)])
    if rows:
        names = [f"round {first.number}", f"round {last.number}"]
        table = Table("prompt", *names, title="Monitor prompts", title_justify="left", show_lines=True)
        for row in rows:
            table.add_row(*(literal(text, SHOWN) for text in row))
        console.print(table)

    trained = [rollout for rollout in last.rollouts if not rollout.left_out]
    trees = [r for r in trained if r.pairs or (last.items == "groups" and len(r.usable) > 1)]
    # First those that say something: whose answers differ in score.
    trees.sort(key=lambda rollout: len(set(rollout.scores)) == 1)
    if trees and samples > 0:
        console.print(_trees_table(last, trees[:samples]))


def _trees_table(finished: Round, rollouts: Sequence[Rollout]) -> Table:
    """Prompts with all of their answers; answers that are not trained on are said to be so."""
    groups, title = finished.items == "groups", f"Answers of round {finished.number}, with their scores"
    table = Table("prompt", "answers", title=title, title_justify="left", show_lines=True)
    if not groups:
        table.add_column("pairs", no_wrap=True)
    for rollout in rollouts:
        trained = {*rollout.usable} if groups else {*chain.from_iterable(rollout.pairs)}
        answers = []
        for position in range(len(rollout.answers)):
            note = "" if position in trained else ", not trained on"
            text = literal(_answer(rollout, position, finished.shapings) + note, SHOWN)
            answers.append(Text.assemble(f"{position + 1}. ", text))
        cells = [literal(rollout.prompt.question, SHOWN), Text("\n").join(answers)]
        if not groups:
            cells.append(Text(_pairs(rollout)))
        table.add_row(*cells)
    return table


def _pairs(rollout: Rollout) -> str:
    """A line for each chosen answer, ``3 > 1, 2``, by the numbers of the answers; and the number of ties."""
    rejected: dict[int, list[str]] = defaultdict(list)
    ties = 0
    for chosen, other in rollout.pairs:
        if rollout.scores[chosen] == rollout.scores[other]:
            ties += 1
        else:
            rejected[chosen].append(str(other + 1))
    lines = [f"{chosen + 1} > {', '.join(others)}" for chosen, others in rejected.items()]
    return "\n".join([*lines, f"{ties} of equal scores"] if ties else lines)


def _first_answer(rollout: Rollout, finished: Round) -> str:
    """The first answer to a monitor prompt, and how many are right where there are several."""
    text = _answer(rollout, 0, finished.shapings)
    if not rollout.right or rollout.num_sampled == 1:
        return text
    return f"{text}\n{sum(rollout.sampled_right)} of {rollout.num_sampled} answers right"


def _answer(rollout: Rollout, position: int, shapings: Collection[str]) -> str:
    """An answer with its score, the parts of it if there are several, and a note where it was cut off."""
    parts = []
    for name, scores in rollout.by_judge.items():
        if position < len(scores) and (scores[position] or name not in shapings):  # most answers are not shaped
            parts.append(f"{name} n/a" if math.isnan(scores[position]) else f"{name} {scores[position]:zg}")
    several = f" ({', '.join(parts)})" if len(parts) > 1 else ""
    answer = rollout.answers[position]
    model = f", by {answer.model}" if answer.model else ""
    cut = ", cut off" if answer.finish_reason == "length" else ""
    return f"{answer.text}\n= {rollout.scores[position]:zg}{several}{model}{cut}"
