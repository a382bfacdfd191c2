"""Sides of the policy gradients' measures, each a worker of ``interleaved``: ``python grpo_workers.py SIDE JOB``.

A turn is a round without its sampling: prompts with answers and rewards that are there, log-probs of the policy that
sampled them where the round makes several optimizer steps, those of the reference where there is a KL penalty, and the
steps. Both sides get the same rounds in the same order.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any

from batches import flat, grouped, steps_of
from training_workers import loader, optimizer, quiet, serve, train


def grpo_ours(job: dict[str, Any]) -> None:
    """``PolicyGradientModule``, an epoch a round."""
    from rounds import Rounds

    from lion_lightning import CachedReference, PolicyGradientModule, PolicySpec
    from lion_lightning.losses import GRPOLoss

    quiet()

    rounds = list(grouped(steps_of(job), job["accumulate"]))
    with tempfile.TemporaryDirectory() as folder:
        module = PolicyGradientModule(
            PolicySpec(path=job["model"], **job.get("policy", {})),
            loss=GRPOLoss(beta=job["beta"]),
            reference=CachedReference(cache_dir=folder) if job["beta"] else None,
            optimizer=optimizer,
            kl_batches=0,  # TRL estimates none before a round, either
        )
        train(job, module, Rounds(rounds, folder, loader), max_epochs=len(rounds), reload_dataloaders_every_n_epochs=1)


def grpo_trl(job: dict[str, Any]) -> None:
    """GRPOTrainer, whose ``rollout_func`` knows the answers."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # of rollout_func
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer import grpo_trainer
    from trl_workers import settings, trainer

    # It shuffles the answers of a round, which both sides shall take in the same order.
    grpo_trainer.shuffle_sequence_dict = lambda batch: batch  # type: ignore[attr-defined]
    answers = list(flat(steps_of(job)))
    number = job["answers"]
    rows = [{"prompt": str(first)} for first in range(0, len(answers), number)]

    def known(prompts: Sequence[str], _: Any) -> dict[str, Any]:
        """Of a round; a prompt is named by its first answer, and comes once for each."""
        found = [answers[int(prompt) + place % number] for place, prompt in enumerate(prompts)]
        ids = {"prompt_ids": [item.prompt for item in found], "completion_ids": [item.answers[0] for item in found]}
        return ids | {"logprobs": None, "rewards": [float(item.labels[0]) for item in found]}

    def rewards(rewards: list[float], **_: Any) -> list[float]:
        return rewards

    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            folder,
            per_device_train_batch_size=job["micro_batch"],
            steps_per_generation=job["accumulate"],
            num_generations=number,
            max_completion_length=job["lengths"][1][1],
            beta=job["beta"],
            loss_type="grpo",
            shuffle_dataset=False,
            **settings(job),
        )
        more = {"reward_funcs": rewards, "rollout_func": known}
        trainer(GRPOTrainer, job, arguments, rows, **more).train()


if __name__ == "__main__":
    serve({"grpo_ours": grpo_ours, "grpo_trl": grpo_trl})
