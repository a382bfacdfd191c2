"""Online runs on a tiny model: what they answer, how that is scored, and which pairs were trained."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lion_lightning import (
    AlignmentModule,
    OnlineDPOModule,
    OnlineGroupModule,
    OnPolicyDataModule,
    OnPolicyGroupDataModule,
    PolicyGradientModule,
    PolicySpec,
    Source,
    TokenizerSpec,
)
from lion_lightning.callbacks import OnPolicySampling
from lion_lightning.data.formats.pairing import AllPairs
from lion_lightning.data.on_policy import RoundDataModule
from lion_lightning.losses import GRPOLoss
from lion_lightning.modules import LinearWithWarmup
from lion_lightning.rollouts.rounds import Round, find_rounds
from lion_lightning.sampling.base import SamplingSettings
from lion_lightning.sampling.transformers import TransformersSampler
from lion_lightning.types import Answer, PackedBatch, Prompt
from tests import tiny

PROMPTS = 34


class KilledError(BaseException):
    """Stands for SIGKILL: nothing is saved after it."""


class Sampler(TransformersSampler):
    """Short answers; counts what it was asked, and is killed at the call of this number."""

    def __init__(self, kill: int | None = None) -> None:
        super().__init__(SamplingSettings(temperature=1.0, max_new_tokens=5), batch_size=12)
        self.kill, self.asked = kill, list[str]()

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Answer]]:
        if self.kill == 0:
            raise KilledError
        self.kill = None if self.kill is None else self.kill - 1
        self.asked += [prompt.question for prompt in prompts]
        return super().sample(prompts, n, seed)


class Judge:
    """Likes words of high number; counts what it scored, and is killed at the call of this number."""

    def __init__(self, kill: int | None = None) -> None:
        self.kill, self.scored = kill, list[str]()

    def score(self, prompts: Any, answers: Any) -> Any:
        if self.kill == 0:
            raise KilledError
        self.kill = None if self.kill is None else self.kill - 1
        self.scored += [prompt.question for prompt in prompts]
        return [[liking(text) for text in texts] for texts in answers]


def liking(text: str) -> float:
    """Mean number of an answer's words."""
    numbers = [float(word[1:]) for word in text.split() if word[1:].isdigit()]
    return sum(numbers) / max(len(numbers), 1)


class Watch(Callback):
    """Writes down the answers that are trained on, and kills the run before a batch."""

    def __init__(self, kill: tuple[int, int] | None = None) -> None:
        self.kill = kill
        self.trained: dict[int, set[tuple[int, ...]]] = {}
        self.steps = 0
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == self.kill:
            raise KilledError
        self.trained.setdefault(trainer.current_epoch, set()).update(answers_of(batch))
        self.steps += 1
        self.rates += [group["lr"] for group in trainer.optimizers[0].param_groups[:1]]


def answers_of(batch: PackedBatch) -> set[tuple[int, ...]]:
    return {tuple(batch.input_ids[s.start : s.stop].tolist()) for s in batch.segments if s.parent >= 0}


def pairs_of(made: Round) -> set[tuple[int, ...]]:
    """Tokens of the answers of a round's pairs that differ in tokens and score."""
    found = set()
    for rollout in made.rollouts:
        for chosen, rejected in rollout.pairs:
            sides = [rollout.answers[place].token_ids or () for place in (chosen, rejected)]
            if sides[0] != sides[1] and rollout.scores[chosen] != rollout.scores[rejected]:
                found |= set(sides)
    return found


@cache
def _start() -> Path:
    """A model of random weights, made once."""
    made = Path(tempfile.mkdtemp(dir=os.environ["LION_TESTS"]))
    torch.manual_seed(0)
    PolicySpec(config=tiny.config(num_hidden_layers=1)).build().causal_lm.save_pretrained(made)
    return tiny.tokenizer_folder(made)


class EveryOther(OnPolicySampling):
    """Each round is used for two epochs."""

    def should_sample(self, epoch: int) -> bool:
        return epoch % 2 == 0


class Online:
    """A folder with prompts and a starting model, and runs in it.

    Args:
        folder: The folder.
        every: Steps from one checkpoint to the next.
    """

    module_class: type[AlignmentModule] = OnlineDPOModule
    data_class: type[RoundDataModule] = OnPolicyDataModule
    sampling_class: type[OnPolicySampling] = OnPolicySampling

    def __init__(self, folder: Path, every: int = 100) -> None:
        self.folder, self.every = folder, every
        self.start = Path(shutil.copytree(_start(), folder / "start"))
        rows = [{"question": f"w{3 + number} w{40 + number}", "row": number} for number in range(PROMPTS)]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def data(self, **changes: Any) -> RoundDataModule:
        settings = {"max_length": 32, "row_length": 40, "batch_size": 2, "cache_dir": self.folder / "cache"}
        prompts = changes.pop("prompts", [Source(str(self.folder / "prompts.jsonl"))])
        return self.data_class(prompts, TokenizerSpec(str(self.start)), **{**settings, **changes})

    def module(self, **changes: Any) -> Any:
        settings: dict[str, Any] = {
            "optimizer": partial(torch.optim.AdamW, lr=3e-3),
            "lr_scheduler": partial(LinearWithWarmup, warmup=0.2),
        }
        return self.module_class(**{"policy": str(self.start), **settings, **changes})

    def sampling(self, sampler: Any = None, judge: Any = None, **changes: Any) -> OnPolicySampling:
        # Random weights hardly ever end an answer, so answers that are cut off make pairs too.
        settings = {"num_samples": 4, "monitor_prompts": 4, "chunk_size": 4, "keep_unfinished": True}
        return self.sampling_class(sampler or Sampler(), judge or Judge(), **{**settings, **changes})

    def trainer(self, name: str, callbacks: Sequence[Callback], every: int = 0, **changes: Any) -> Trainer:
        steps = every or self.every
        saver = ModelCheckpoint(self.folder / name, save_last=True, save_top_k=-1, every_n_train_steps=steps)
        options = {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1, "enable_checkpointing": True, **changes}
        return tiny.trainer(default_root_dir=self.folder / name, callbacks=[*callbacks, saver], **options)

    def fit(
        self,
        name: str,
        sampling: OnPolicySampling | None = None,
        watch: Watch | None = None,
        module: Any = None,
        data: RoundDataModule | None = None,
        **options: Any,
    ) -> dict[str, Tensor]:
        """Run, or go on with, a run of this name; weights and optimizer state at its end."""
        module = module or self.module()
        trainer = self.trainer(name, [sampling or self.sampling(), *([watch] if watch else [])], **options)
        trainer.fit(module, datamodule=data or self.data(), ckpt_path="last", weights_only=False)
        moments = trainer.optimizers[0].state_dict()["state"]
        state = {f"{k} {n}": torch.as_tensor(v) for k, values in moments.items() for n, v in values.items()}
        return dict(module.state_dict()) | state

    def rounds(self, name: str) -> list[Round]:
        return find_rounds(self.folder / name / "rounds")


class AllPairsOnline(Online):
    """Runs on all pairs of a prompt's answers."""

    def sampling(self, sampler: Any = None, judge: Any = None, **changes: Any) -> OnPolicySampling:
        return super().sampling(sampler, judge, **{"pairing": AllPairs(), **changes})


class GroupOnline(Online):
    """Runs on groups of all usable answers."""

    module_class: type[AlignmentModule] = OnlineGroupModule
    data_class = OnPolicyGroupDataModule


class PolicyGradientOnline(GroupOnline):
    """Runs that reinforce the better answers of a group, with a KL penalty; a micro-batch is an optimizer step."""

    module_class = PolicyGradientModule

    def module(self, **changes: Any) -> Any:
        return super().module(**{"loss": GRPOLoss(beta=0.1), **changes})
