"""Runs of health.py: healthy ones of the demo in small, and such with a fault."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from lion_lightning.tools.pipeline.configs import Config, merged

SYMPTOMS = (
    "NaN or infinity",
    "loss spike",
    "likelihood displacement",
    "length bias",
    "degenerate pairs",
    "ties",
    "length drift",
    "repetition",
    "collapsed entropy",
    "reward hacking",
)


NOTHING: Mapping[str, Any] = MappingProxyType({})


class Case(NamedTuple):
    """A run.

    Attributes:
        name: What is done to it.
        stage: Name of its config.
        change: What is changed in the config.
        factor: Of the config's learning rate.
        sampling: What is changed in the arguments of OnPolicySampling.
        judges: Weights of :class:`health_plants.Likes` added to the config's judge (weight 1), by what it likes.
        own: Weight of the config's judge.
        callbacks: Callbacks that are added.
        symptom: What is to be found; None for a healthy run.
    """

    name: str
    stage: str
    change: Mapping[str, Any] = NOTHING
    factor: float = 1.0
    sampling: Mapping[str, Any] = NOTHING
    judges: Mapping[str, float] = NOTHING
    own: float = 1.0
    callbacks: tuple[Config, ...] = ()
    symptom: str | None = None

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.symptom or 'healthy'}/{self.stage}, {self.name}".replace(" ", "_").replace(",", "")


def _rate(rate: float) -> Config:
    return {"model": {"init_args": {"optimizer": {"init_args": {"lr": rate}}}}}


def _loss(name: str, **arguments: Any) -> Config:
    path = name if "." in name else f"lion_lightning.losses.{name}"
    return {"model": {"init_args": {"loss": {"class_path": path, "init_args": arguments}}}}


def _rows(transform: str) -> Config:
    return {"data": {"init_args": {"transform": f"health_plants.{transform}"}}}


def _plant(name: str, **arguments: Any) -> tuple[Config, ...]:
    return ({"class_path": f"health_plants.{name}", "init_args": arguments},)


STAGES = ("dpo", "online_dpo", "kto", "grpo", "sft")
FACTORS = (1.0, 0.5, 1.5)


def healthy() -> Iterator[Case]:
    """Ten seeds of each stage, with other data and once, half and one and a half times the config's rate."""
    for seed in range(10):
        for stage in STAGES:
            factor = FACTORS[seed % len(FACTORS)]
            yield Case(f"seed {seed}, rate x{factor:g}", stage, {"seed_everything": seed}, factor=factor)


def planted() -> Iterator[Case]:
    """Faults that are trained into; those of rounds are planted into recorded ones, too (health_streams.py)."""
    for symptom, cases in PLANTED.items():
        for case in cases:
            yield case._replace(symptom=symptom)


LONG: Config = {"trainer": {"max_epochs": 2}}
FEW: Config = {"trainer": {"max_steps": 2}}
ONE_ROUND: Config = {"trainer": {"max_epochs": 1}}
SIX_ROUNDS: Config = {"trainer": {"max_epochs": 6}}
NO_CLIP: Config = {"trainer": {"gradient_clip_val": None}}
FAST = _rate(2e-3)

PLANTED: dict[str, list[Case]] = {
    "NaN or infinity": [
        Case("NaN as a loss", "dpo", _loss("health_plants.NonFiniteLoss")),
        Case("infinity as a loss", "dpo", _loss("health_plants.NonFiniteLoss", value="inf")),
        Case("a gradient that is no number", "dpo", _loss("health_plants.RootLoss")),
        Case("the log of a rounded probability", "sft", _loss("health_plants.LogOfProbabilities")),
        Case("a rate of 1e12 for a step", "sft", NO_CLIP, callbacks=_plant("Rate", step=25, factor=1e30)),
        Case("infinite weights", "kto", callbacks=_plant("Noise", step=10, scale=1e38)),
    ],
    "loss spike": [
        Case("noise of 0.2 on all weights", "sft", callbacks=_plant("Noise", step=25, scale=0.2)),
        Case("noise of 0.3 on all weights", "sft", callbacks=_plant("Noise", step=40, scale=0.3)),
        Case("a rate 100 times too high for a step", "sft", callbacks=_plant("Rate", step=25, factor=100.0)),
        Case(
            "a rate 30 times too high for three steps", "sft", callbacks=_plant("Rate", step=25, factor=30.0, steps=3)
        ),
        Case("noise of 0.2 on all weights", "dpo", callbacks=_plant("Noise", step=15, scale=0.2)),
        Case("noise of 0.4 on all weights", "dpo", callbacks=_plant("Noise", step=20, scale=0.4)),
    ],
    "likelihood displacement": [
        Case("DPO alone, rate 8e-4", "dpo", merged(_loss("SigmoidLoss", beta=0.1), merged(_rate(8e-4), LONG))),
        Case("DPO alone, rate 2e-3", "dpo", merged(_loss("SigmoidLoss", beta=0.1), FAST)),
        Case("DPO alone, beta 0.01", "dpo", merged(_loss("SigmoidLoss", beta=0.01), merged(_rate(1e-3), LONG))),
        Case("IPO", "dpo", merged(_loss("IPOLoss", beta=0.01), merged(_rate(1e-3), LONG))),
        Case("hinge", "dpo", merged(_loss("HingeLoss", beta=0.05), merged(_rate(1e-3), LONG))),
        Case(
            "DPO alone, answers a mark apart",
            "dpo",
            merged(merged(_loss("SigmoidLoss", beta=0.1), FAST), _rows("another_mark")),
        ),
    ],
    "length bias": [
        Case("chosen answers twice", "dpo", _rows("long_chosen")),
        Case("most chosen answers explained", "dpo", _rows("long_chosen_often")),
        Case("rejected answers twice", "dpo", _rows("long_rejected")),
        Case("rejected answers short", "dpo", _rows("short_rejected")),
        Case("rejected answers polite", "dpo", _rows("polite_rejected")),
        Case("chosen answers twice", "kto", _rows("long_chosen")),
    ],
    "degenerate pairs": [
        Case("identical", "dpo", merged(_rows("identical"), FEW)),
        Case("empty", "dpo", merged(_rows("empty"), FEW)),
        Case("empty chosen ones", "dpo", merged(_rows("empty_chosen"), FEW)),
        Case("cut off", "dpo", merged(_rows("cut_off"), FEW)),
        Case("continued", "dpo", merged(_rows("continued"), FEW)),
        Case("a mark apart", "dpo", merged(_rows("another_mark"), FEW)),
    ],
    "ties": [
        Case("equal scores in the data", "dpo", merged(_rows("tied"), FEW)),
        Case("a judge of stutter", "online_dpo", ONE_ROUND, judges={"stutter": 1.0}, own=0.0),
        Case("a judge of nines", "online_dpo", ONE_ROUND, judges={"nine": 1.0}, own=0.0),
        Case("a judge of sevens", "grpo", ONE_ROUND, judges={"sevens": 1.0}, own=0.0),
        Case("a judge of the letter u", "grpo", ONE_ROUND, judges={"u": 1.0}, own=0.0),
        Case("a judge of stutter", "grpo", ONE_ROUND, judges={"stutter": 1.0}, own=0.0),
    ],
    "length drift": [Case("a judge of length", "grpo", merged(FAST, SIX_ROUNDS), judges={"length": 1.0}, own=0.0)],
    "repetition": [
        Case("a judge of repetition", "grpo", merged(FAST, SIX_ROUNDS), judges={"repetition": 1.0}, own=0.0)
    ],
    "reward hacking": [
        Case("length counts more", "grpo", FAST, judges={"length": 3.0}),
        Case("a letter counts more", "grpo", FAST, judges={"a": 3.0}),
    ],
}
"""Faults by symptom."""
