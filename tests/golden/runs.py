"""The recorded runs: a few steps of each stage on rows that do not change, with a model of one layer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from transformers import AutoConfig

from lion_lightning import (
    AdapterOffReference,
    AlignmentModule,
    CachedReference,
    DPOModule,
    FrozenReference,
    LoRASpec,
    OnlineDPOModule,
    OnPolicyDataModule,
    PolicySpec,
    PreferenceDataModule,
    SFTDataModule,
    SFTModule,
    Source,
    TokenizerSpec,
)
from lion_lightning.callbacks import OnPolicySampling
from lion_lightning.judges import VerifierJudge
from lion_lightning.models.weights.hash import hash_tensors
from lion_lightning.modules import LinearWithWarmup
from lion_lightning.sampling import TransformersSampler
from lion_lightning.sampling.base import SamplingSettings
from lion_lightning.types import Prompt

Record = dict[str, Any]
"""``loss`` and ``grad_norm``, a value a step, and ``weights``, the hash of the final ones."""

STEPS = 6

DATA = Path(__file__).parent / "demo"
"""Rows, tokenizer and config as an earlier demo task wrote them: the records stay when the task changes."""


class Steps(Logger):
    """Keeps the loss and the gradient norm of each step."""

    name, version = "steps", 0

    def __init__(self) -> None:
        super().__init__()
        self.loss: list[float] = []
        self.grad_norm: list[float] = []

    @property
    def experiment(self) -> None:
        """None."""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to keep."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Take a step's values."""
        if "train/loss" in metrics:
            self.loss.append(metrics["train/loss"])
            self.grad_norm.append(metrics["train/grad_norm"])


class Runs:
    """The runs in a folder.

    Args:
        folder: Where the data, the starting model and what the runs write go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.demo = Path(shutil.copytree(DATA, folder / "demo"))
        self.start = str(self.demo / "model")
        config = AutoConfig.from_pretrained(self.start)
        config.num_hidden_layers = 1
        config.save_pretrained(self.start)
        torch.manual_seed(0)
        PolicySpec(config=self.start).build().causal_lm.save_pretrained(self.start)

    def sft(self) -> Record:
        """Packed rows of conversations, two micro-batches a step."""
        return self.fit(SFTModule(self.start, **_training()), self._documents(), accumulate_grad_batches=2)

    def sft_padded(self) -> Record:
        """The same rows, each conversation alone in a padded batch."""
        spec = PolicySpec(path=self.start, attention="eager")
        return self.fit(SFTModule(spec, **_training()), self._documents(), accumulate_grad_batches=2)

    def dpo_cached(self) -> Record:
        """Log-probs of the reference from a pass before training."""
        return self._dpo(self.start, CachedReference(cache_dir=self.folder / "cache"))

    def dpo_frozen(self) -> Record:
        """A second model."""
        return self._dpo(self.start, FrozenReference())

    def dpo_adapters_off(self) -> Record:
        """LoRA; its base is the reference."""
        spec = PolicySpec(path=self.start, lora=LoRASpec(r=4))
        return self._dpo(spec, AdapterOffReference())

    def online_dpo(self) -> Record:
        """Two rounds of pairs that a verifier makes of the policy's answers."""
        sampler = TransformersSampler(SamplingSettings(temperature=1.0, max_new_tokens=8), batch_size=32)
        sampling = OnPolicySampling(
            sampler, VerifierJudge(_starts_early), num_samples=4, monitor_prompts=4, keep_unfinished=True
        )
        prompts = [Source(str(self.demo / "prompts.jsonl"))]
        data = OnPolicyDataModule(prompts, TokenizerSpec(self.start), **self._settings() | {"row_length": 96})
        module = OnlineDPOModule(self.start, **_training())
        return self.fit(
            module, data, max_steps=-1, max_epochs=2, reload_dataloaders_every_n_epochs=1, callbacks=[sampling]
        )

    def _dpo(self, policy: Any, reference: Any) -> Record:
        sources = [Source(str(self.demo / "preferences.jsonl"))]
        data = PreferenceDataModule(sources, TokenizerSpec(self.start), **self._settings())
        return self.fit(DPOModule(policy, reference=reference, **_training()), data)

    def _documents(self) -> SFTDataModule:
        sources = [Source(str(self.demo / "train.jsonl"))]
        return SFTDataModule(
            sources, TokenizerSpec(self.start), max_length=192, batch_size=2, cache_dir=self.folder / "cache"
        )

    def _settings(self) -> dict[str, Any]:
        return {"max_length": 96, "row_length": 192, "batch_size": 2, "cache_dir": self.folder / "cache"}

    def fit(self, module: AlignmentModule, data: LightningDataModule, **options: Any) -> Record:
        """Train, and tell each step.

        Args:
            module: What is trained.
            data: On what.
            **options: Of the Trainer.
        """
        seed_everything(0, verbose=False)
        steps = Steps()
        defaults: dict[str, Any] = {"max_steps": STEPS, "gradient_clip_val": 1.0}
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            logger=steps,
            log_every_n_steps=1,
            default_root_dir=self.folder / "run",
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **defaults | options,
        )
        trainer.fit(module, datamodule=data)
        assert module.policy is not None
        return {
            "loss": steps.loss,
            "grad_norm": steps.grad_norm,
            "weights": hash_tensors(module.policy.state_dict().items()),
        }


def _training() -> dict[str, Any]:
    # Large for so few steps, and an eps that keeps a weight of hardly any gradient from moving by its rounding.
    return {
        "optimizer": partial(torch.optim.AdamW, lr=1e-3, eps=1e-4),
        "lr_scheduler": partial(LinearWithWarmup, warmup=0.2),
    }


def _starts_early(prompt: Prompt, answer: str) -> bool:
    """Whether an answer's first character is in the first half of what bytes can spell; random answers differ in it."""
    return bool(answer) and ord(answer[0]) < 96


RUNS: dict[str, Callable[[Runs], Record]] = {
    "sft": Runs.sft,
    "sft_padded": Runs.sft_padded,
    "dpo_cached": Runs.dpo_cached,
    "dpo_frozen": Runs.dpo_frozen,
    "dpo_adapters_off": Runs.dpo_adapters_off,
    "online_dpo": Runs.online_dpo,
}
