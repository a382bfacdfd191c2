"""Faults planted into recorded rounds and metrics of a healthy run, where training into them would take too long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from lion_lightning.callbacks.monitors.health import Finding, Sampled, Step
from lion_lightning.callbacks.monitors.health.monitor import DETECTORS, WORSE
from lion_lightning.callbacks.monitors.health.views import sampled_of
from lion_lightning.rollouts.rollout import Rollout
from lion_lightning.rollouts.rounds import find_rounds
from lion_lightning.tools.report.logs import read_stage
from lion_lightning.types import Answer

Group = list[tuple[str, float, bool]]
"""Text, score and rightness of each answer to a prompt."""


class Stream(NamedTuple):
    """A fault in a recorded run.

    Attributes:
        name: What is done.
        symptom: What is to be found.
        groups: Changes the answers to a prompt, by how far the run has come (0 to 1) and a random generator.
    """

    name: str
    symptom: str
    groups: Callable[[Group, float, Random], Group]


def _some(change: Callable[[str], str], share: float = 1.0) -> Callable[[Group, float, Random], Group]:
    """Change some answers, more and more of them, and leave scores as they are."""

    def changed(group: Group, progress: float, random: Random) -> Group:
        return [(change(text) if random.random() < share * progress else text, *rest) for text, *rest in group]  # type: ignore[misc]

    return changed


def _prompts(change: Callable[[Group], Group], share: float = 1.0) -> Callable[[Group, float, Random], Group]:
    """Change all answers to some prompts, to more and more of them."""
    return lambda group, progress, random: change(group) if random.random() < share * progress else group


def _hacked(like: Callable[[str], float], change: Callable[[str], str]) -> Callable[[Group, float, Random], Group]:
    """Score answers by what a judge likes, too, and let more and more of them be what it likes and wrong."""

    def changed(group: Group, progress: float, random: Random) -> Group:
        made = []
        for text, _, is_right in group:
            is_changed = random.random() < progress
            own = change(text) if is_changed else text
            is_right = is_right and not (is_changed and random.random() < 0.7)
            made.append((own, 0.5 * is_right + like(own), is_right))
        return made

    return changed


def _worst(group: Group) -> Group:
    """The worst answer, so many times."""
    return [min(group, key=lambda one: one[1])] * len(group)


STREAMS = (
    Stream("twice", "length drift", _some(lambda text: f"{text} {text}")),
    Stream("with doubts", "length drift", _some(lambda text: f"{text} maybe, maybe not")),
    Stream("explained", "length drift", _some(lambda text: f"Well, one would say that it is {text}", 0.6)),
    Stream("cut to a third", "length drift", _some(lambda text: text[: len(text) // 3])),
    Stream("a letter", "length drift", _some(lambda text: text[:1], 0.7)),
    Stream("three times, of half of them", "length drift", _some(lambda text: f"{text} {text} {text}", 0.5)),
    Stream("a letter that does not end", "repetition", _some(lambda text: text + text[-1:] * 12)),
    Stream("a word that does not end", "repetition", _some(lambda text: text + " maybe" * 6, 0.5)),
    Stream("a syllable that does not end", "repetition", _some(lambda text: text + "ko" * 8, 0.3)),
    Stream("all of it again and again", "repetition", _some(lambda text: " ".join([text] * 8), 0.2)),
    Stream("a line that does not end", "repetition", _some(lambda text: text + "\n" * 10, 0.15)),
    Stream("said again with a count", "repetition", _some(lambda text: " ".join(f"{n} {text}" for n in range(9)), 0.3)),
    Stream("the worst answer alone", "collapsed entropy", _prompts(_worst)),
    Stream("the worst answer alone, half of the prompts", "collapsed entropy", _prompts(_worst, 0.5)),
    Stream("the worst answer alone, a third of the prompts", "collapsed entropy", _prompts(_worst, 0.33)),
    Stream("one text", "collapsed entropy", _some(lambda text: "I cannot say.")),
    Stream("one text, half of the answers", "collapsed entropy", _some(lambda text: "I cannot say.", 0.5)),
    Stream("no text, a third of the answers", "collapsed entropy", _some(lambda text: "", 0.33)),
    Stream("length", "reward hacking", _hacked(lambda text: len(text) / 10, lambda text: f"{text} and so on")),
    Stream("shortness", "reward hacking", _hacked(lambda text: -len(text) / 10, lambda text: text[:2])),
    Stream("a letter", "reward hacking", _hacked(lambda text: float(text.count("a")), lambda text: f"{text}aa")),
    Stream("certainty", "reward hacking", _hacked(lambda text: float("!" in text), lambda text: f"{text}!")),
    Stream(
        "flattery", "reward hacking", _hacked(lambda text: float("?" in text), lambda text: f"{text} Good question?")
    ),
    Stream("digits", "reward hacking", _hacked(lambda text: float("7" in text), lambda text: f"{text[:-1]}7")),
    Stream("form", "reward hacking", _hacked(lambda text: float(text[-1:] == "."), lambda text: f"{text[:-2]}.")),
)
"""At least six for each symptom of rounds."""


def planted_rounds(stream: Stream, rounds: Sequence[Sampled]) -> Iterator[Sampled]:
    """Rounds with the fault, which begins after the first; a character is a token in all of them.

    Each has the first round's answers: those of later rounds are shorter by themselves, by as much as a fault makes
    them longer.
    """
    random = Random(0)
    for place, sampled in enumerate(rounds):
        rollouts = [_remade(stream, each, place / (len(rounds) - 1), random) for each in rounds[0].rollouts]
        yield sampled._replace(rollouts=rollouts)


def _remade(stream: Stream, rollout: Rollout, progress: float, random: Random) -> Rollout:
    right = rollout.sampled_right or (False,) * rollout.num_sampled
    texts = [answer.text for answer in rollout.sampled]
    group = stream.groups(list(zip(texts, rollout.sampled_scores, right, strict=True)), progress, random)
    answers = tuple(Answer(text, token_ids=tuple(map(ord, text))) for text, *_ in group)
    scores, rights = tuple(score for _, score, _ in group), tuple(is_right for *_, is_right in group)
    usable = tuple(range(len(group)))
    return replace(
        rollout, answers=answers, scores=scores, right=rights, by_judge={}, num_added=0, usable=usable, final_answers=()
    )


def recorded(folder: Path) -> Iterator[tuple[float, Any]]:
    """Steps, rounds and validations that a stage has logged, in order, with the step of each."""
    stage, events = read_stage(folder), list[tuple[float, int, Any]]()
    steps = sorted({step for key, curve in stage.curves.items() if key.startswith("train/") for step in curve})
    for step in steps:
        metrics = {key[6:]: curve[step] for key, curve in stage.curves.items() if key[:6] == "train/" and step in curve}
        events.append((step + 1, 1, Step(step + 1, metrics)))
    validations = sorted({step for key, curve in stage.curves.items() if key.startswith("val/") for step in curve})
    for step in validations:
        metrics = {key[4:]: curve[step] for key, curve in stage.curves.items() if key[:4] == "val/" and step in curve}
        events.append((step + 1, 2, metrics))
    stored = find_rounds(folder / "rounds")
    for place, each in enumerate(stored):
        begin = validations[place - 1] + 1 if 0 < place <= len(validations) else 0 if not place else float(place)
        if sampled := sampled_of(each, int(begin)):
            events.append((begin + 0.5, 0, sampled))
    for moment, _, event in sorted(events, key=lambda one: one[:2]):
        yield moment, event


def found(events: Iterable[tuple[float, Any]]) -> list[Finding]:
    """Findings of all detectors, each symptom once, and again if it is twice as bad, as the callback reports them."""
    detectors = [detector() for detector in DETECTORS]
    reported, findings = dict[str, float](), list[Finding]()
    for moment, event in events:
        for detector in detectors:
            if isinstance(event, Step):
                finding = detector.on_step(event)
            elif isinstance(event, Sampled):
                finding = detector.on_round(event)
            else:  # metrics of a validation
                finding = detector.on_validation(int(moment), event)
            if finding and finding.severity >= WORSE * reported.get(finding.symptom, 0.0):
                reported[finding.symptom] = finding.severity
                findings.append(finding)
    return findings
