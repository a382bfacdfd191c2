"""Settings of a training, whatever program they were written for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Objective = Literal["sft", "dpo", "kto", "reward"]
OBJECTIVES: tuple[Objective, ...] = ("sft", "dpo", "kto", "reward")


@dataclass
class LoRA:
    """Adapters; ``rank_stabilized`` scales them by alpha / sqrt(r) (arXiv 2312.03732)."""

    r: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"
    modules_to_save: list[str] = field(default_factory=list)
    rank_stabilized: bool = False
    four_bits: bool = False
    double_quant: bool = True


@dataclass
class Batches:
    """Examples of a micro-batch, micro-batches of a step, and how long to train."""

    size: int = 8
    accumulation: int = 1
    devices: int | None = None
    epochs: float = 1.0
    max_steps: int | None = None
    packing: Literal["none", "best fit", "wrapped"] = "none"


@dataclass
class Optimization:
    """Optimizer and schedule, by the names that transformers has for them.

    Attributes:
        minimum: Rate at the end of the run, over the peak.
        minimum_rate: The same as a rate.
    """

    optimizer: str = "adamw_torch"
    lr: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = 1.0
    schedule: str = "linear"
    warmup_share: float | None = None
    warmup_steps: float | None = None
    minimum: float | None = None
    minimum_rate: float | None = None


@dataclass
class Losses:
    """Losses of an objective by the names that TRL has for them, and their settings.

    Attributes:
        likelihood: Weight of the chosen answer's log-likelihood per token.
        bco: Weight of BCO's loss, over that of the others.
        shared_length: LD-DPO's alpha.
        reference: Another model than the one that training starts from.
        reference_mixing: TR-DPO: weight of the policy, and steps between updates.
    """

    names: list[str] = field(default_factory=list)
    weights: list[float] | None = None
    beta: float = 0.1
    label_smoothing: float = 0.0
    gamma: float = 0.5
    likelihood: float = 0.0
    bco: float = 0.0
    shared_length: float | None = None
    divergence: str = "reverse_kl"
    divergence_alpha: float = 0.5
    discopop_tau: float = 0.05
    policy_weighted: bool = False
    desirable: float = 1.0
    undesirable: float = 1.0
    center_rewards: float = 0.0
    reference: str | None = None
    reference_mixing: tuple[float, int] | None = None


@dataclass
class Saving:
    """How often a run is logged, evaluated and saved: in steps, in shares of an epoch, or never."""

    log_every: int | None = None
    evaluate: bool = False
    eval_steps: float | None = None
    evals_per_epoch: int | None = None
    save: bool = True
    save_steps: float | None = None
    save_limit: int | None = None
    wandb: dict[str, Any] | None = None


@dataclass
class Recipe:
    """All of it. A dialect starts from the defaults of its program, and each key of a config changes a part."""

    objective: Objective
    model: str | None = None
    revision: str | None = None
    bf16_weights: bool = False
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    recompute: bool = False
    liger: bool = False
    router_aux: float = 0.0
    uses_lora: bool = False
    lora: LoRA = field(default_factory=LoRA)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)
    validation_share: float = 0.0
    system: str | None = None
    mask: Literal["assistant", "completion", "last_turn", "none"] = "assistant"
    max_length: int = 2048
    max_prompt_length: int | None = None
    overlong: Literal["truncate", "drop", "split"] = "truncate"
    num_workers: int = 0
    data_seed: int | None = None
    batches: Batches = field(default_factory=Batches)
    optimization: Optimization = field(default_factory=Optimization)
    losses: Losses = field(default_factory=Losses)
    saving: Saving = field(default_factory=Saving)
    shards: bool = False
    cpu_offload: bool = False
    seed: int = 42
    out: str | None = None
