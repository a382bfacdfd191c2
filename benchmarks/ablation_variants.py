"""Variants that ablations.py trains: each is a shipped config of the demo with something changed.

A variant starts from another one's export, as the stages of `lion run` do. So that objectives are compared each at a
rate that suits it, those with rates to choose from were trained once at each rate on a seed that decides nothing else
(`python benchmarks/ablations.py --rates`), and the best mean grade decided; results/ablation_rates.json keeps what came
of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from lion_lightning.tools.pipeline.configs import Config, merged
from lion_lightning.tools.pipeline.plan import StagePlan, read_plan

PIPELINE = Path("configs/pipeline.yaml")
DEMO = "runs/demo"
"""The data's folder in the shipped configs; each seed has its own."""

LOSSES = "lion_lightning.losses"
UNCHANGED: Config = {}


class Variant(NamedTuple):
    """One training.

    Attributes:
        config: The shipped config that is changed, by its name.
        start: Name of the variant whose export it starts from; None for random weights.
        change: Laid over the config.
        sampling: Arguments of its ``OnPolicySampling`` that are replaced.
        judge: Name of the variant, a reward model, that judges its rounds; None for the demo's verifier.
        rates: Learning rates to choose from; empty for that of the config.
    """

    config: str
    start: str | None
    change: Config = UNCHANGED
    sampling: Config = UNCHANGED
    judge: str | None = None
    rates: tuple[float, ...] = ()


def _model(**arguments: Any) -> Config:
    return {"model": {"init_args": arguments}}


def _data(**arguments: Any) -> Config:
    return {"data": {"init_args": arguments}}


def _loss(name: str, **arguments: Any) -> Config:
    return _model(loss={"class_path": f"{LOSSES}.{name}", "init_args": arguments})


def _with_likelihood(beta: float) -> Config:
    """DPO's loss with another beta, and the chosen answers' likelihood as in the demo."""
    parts = [
        {"class_path": f"{LOSSES}.SigmoidLoss", "init_args": {"beta": beta}},
        {"class_path": f"{LOSSES}.ChosenNLLLoss"},
    ]
    return _loss("WeightedSum", losses=parts)


def _share(fraction: float) -> Config:
    return _data(sources=[{"path": f"{DEMO}/preferences.jsonl", "fraction": fraction}])


LOW_RATES, HIGH_RATES = (5e-5, 1e-4, 2e-4, 4e-4), (2e-4, 4e-4, 8e-4, 1.6e-3)
"""For contrast alone and policy gradients, and where the likelihood of an answer is part of the loss."""

ALONE = _loss("SigmoidLoss", beta=0.1)
NLL = _loss("ChosenNLLLoss")
"""Imitation of the chosen answers: no rejected one, no reference."""

NO_REFERENCE = merged(_loss("CPOLoss", beta=0.1, alpha=1.0), _model(reference=None))
"""The demo's loss as if the reference gave all answers the same log-prob."""

MIXED = _model(reference={"class_path": "lion_lightning.MixedReference"})
REFRESHED = _model(reference={"class_path": "lion_lightning.RefreshedReference"})
TWO_EPOCHS: Config = {"trainer": {"max_epochs": 2}}
ALL_PAIRS: Config = {"pairing": {"class_path": "lion_lightning.data.formats.pairing.AllPairs"}}

VARIANTS: dict[str, Variant] = {
    "sft": Variant("sft", None),
    "sft, padded": Variant("sft", None, _model(policy={"attention": "sdpa"})),
    "sft, loss on all tokens": Variant("sft", None, _data(mask="none")),
    # Offline: the same pairs, from the same SFT model. The demo's loss is DPO's with the chosen answers' likelihood.
    "dpo": Variant("dpo", "sft", rates=HIGH_RATES),
    "dpo's loss alone": Variant("dpo", "sft", ALONE, rates=LOW_RATES),
    "chosen answers' likelihood": Variant("dpo", "sft", NLL, rates=HIGH_RATES),
    "dpo, beta 0.01": Variant("dpo", "sft", _with_likelihood(0.01)),
    "dpo, beta 1": Variant("dpo", "sft", _with_likelihood(1.0)),
    "dpo, 10% of the pairs": Variant("dpo", "sft", _share(0.1)),
    "dpo, 30% of the pairs": Variant("dpo", "sft", _share(0.3)),
    "dpo, no reference": Variant("dpo", "sft", NO_REFERENCE),
    "dpo, reference mixed (TR-DPO)": Variant("dpo", "sft", MIXED),
    "dpo, reference refreshed": Variant("dpo", "sft", merged(REFRESHED, TWO_EPOCHS)),
    "dpo, two epochs": Variant("dpo", "sft", TWO_EPOCHS),
    "kto": Variant("kto", "sft", rates=LOW_RATES),
    # Online: the same prompts and verifiers, from the same DPO model.
    "online dpo": Variant("online_dpo", "dpo", rates=LOW_RATES),
    "offline: the pairs again": Variant("dpo", "dpo"),
    "online dpo, from sft": Variant("online_dpo", "sft"),
    "online dpo, from dpo's loss alone": Variant("online_dpo", "dpo's loss alone"),
    "online dpo, one round": Variant("online_dpo", "dpo", {"trainer": {"max_epochs": 1}}),
    "online dpo, 2 answers": Variant("online_dpo", "dpo", sampling={"num_samples": 2}),
    "online dpo, 4 answers": Variant("online_dpo", "dpo", sampling={"num_samples": 4}),
    "online dpo, reference refreshed": Variant("online_dpo", "dpo", REFRESHED),
    "online, dpo's loss alone": Variant("online_dpo", "dpo", ALONE, rates=LOW_RATES),
    "online, best answers' likelihood": Variant("online_dpo", "dpo", NLL, rates=LOW_RATES),
    "online dpo, all pairs": Variant("online_dpo", "dpo", sampling=ALL_PAIRS),
    "online LiPO-lambda": Variant("online_ranked", "dpo", _loss("LambdaLoss", beta=0.1), rates=LOW_RATES),
    "grpo": Variant("grpo", "dpo", rates=LOW_RATES),
    "rloo": Variant("grpo", "dpo", _loss("RLOOLoss", beta=0.0), rates=LOW_RATES),
    "reward model": Variant("reward", "sft"),
    "online dpo, reward model judges": Variant("online_dpo", "dpo", judge="reward model"),
}
"""By name, each after those that it needs."""


def with_rate(rate: float) -> Config:
    """Change of a config to another learning rate."""
    return _model(optimizer={"init_args": {"lr": rate}})


def needed(names: set[str]) -> list[str]:
    """Variants of these names with all that they start from and are judged by, in order."""
    found = set(names)
    for name in reversed(VARIANTS):  # each stands after those that it needs
        if name in found:
            found |= {other for other in (VARIANTS[name].start, VARIANTS[name].judge) if other}
    return [name for name in VARIANTS if name in found]


def folder_name(name: str) -> str:
    """Name of a variant's folder."""
    for symbol, word in ((" + ", "-and-"), (" / ", "-by-"), (" x ", "-times-"), ("%", "pc"), (" ", "-")):
        name = name.replace(symbol, word)
    return "".join(letter for letter in name if letter not in ",:()'")


def stages_of(seed: int, out: Path, rates: Mapping[str, float]) -> dict[str, StagePlan]:
    """All variants of one seed as stages, by name.

    Args:
        seed: Of the data, the weights and the order of the rows.
        out: Folder of all seeds.
        rates: Learning rates by name, where it is not that of the config.
    """
    stages: dict[str, Config] = {}
    for name, variant in VARIANTS.items():
        # Without rates to choose from, a variant has the rate of its config's first variant.
        first = next(other for other, one in VARIANTS.items() if one.config == variant.config)
        rate = rates.get(name, rates.get(first))
        change = variant.change if rate is None else merged(variant.change, with_rate(rate))
        start = folder_name(variant.start) if variant.start else None
        stages[folder_name(name)] = {"config": f"{variant.config}.yaml", "start": start, **change}
    plan = read_plan(PIPELINE, {"stages": stages, "seeds": [seed], "out": str(out)})
    planned = {}
    for name, stage in zip(VARIANTS, plan.chains[0], strict=True):
        config = _with_sampling(stage.config, VARIANTS[name], out / f"seed-{seed}")
        data = str(out / f"seed-{seed}" / "demo")
        evaluate = None if VARIANTS[name].config == "reward" else _replaced(stage.evaluate, DEMO, data)
        planned[name] = stage._replace(config=_replaced(config, DEMO, data), evaluate=evaluate)
    return planned


def _with_sampling(config: Config, variant: Variant, folder: Path) -> Config:
    """The config with the variant's arguments of ``OnPolicySampling``, and without checkpoints on the way."""
    config, arguments = deepcopy(config), dict(variant.sampling)
    if variant.judge:
        model = str(folder / folder_name(variant.judge) / "export")
        arguments["judge"] = {"class_path": "lion_lightning.judges.RewardModelJudge", "init_args": {"model": model}}
    for callback in config["trainer"]["callbacks"]:
        if callback["class_path"].endswith("OnPolicySampling"):
            callback["init_args"] |= arguments
        if callback["class_path"].endswith("ModelCheckpoint"):  # a training takes a minute: it is done again
            callback["init_args"] |= {"every_n_train_steps": 10_000}
    return config


def _replaced(value: Any, old: str, new: str) -> Any:
    """A config with one folder for another at the beginning of all texts."""
    if isinstance(value, Mapping):
        return {key: _replaced(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, old, new) for inner in value]
    return new + value.removeprefix(old) if isinstance(value, str) and value.startswith(old) else value
