"""The recipes and the papers' numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "configs" / "recipes"
NAMES = sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))


def read(name: str) -> dict[str, Any]:
    """A recipe as it is written."""
    config: dict[str, Any] = yaml.safe_load((RECIPES / f"{name}.yaml").read_text("utf-8"))
    return config


def arguments(config: dict[str, Any], *path: str) -> Any:
    """``init_args`` of the class at a path of a config."""
    for key in path:
        config = config[key]
    return config["init_args"]


def sampling(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``OnPolicySampling``."""
    (found,) = (part for part in config["trainer"]["callbacks"] if name_of(part) == "OnPolicySampling")
    settings: dict[str, Any] = found["init_args"]
    return settings


class Paper(NamedTuple):
    """Numbers of a recipe."""

    lr: float
    schedule: str
    epochs: int
    rows_a_step: int  # rows of 8,192 tokens in LIONs' SFT, sequences in TÜLU's, else pairs or groups
    max_length: int
    max_prompt_length: int | None = None
    beta: float | None = None
    loss: str = "SigmoidLoss"
    warmup: float = 0.1
    weight_decay: float = 0.0


def numbers(config: dict[str, Any], devices: int = 4) -> Paper:
    """What a config has in the paper's place."""
    model, data, trainer = arguments(config, "model"), arguments(config, "data"), config["trainer"]
    loss = model.get("loss") or {"class_path": "SigmoidLoss", "init_args": {"beta": None}}
    return Paper(
        lr=arguments(model, "optimizer")["lr"],
        schedule=name_of(model["lr_scheduler"]).removesuffix("WithWarmup"),
        epochs=trainer["max_epochs"],
        rows_a_step=data["batch_size"] * devices * trainer["accumulate_grad_batches"],
        max_length=data["max_length"],
        max_prompt_length=data.get("max_prompt_length"),
        beta=loss["init_args"]["beta"],
        loss=name_of(loss),
        warmup=arguments(model, "lr_scheduler")["warmup"],
        weight_decay=arguments(model, "optimizer")["weight_decay"],
    )


def name_of(part: dict[str, Any]) -> str:
    """Name of a part's class."""
    return str(part["class_path"]).rpartition(".")[2]


# Written by hand from the papers' tables.
PAPER = {
    "lion_gemma_2b/sft": Paper(2e-5, "Cosine", 3, 32, 8192),
    "lion_gemma_2b/dpo": Paper(5e-7, "Linear", 2, 128, 2048, 512, 0.05),
    "lion_gemma_2b/online_dpo": Paper(5e-7, "Linear", 1, 32, 2048, 512, 0.05),
    "lion_llama3_8b/sft": Paper(2e-5, "Cosine", 1, 32, 8192),
    "lion_llama3_8b/dpo": Paper(5e-7, "Cosine", 1, 128, 2048, 1024, 0.01),
    "lion_llama3_8b/online_dpo": Paper(5e-7, "Linear", 1, 128, 2048, 512, 0.01),
    "tulu3/dpo": Paper(5e-7, "Linear", 1, 128, 2048, None, 5.0, "SigmoidNormLoss"),
    "tulu3/rlvr": Paper(5e-7, "Constant", 623, 24, 4096, 2048, 0.01, "DAPOLoss", warmup=0.0, weight_decay=0.01),
    "tulu3/sft": Paper(5e-6, "Linear", 2, 128, 4096, warmup=0.03),
}
