"""The sides of the training measures, each a worker of ``lockstep``: ``python training_sides.py SIDE JOB``.

All sides get the same weights, the same token ids in the same steps and the same AdamW; every token of an answer is a
target. A turn is a whole step: reading the batch, forward, backward, optimizer, what is logged.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from batches import VOCABULARY, Item, chat_pairs, documents, flat, gsm8k_pairs
from lockstep import Turns
from torch.utils.flop_counter import FlopCounterMode

LEARNING_RATE, BETA = 1e-5, 0.1


class Watch:
    """Counts what goes through the embedding, and tells of each step when it ends."""

    def __init__(self, embedding: torch.nn.Module) -> None:
        self.turns = Turns()
        self.tokens = 0
        self.losses: list[float] = []
        self.counter: FlopCounterMode | None = None
        embedding.register_forward_pre_hook(self._count)

    def count(self) -> None:
        """Count the matrix products' FLOPs of the step that comes: the first, which is not timed."""
        self.counter = FlopCounterMode(display=False)
        self.counter.__enter__()

    def step(self) -> None:
        """An optimizer step has ended."""
        found: dict[str, float] = {"loss": sum(self.losses), "tokens": self.tokens}
        if self.counter is not None:
            self.counter.__exit__(None, None, None)
            found["flops"] = self.counter.get_total_flops()
        self.losses, self.tokens, self.counter = [], 0, None
        self.turns.end(**found)

    def _count(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.tokens += inputs[0].numel()


def steps_of(job: dict[str, Any]) -> list[list[Item]]:
    """What a job trains on.

    Args:
        job: Its ``data``, ``steps``, and ``tokens`` or ``pairs`` a step.
    """
    if job["data"] == "documents":
        return documents(job["steps"], job["tokens"], job.get("by_length", False))
    return {"chat": chat_pairs, "gsm8k": gsm8k_pairs}[job["data"]](job["steps"], job["pairs"])


def ours(job: dict[str, Any]) -> None:
    """SFTModule, or DPOModule with a cached reference, under Lightning's Trainer."""
    from lightning.pytorch import Callback, Trainer

    from lion_lightning import CachedReference, DPOModule, SFTModule
    from lion_lightning.losses import SigmoidLoss

    _quiet()

    class Follow(Callback):
        def on_train_start(self, trainer: Trainer, module: Any) -> None:
            self.watch = Watch(module.policy_model.causal_lm.get_input_embeddings())
            self.watch.turns.start()
            self.watch.count()

        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.watch.losses.append(float(trainer.callback_metrics["train/loss"]))
            self.watch.step()

    def optimizer(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    with tempfile.TemporaryDirectory() as folder:
        kinds: dict[str, Callable[[], Any]] = {
            "sft": lambda: SFTModule(job["model"], optimizer=optimizer),
            "dpo": lambda: DPOModule(
                job["model"], loss=SigmoidLoss(BETA), reference=CachedReference(cache_dir=folder), optimizer=optimizer
            ),
        }
        trainer = Trainer(
            accelerator="cpu",
            precision=job["precision"],
            max_epochs=1,
            callbacks=[Follow()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(kinds[job["stage"]](), _loader(steps_of(job)))


def trl_sft(job: dict[str, Any]) -> None:
    """TRL's SFTTrainer; ``padding_free`` as the job says."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

    _quiet()
    steps = steps_of(job)
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="sdpa")
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
        arguments = SFTConfig(
            folder, max_length=None, padding_free=job.get("padding_free", False), **_trl_settings(job, len(steps))
        )
        trainer = _followed(OnIds)(
            model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(job["model"]),
        )
        trainer.train()


def trl_dpo(job: dict[str, Any]) -> None:
    """TRL's DPOTrainer, its reference log-probs computed ahead."""
    trainer = _dpo_trainer(job)
    trainer.train()


def ours_reference(job: dict[str, Any]) -> None:
    """The pass of ``CachedReference`` over the pairs of a step."""
    from lion_lightning import CachedReference, PolicySpec
    from lion_lightning.models.passes import Process

    _quiet()
    policy = PolicySpec(path=job["model"]).build().eval()
    watch = Watch(policy.causal_lm.get_input_embeddings())

    class Precise(Process):
        def autocast(self) -> Any:
            return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16-mixed")

    process = Precise(precision=job["precision"])
    loaders = [list(_loader([step])) for step in steps_of(job)]
    watch.turns.start()
    watch.count()
    for batches in loaders:
        with tempfile.TemporaryDirectory() as folder:
            reference = CachedReference(cache_dir=folder)
            reference.attach(policy, lambda _: policy)
            reference.cover(batches, policy, process, "training")
            logps = reference(batches[0], policy)
        watch.losses.append(float(logps.chosen.sums.sum()))
        watch.step()


def trl_reference(job: dict[str, Any]) -> None:
    """What DPOTrainer does before training with ``precompute_ref_log_probs``, over the pairs of a step."""
    trainer = _dpo_trainer(job | {"precompute": False})
    pairs = job["pairs"]
    watch = Watch(trainer.model.get_input_embeddings())
    trainer._precompute_model_hash = "benchmark"
    parts = [trainer.train_dataset.select(range(n * pairs, (n + 1) * pairs)) for n in range(job["steps"])]
    watch.turns.start()
    for number, part in enumerate(parts):
        found = trainer._precompute_ref_logps(part, f"turn {number}", job["forward"])
        watch.losses.append(sum(found["ref_chosen_logps"]))
        watch.step()


def random_model(job: dict[str, Any]) -> None:
    """Save a random model of SmolLM2's proportions, with a tokenizer that nobody asks anything of."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=job["layers"],
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    models: Any = AutoModelForCausalLM
    models.from_config(config).save_pretrained(job["model"])
    words = Tokenizer(WordLevel({"<unk>": 0, "<end>": 2}, unk_token="<unk>"))
    tokenizer: Any = PreTrainedTokenizerFast
    tokenizer(tokenizer_object=words, eos_token="<end>", pad_token="<end>").save_pretrained(job["model"])


def _dpo_trainer(job: dict[str, Any]) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]

    _quiet()
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="sdpa")
    rows = [
        {"prompt_ids": item.prompt, "chosen_ids": item.answers[0], "rejected_ids": item.answers[1]}
        for item in flat(steps_of(job))
    ]

    class OnIds(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    arguments = DPOConfig(
        tempfile.mkdtemp(),
        precompute_ref_log_probs=job.get("precompute", True),
        precompute_ref_batch_size=job["forward"],
        beta=BETA,
        max_length=None,
        train_sampling_strategy="sequential",
        **_trl_settings(job, job["steps"]) | {"per_device_train_batch_size": job["pairs"]},
    )
    return _followed(OnIds)(
        model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
    )


def _followed(kind: Any) -> Any:
    """A trainer of TRL's that takes turns."""
    from transformers import TrainerCallback

    class Follow(TrainerCallback):
        watch: Watch

        def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
            self.watch = Watch(model.get_input_embeddings())
            self.watch.turns.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.watch.step()

    class Followed(kind):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.follow = Follow()
            super().__init__(*arguments, callbacks=[self.follow], **options)

        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            loss = super().compute_loss(*arguments, **options)
            self.follow.watch.losses.append(float(loss.detach()))
            return loss

    return Followed


def _trl_settings(job: dict[str, Any], steps: int) -> dict[str, Any]:
    """Gradient checkpointing, which is TRL's default, off; the rest as ours."""
    return {
        "use_cpu": True,
        "bf16": job["precision"] == "bf16-mixed",
        "gradient_checkpointing": False,
        "max_steps": steps,
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


def _loader(steps: Sequence[Sequence[Item]]) -> Any:
    import numpy as np
    from torch.utils.data import DataLoader

    from lion_lightning.data.collate import collate
    from lion_lightning.types import Piece, Sample

    def piece(part: list[int], supervised: bool, parent: int) -> Piece:
        return Piece(np.array(part, np.int32), np.full(len(part), supervised), parent)

    def sample(item: Item) -> Sample:
        if len(item.answers) == 1:
            whole = piece(item.prompt + item.answers[0], True, -1)
            whole.supervised[: len(item.prompt)] = False
            return Sample((whole,), 0)
        return Sample((piece(item.prompt, False, -1), *(piece(part, True, 0) for part in item.answers)), 0)

    def together(items: list[Sequence[Item]]) -> Any:
        samples = [sample(item) for item in items[0]]
        return collate(samples, sum(item.length for item in samples))

    dataset: Any = steps  # DataLoader takes any sequence
    return DataLoader(dataset, batch_size=1, collate_fn=together)


def _quiet() -> None:
    import logging
    import warnings

    os.environ["TQDM_DISABLE"] = "1"
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    sides = {
        "ours": ours,
        "ours_reference": ours_reference,
        "trl_sft": trl_sft,
        "trl_dpo": trl_dpo,
        "trl_reference": trl_reference,
        "model": random_model,
    }
    sides[sys.argv[1]](json.loads(sys.argv[2]))
