"""Policy gradients beside TRL's GRPOTrainer: stages of the tables ``grpo`` and ``groups``, which ``trees.py`` makes.

grpo: a round of two prompts of about 200 tokens with eight answers of 100 to 400 each, half of them right, without its
sampling. In one step no log-probs of the policy that sampled are needed; in two they are, and computed in the round's
time, as the reference's are where there is a KL penalty. groups: a prompt a round with more and shorter answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from batches import Item
from measurements import Measurement
from paired_benchmark import OURS, PEER, PairedBenchmark, Stage, tokens

PROMPTS = [180, 220]
"""The least and the most tokens."""
EIGHT = [100, 400]
"""Of an answer in groups of eight; longer groups have shorter ones."""
BETA = 0.04
FORMS = {
    "grpo": ("one step", 0.0, 1),
    "grpo-kl": ("one step, KL penalty", BETA, 1),
    "grpo-old": ("two steps", 0.0, 2),
    "grpo-kl-old": ("two steps, KL penalty", BETA, 2),
}
"""In words, the weight of the penalty, and optimizer steps a round."""
SIZES = {8: EIGHT, 16: [50, 200], 64: [20, 80]}
"""Answers to a prompt, and the least and the most tokens of one."""


def answers(items: list[Item]) -> int:
    """Answers, each once."""
    return sum(len(item.answers) for item in items)


def against_grpo(
    name: str, what: str, job: dict[str, Any], micro_batches: tuple[int, ...], least: float | None = None
) -> Stage:
    """A stage whose peer is TRL's GRPOTrainer.

    Args:
        name: Of the stage.
        what: In words.
        job: Its ``trees`` with their ``answers`` are a round.
        micro_batches: Answers of a micro-batch of TRL's; each is tried.
        least: Target of the speeds' ratio, which comes with one for memory.
    """
    number = job["trees"] * job["answers"]
    settings = {
        f"micro-batches of {size}": {"apart": True, "micro_batch": size, "accumulate": number // size}
        for size in micro_batches
    }
    return Stage(
        name,
        what,
        "answers/s",
        {"stage": "grpo", "data": "groups", "accumulate": job["trees"], "beta": 0.0, "updates": 1} | job,
        "grpo_ours",
        "grpo_trl",
        settings,
        answers,
        least=least,
        most=0.4 if least else None,
        peak="above_libraries_mib",
    )


GRPO = tuple(
    against_grpo(
        name,
        f"GRPO, 2 prompts x 8 answers a round, {form}",
        {"trees": 2, "answers": 8, "lengths": [PROMPTS, EIGHT], "beta": beta, "updates": updates},
        (1, 2, 4, 8) if name == "grpo" else (1, 2),
        least=2.0,
    )
    for name, (form, beta, updates) in FORMS.items()
)
GROUPS = tuple(
    against_grpo(
        f"groups-{number}",
        f"GRPO, 1 prompt x {number} answers of {least} to {most} tokens a step",
        {"trees": 1, "answers": number, "lengths": [PROMPTS, [least, most]]},
        (2,),
    )
    for number, (least, most) in SIZES.items()
)


def by_size(paired: PairedBenchmark) -> Iterator[Measurement]:
    """Seconds of a group, tokens through the model beside TRL's padded ones, and memory."""
    speed, memory = paired.measurements()
    told = {"seconds": ("", "s a group"), "tokens": (": tokens through the model", "a group")}
    for name, (more, unit) in told.items():
        ours, theirs = ([float(turn[name]) for turn in paired.turns.get(side, ())] for side in (OURS, PEER))
        extra = speed.extra if name == "seconds" else {}
        command = paired.stage.command
        yield Measurement(
            f"{paired.stage.what}{more}", unit, ours, theirs, paired.against, command=command, extra=extra
        )
    yield memory


def through_the_model(paired: PairedBenchmark) -> Measurement:
    """Tokens of a step, beside those of its trees, a prompt once.

    Args:
        paired: What has run.
    """
    seen = [float(turn["tokens"]) for turn in paired.turns[OURS]]
    needed = [float(tokens(items)) for items in paired.items(OURS)[-paired.rounds :]]
    what = f"{paired.stage.what}: tokens through the model"
    against = "prompt + answers, each once"
    return Measurement(what, "a step", seen, needed, against, most=1.02, command=paired.stage.command)
