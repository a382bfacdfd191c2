"""The sides of ``gpu.py``, each a worker of ``lockstep``: ``python gpu_sides.py SIDE JOB``.

Both load the same weights in fp32, train under bf16 autocast (in fp32 on a CPU, where bf16 may be slow) on the same
token ids in the same micro-batches, with the same fused AdamW, and gradient checkpointing off. A turn is an optimizer
step: reading its micro-batches, forward, backward, optimizer. Nothing is read off the device before the step has
ended, so that neither side waits for itself.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from batches import VOCABULARY, flat
from lockstep import Turns, peak_mib
from training_sides import BETA, LEARNING_RATE, loader, quiet, steps_of

MIB = 2**20


class Watch:
    """Tells of each optimizer step when the device has done it.

    Args:
        embedding: What every token goes through.
        device: ``cuda`` or ``cpu``.
    """

    def __init__(self, embedding: torch.nn.Module, device: str) -> None:
        self.turns = Turns()
        self.on_gpu = device == "cuda"
        self.tokens = 0
        self.flops = 0.0
        self.losses: list[torch.Tensor] = []
        self._steps = 0
        embedding.register_forward_pre_hook(self._count)

    def step(self) -> None:
        """An optimizer step has been asked for: wait for it. The first one warms up, and its peak does not count."""
        if self.on_gpu:
            torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() / MIB if self.on_gpu else peak_mib()
        losses, self.losses = [float(loss) for loss in self.losses], []
        tokens, flops, self.tokens, self.flops = self.tokens, self.flops, 0, 0.0
        self._steps += 1
        if self._steps == 1 and self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        self.turns.end(peak_mib=peak, losses=losses, tokens=tokens, flops=flops)

    def _count(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.tokens += inputs[0].numel()


def ours(job: dict[str, Any]) -> None:
    """SFTModule, or DPOModule with a cached reference, under Lightning's Trainer."""
    from lightning.pytorch import Callback, Trainer

    from lion_lightning import CachedReference, DPOModule, PolicySpec, SFTModule
    from lion_lightning.losses import SigmoidLoss
    from lion_lightning.planning.flops import training_flops

    quiet()

    class Follow(Callback):
        def on_train_start(self, trainer: Trainer, module: Any) -> None:
            model = module.policy_model.causal_lm
            self.needed = training_flops(model)
            self.watch = Watch(model.get_input_embeddings(), job["device"])
            self.watch.turns.start()

        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.watch.flops += self.needed.of(batch)
            if (batch_idx + 1) % job["accumulate"] == 0:
                self.watch.losses.append(trainer.callback_metrics["train/loss"])
                self.watch.step()

    def optimizer(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    policy = PolicySpec(path=job["model"], attention=job.get("attention", "lion"))
    with tempfile.TemporaryDirectory() as folder:
        kinds: dict[str, Callable[[], Any]] = {
            "sft": lambda: SFTModule(policy, optimizer=optimizer),
            "dpo": lambda: DPOModule(
                policy, loss=SigmoidLoss(BETA), reference=CachedReference(cache_dir=folder), optimizer=optimizer
            ),
        }
        trainer = Trainer(
            accelerator="gpu" if job["device"] == "cuda" else "cpu",
            devices=1,
            precision=job["precision"],
            accumulate_grad_batches=job["accumulate"],
            max_epochs=1,
            callbacks=[Follow()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(kinds[job["stage"]](), loader(steps_of(job)))


def trl_sft(job: dict[str, Any]) -> None:
    """TRL's SFTTrainer; attention, and whether it pads, as the job says."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

    quiet()
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
            kind: Any = torch.utils.data.DataLoader
            return self.accelerator.prepare(
                kind(self.train_dataset, batch_sampler=groups, collate_fn=self.data_collator)
            )

    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            folder, max_length=None, padding_free=job.get("padding_free", False), **_trl_settings(job)
        )
        _train(OnIds, job, arguments, Dataset.from_list(rows))


def trl_dpo(job: dict[str, Any]) -> None:
    """TRL's DPOTrainer, its reference log-probs computed ahead."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]

    quiet()
    rows = [
        {"prompt_ids": item.prompt, "chosen_ids": item.answers[0], "rejected_ids": item.answers[1]}
        for item in flat(steps_of(job))
    ]

    class OnIds(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(
            folder,
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=job["pairs"],
            beta=BETA,
            max_length=None,
            train_sampling_strategy="sequential",
            **_trl_settings(job) | {"per_device_train_batch_size": job["pairs"]},
        )
        _train(OnIds, job, arguments, Dataset.from_list(rows))


def random_model(job: dict[str, Any]) -> None:
    """Save a random Llama of the job's shape, in bf16, with a tokenizer that nobody asks anything of."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=8192,
        rope_parameters={"rope_theta": 500000.0, "rope_type": "default"},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        **job["shape"],
    )
    models: Any = AutoModelForCausalLM
    with torch.device(job["device"]):
        models.from_config(config, dtype=torch.bfloat16).save_pretrained(job["model"])
    words = Tokenizer(WordLevel({"<unk>": 0, "<end>": 2}, unk_token="<unk>"))
    tokenizer: Any = PreTrainedTokenizerFast
    tokenizer(tokenizer_object=words, eos_token="<end>", pad_token="<end>").save_pretrained(job["model"])


def _train(kind: Any, job: dict[str, Any], arguments: Any, rows: Any) -> None:
    """Train with a trainer of TRL's that takes turns."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    class Follow(TrainerCallback):
        watch: Watch

        def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
            self.watch = Watch(model.get_input_embeddings(), job["device"])
            self.watch.turns.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.watch.step()

    follow = Follow()

    class Followed(kind):  # type: ignore[misc]
        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            loss = super().compute_loss(*arguments, **options)
            follow.watch.losses.append(loss.detach())
            return loss

    models: Any = AutoModelForCausalLM
    model = models.from_pretrained(job["model"], dtype=torch.float32, attn_implementation=job.get("attention", "sdpa"))
    Followed(
        model,
        args=arguments,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        callbacks=[follow],
    ).train()


def _trl_settings(job: dict[str, Any]) -> dict[str, Any]:
    """Gradient checkpointing, which is TRL's default, off; the rest as ours."""
    return {
        "use_cpu": job["device"] == "cpu",
        "bf16": job["precision"] == "bf16-mixed",
        "gradient_checkpointing": False,
        "gradient_accumulation_steps": job["accumulate"],
        "max_steps": job["steps"] // job["accumulate"],
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
    SIDES = {"ours": ours, "trl_sft": trl_sft, "trl_dpo": trl_dpo, "model": random_model}
    SIDES[sys.argv[1]](json.loads(sys.argv[2]))
