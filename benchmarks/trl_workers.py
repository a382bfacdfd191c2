"""TRL's sides of the training measures, each a worker of ``interleaved``: ``python trl_workers.py SIDE JOB``."""

from __future__ import annotations

import json
import tempfile
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from batches import Item, flat, grouped, steps_of
from datasets import Dataset
from training_workers import BETA, LEARNING_RATE, SUMS, Watch, quiet, serve
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import (  # type: ignore[attr-defined]
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)


def trl_sft(job: dict[str, Any]) -> None:
    """SFTTrainer; attention, and whether it pads, as the job says."""
    steps = steps_of(job)
    rows = [
        {"input_ids": item.prompt + item.answers[0], "labels": [-100] * len(item.prompt) + item.answers[0]}
        for item in flat(steps)
    ]

    class OnIds(SFTTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def get_train_dataloader(self) -> Any:
            ends = torch.tensor([0, *map(len, steps)]).cumsum(0).tolist()
            groups = [list(range(start, stop)) for start, stop in pairwise(ends)]
            loader: Any = torch.utils.data.DataLoader
            return self.accelerator.prepare(
                loader(self.train_dataset, batch_sampler=groups, collate_fn=self.data_collator)
            )

    with tempfile.TemporaryDirectory() as folder:
        padding = {"max_length": None, "padding_free": job.get("padding_free", False)}
        trainer(OnIds, job, SFTConfig(folder, **padding, **settings(job)), rows).train()


def trl_dpo(job: dict[str, Any]) -> None:
    """DPOTrainer, its reference log-probs computed ahead, by itself where they are not there."""
    with tempfile.TemporaryDirectory() as folder:
        _dpo_trainer(job, folder, ahead=True).train()


def trl_reference(job: dict[str, Any]) -> None:
    """What DPOTrainer does before training with ``precompute_ref_log_probs``, over the pairs of a turn."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = _dpo_trainer(job, folder, ahead=False)
        watch = Watch(trainer.model.get_input_embeddings(), job["device"])
        trainer._precompute_model_hash = "benchmark"
        pairs = list(range(job["steps"] * job["pairs"]))
        parts = [trainer.train_dataset.select(part) for part in grouped(pairs, job["pairs"] * job["accumulate"])]
        watch.turns.start()
        for number, part in enumerate(parts):
            found = trainer._precompute_ref_logps(part, f"turn {number}", job["pairs"])
            watch.losses.append(torch.tensor(sum(found["ref_chosen_logps"])))
            watch.step()


def _dpo_trainer(job: dict[str, Any], folder: str, ahead: bool) -> Any:
    class OnIds(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *arguments: Any) -> Any:
            if not ahead or "references" not in job:
                return super()._precompute_ref_logps(dataset, *arguments)
            return _with_sums(dataset, job)

    reference = {"precompute_ref_log_probs": ahead, "precompute_ref_batch_size": job["pairs"]}
    arguments = DPOConfig(folder, beta=BETA, **reference, **_batches(job), **settings(job))
    return trainer(OnIds, job, arguments, list(map(_pair, flat(steps_of(job)))))


def trl_kto(job: dict[str, Any]) -> None:
    """KTOTrainer on the sums of log-probs that our reference has found, the mismatched answers' too."""

    class OnIds(KTOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
            return _with_sums(dataset, job)

    rows = [
        {
            "prompt_ids": item.prompt,
            "completion_ids": item.answers[0],
            "KL_completion_ids": list(item.mismatched),
            "label": item.labels[0],
        }
        for item in flat(steps_of(job))
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = KTOConfig(folder, beta=BETA, precompute_ref_log_probs=True, **_batches(job), **settings(job))
        trainer(OnIds, job, arguments, rows).train()


def trl_reward(job: dict[str, Any]) -> None:
    """RewardTrainer; the model that it loads is a reward model, so that both sides start with the same scores."""
    rows = [
        {"chosen_ids": item.prompt + item.answers[0], "rejected_ids": item.prompt + item.answers[1]}
        for item in flat(steps_of(job))
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = RewardConfig(folder, **_batches(job), **settings(job))
        trainer(RewardTrainer, job, arguments, rows, AutoModelForSequenceClassification).train()


def _with_sums(dataset: Any, job: dict[str, Any]) -> Any:
    """Rows with the reference's sums, a column for each name in the file."""
    sums = json.loads(Path(job["references"], SUMS).read_text(encoding="ascii"))
    return reduce(lambda rows, column: rows.add_column(*column), sums.items(), dataset)


def _batches(job: dict[str, Any]) -> dict[str, Any]:
    """Micro-batches in the rows' order, nothing cut."""
    batch = {"per_device_train_batch_size": job["pairs"], "train_sampling_strategy": "sequential"}
    return batch | {"max_length": None}


def _pair(item: Item) -> dict[str, list[int]]:
    return {"prompt_ids": item.prompt, "chosen_ids": item.answers[0], "rejected_ids": item.answers[1]}


def trainer(
    kind: Any,
    job: dict[str, Any],
    arguments: Any,
    rows: list[dict[str, Any]],
    models: Any = AutoModelForCausalLM,
    **options: Any,
) -> Any:
    """A trainer of TRL's that takes turns when it trains.

    Args:
        kind: Of the trainer.
        job: Its ``accumulate`` micro-batches are a turn, which has ``updates`` optimizer steps, or one.
        arguments: Its settings.
        rows: Its data.
        models: What loads the model.
        **options: Further arguments of the trainer.
    """
    quiet()

    class Follow(TrainerCallback):
        watch: Watch

        def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
            self.watch = Watch(model.get_input_embeddings(), job["device"])
            self.watch.turns.start()

        def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            self.watch.norms.append(torch.nn.utils.get_total_norm(gradients))  # which ours logs, too

        def on_step_end(self, arguments: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step % job.get("updates", 1) == 0:
                self.watch.step()

    follow = Follow()

    class Followed(kind):  # type: ignore[misc]
        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            loss = super().compute_loss(*arguments, **options)
            follow.watch.losses.append(loss.detach())
            return loss

    attention = job.get("attention", "sdpa")
    model = models.from_pretrained(job["model"], dtype=torch.float32, attn_implementation=attention)
    return Followed(
        model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        callbacks=[follow],
        **options,
    )


def settings(job: dict[str, Any]) -> dict[str, Any]:
    """Gradient checkpointing, which is TRL's default, off; the rest as ours.

    Args:
        job: With device, precision and micro-batches.
    """
    return {
        "use_cpu": job["device"] == "cpu",
        "bf16": job["precision"] == "bf16-mixed",
        "gradient_checkpointing": False,
        "gradient_accumulation_steps": job["accumulate"] // job.get("updates", 1),
        "max_steps": job["steps"] // job["accumulate"] * job.get("updates", 1),
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


if __name__ == "__main__":
    sides = {"trl_sft": trl_sft, "trl_dpo": trl_dpo, "trl_reference": trl_reference}
    serve(sides | {"trl_kto": trl_kto, "trl_reward": trl_reward})
