"""Advice on the next steps, from the files of a run, each with the numbers that are its reason."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Sequence

from lion_lightning.tools.report.facts import is_reward_model, progress_of, stage_title
from lion_lightning.tools.report.logs import ChainLogs, Launch, all_stages, stage_names
from lion_lightning.tools.report.rules import RULES, Advice, diverged
from lion_lightning.tools.report.scores import Scores, verdict

PROMPTS = """\
prompts: [{path: my/questions.jsonl}]   # rows of a question and its answer, none of them trained on
judge:
  class_path: lion_lightning.judges.VerifierJudge
  init_args: {verifier: {class_path: lion_lightning.judges.ExactMatch, init_args: {column: answer}}}"""

PAIRS = "preferences: [{path: my/held_out_pairs.jsonl}]"


def advice_of(chains: Sequence[ChainLogs], scores: Scores | None, launch: Launch) -> list[Advice]:
    """Advice on the next steps, the most urgent first.

    Args:
        chains: The run.
        scores: Its scores; None if no stage was evaluated.
        launch: How the run was started.
    """
    command = launch.command or "lion run FILE"
    found: list[Advice | None] = [*_unfinished(chains, launch, command)]
    found += [diverged(all_stages(chains, name)) for name in stage_names(chains)]
    found.append(_no_scores(chains) if scores is None else _not_decided(scores, command))
    for name in stage_names(chains):
        found += [rule(all_stages(chains, name)) for rule in RULES]
    found.append(_use_it(chains, scores))
    return _merged(one for one in found if one)


def _merged(found: Iterable[Advice]) -> list[Advice]:
    """The same advice for several stages as one, with all reasons."""
    merged: dict[tuple[str, str], Advice] = {}
    for one in found:
        before = merged.get((one.what, one.code))
        merged[one.what, one.code] = one._replace(why=f"{before.why} {one.why}") if before else one
    return list(merged.values())


def _unfinished(chains: Sequence[ChainLogs], launch: Launch, command: str) -> list[Advice]:
    """Where a run stopped, and what it goes on from; one piece of advice, since one command does it."""
    reasons = []
    for chain in chains:
        for stage in chain.stages:
            progress = progress_of(stage)
            if progress.done:
                continue
            of = f" of {progress.planned:,}" if progress.planned else ""
            where = f"stopped at step {progress.steps:,}{of}" if progress.steps else "stopped before its first step"
            kept = f"goes on from {stage.checkpoint}" if stage.checkpoint else "starts over"
            last = f" Its log ends with: {stage.last_line}" if stage.last_line else ""
            reasons.append(f"{stage.folder} {where}; it {kept}.{last}")
        begun = [stage.name for stage in chain.stages]
        if len(reasons) == 0 and (missing := [name for name in launch.stages if name not in begun]):
            reasons.append(f"{', '.join(missing)}: not begun.")
    what = "If it does not run any more: the same command goes on."
    return [Advice(what, " ".join(reasons), command)] if reasons else []


def _no_scores(chains: Sequence[ChainLogs]) -> Advice | None:
    """How to measure the stages that are there, with `lion evaluate`."""
    last = chains[0].stages[-1]
    if is_reward_model(last) and "rewards" in last.evaluation:
        return None
    folders = [shlex.quote(str(stage.folder)) for stage in all_stages(chains) if stage.export]
    evaluate = "lion evaluate -c evaluate.yaml --model {0}/export --out {0}/evaluation"
    command = evaluate.format(folders[0] if folders else shlex.quote(str(last.folder)))
    if len(folders) > 1:
        command = f"for stage in {' '.join(folders)}; do\n  {evaluate.format('$stage')}\ndone"
    what = "Measure the answers: write these lines to evaluate.yaml, and run the command; then lion report again."
    why = (
        "Nothing was measured on held-out prompts, and a falling loss does not say that answers got better. In a "
        "pipeline file the same lines stand under the key evaluate, for every stage that is run from then on."
    )
    return Advice(what, why, f"{PAIRS if is_reward_model(last) else PROMPTS}\n\n{command}")


def _not_decided(scores: Scores, command: str) -> Advice | None:
    """More seeds, or more prompts, for the last stage's gain; the interval shrinks with the root of their number."""
    if len(scores.stages) < 2:
        return None
    last, before = scores.stages[-1], scores.stages[-2]
    gain = scores.gain(last, before)
    if gain is None or verdict(gain).kind != "undecided":
        if scores.seeds > 1:
            return None
        why = "One seed was trained. Its intervals say how much the prompts matter, not how another seed would end."
        return Advice("Train more seeds before you rely on the differences.", why, _with_seeds(command, 3))
    half = (gain.high - gain.low) / 2
    why = f"{stage_title(last)} against {stage_title(before)} is {verdict(gain).text}."
    if abs(gain.estimate) <= half / 4:  # it would need 16 times the data or more
        return Advice("Do not expect more data to decide it.", f"{why} The difference is small against its interval.")
    times = (half / abs(gain.estimate)) ** 2  # as much data, for an interval as wide as the difference
    if scores.seeds > 1:
        needed = max(scores.seeds + 1, math.ceil(scores.seeds * times))
        return Advice(f"Train about {needed} seeds to decide it.", why, _with_seeds(command, min(needed, 12)))
    prompts = math.ceil(len(scores.answers[last][0]) * times) if scores.answers.get(last) else 0
    more = f", and evaluate about {prompts:,} prompts" if prompts else ""
    return Advice(f"Train several seeds{more} to decide it.", why, _with_seeds(command, 3))


def _with_seeds(command: str, count: int) -> str:
    """The command with other seeds."""
    return f"{re.sub(r' --seeds( [0-9]+)+', '', command)} --seeds {' '.join(map(str, range(count)))}"


def _use_it(chains: Sequence[ChainLogs], scores: Scores | None) -> Advice | None:
    """The export of the last stage, or of the best one where the last is decidedly worse."""
    exports = {stage.name: stage.export for stage in chains[0].stages if stage.export}
    if not exports:
        return None
    last = chains[0].stages[-1]
    if is_reward_model(last) and last.name in exports:
        return Advice("Use it as a judge: RewardModelJudge (docs/judges.md).", f"The model is in {exports[last.name]}.")
    name = list(exports)[-1]
    worse = ""
    if scores and name == scores.stages[-1]:
        best = max(scores.stages, key=lambda stage: scores.of(stage).estimate)
        if best in exports and verdict(scores.gain(name, best)).kind == "worse":
            worse = f" {stage_title(name)} is {verdict(scores.gain(name, best)).text} than it."
            name = best
    return Advice("Talk to it.", f"The model is in {exports[name]}.{worse}", f"lion chat {exports[name]}")
