"""Our sides of the training measures, each a worker of ``interleaved``: ``python training_workers.py SIDE JOB``.

All sides (TRL's: ``trl_workers.py``) get the same weights, the same token ids in the same micro-batches and the same
AdamW; every token of an answer is a target. A turn is an optimizer step: reading its micro-batches, forward, backward,
optimizer, what is logged. Nothing is read off a GPU before the step has ended, so that no side waits for itself.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batches import VOCABULARY, Item, grouped, steps_of
from interleaved import Turns, peak_mib, resident_mib
from torch.utils.data import DataLoader

LEARNING_RATE, BETA = 1e-5, 0.1
MIB = 2**20
SUMS = "sums.json"
"""In the folder of a job's ``references``: sums of answers' log-probs in their order, by TRL's names of columns."""


class Watch:
    """Counts what goes through the embedding, and tells of each turn when the device has done it.

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
        self.norms: list[torch.Tensor] = []
        self._first = True
        embedding.register_forward_pre_hook(self._count)

    def step(self) -> None:
        """A turn has been done, or asked of a GPU: wait for it. The first one warms up, and its peak does not count."""
        if self.on_gpu:
            torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() / MIB if self.on_gpu else peak_mib()
        if self._first and self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        found = {"losses": [*map(float, self.losses)], "norms": [*map(float, self.norms)], "flops": self.flops}
        seen, self.losses, self.norms, self.tokens, self.flops, self._first = self.tokens, [], [], 0, 0.0, False
        self.turns.end(peak_mib=peak, tokens=seen, **found)

    def _count(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.tokens += inputs[0].numel()


def ours(job: dict[str, Any]) -> None:
    """A module, with a cached reference where it needs one, under Lightning's Trainer."""
    from lion_lightning import CachedReference, DPOModule, KTOModule, PolicySpec, RewardModule, SFTModule
    from lion_lightning.losses import KTOLoss, SigmoidLoss

    quiet()
    policy = PolicySpec(path=job["model"], **job.get("policy", {}))
    with tempfile.TemporaryDirectory() as folder:
        reference = CachedReference(cache_dir=job.get("references", folder))
        settings: dict[str, Any] = {"reference": reference, "optimizer": optimizer}
        kinds: dict[str, Callable[[], Any]] = {
            "sft": lambda: SFTModule(policy, optimizer=optimizer),
            "dpo": lambda: DPOModule(policy, loss=SigmoidLoss(BETA), **settings),
            "kto": lambda: KTOModule(policy, loss=KTOLoss(BETA), **settings),
            "reward": lambda: RewardModule(policy, optimizer=optimizer),
        }
        train(job, kinds[job["stage"]](), loader(steps_of(job)), max_epochs=1)


def train(job: dict[str, Any], module: Any, data: Any, **options: Any) -> None:
    """Train as the job says, taking turns.

    Args:
        job: Its ``accumulate`` micro-batches are a turn, which has ``updates`` optimizer steps, or one.
        module: What to train.
        data: A loader or a data module.
        **options: Of Lightning's Trainer.
    """
    from lightning.pytorch import Callback, Trainer

    from lion_lightning.planning.flops import training_flops

    step = job["accumulate"] // job.get("updates", 1)  # micro-batches

    class Follow(Callback):
        def on_train_start(self, trainer: Trainer, module: Any) -> None:
            model = module.policy_model.causal_lm
            self.needed = training_flops(model)
            self.watch = Watch(model.get_input_embeddings(), job["device"])
            self.watch.turns.start()

        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.watch.flops += _needed(self.needed, batch)
            if (batch_idx + 1) % step == 0:
                self.watch.losses.append(trainer.callback_metrics["train/loss"])
                self.watch.norms.append(trainer.callback_metrics["train/grad_norm"])
            if (batch_idx + 1) % job["accumulate"] == 0:
                self.watch.step()

    trainer = Trainer(
        accelerator="gpu" if job["device"] == "cuda" else "cpu",
        devices=1,
        precision=job["precision"],
        accumulate_grad_batches=step,
        callbacks=[Follow()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, data)


def optimizer(groups: Any) -> torch.optim.Optimizer:
    """What both sides train with.

    Args:
        groups: Of parameters.
    """
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=0.0, fused=True)


def _needed(flops: Any, batch: Any) -> float:
    """FLOPs of a step; mismatched answers pass in a forward of their own, a third of what training takes."""
    from lion_lightning.types import keep_answers

    mismatched = np.isnan(np.array(batch.values))
    if not mismatched.any():
        return float(flops.of(batch))
    trained, apart = (keep_answers(batch, np.flatnonzero(kind).tolist()) for kind in (~mismatched, mismatched))
    return float(flops.of(trained) + flops.of(apart) / 3)


def ours_reference(job: dict[str, Any]) -> None:
    """The pass of ``CachedReference`` over the pairs of a turn."""
    from lion_lightning import CachedReference, PolicySpec
    from lion_lightning.ops.logprobs import pair_logps
    from lion_lightning.planning.flops import forward_flops

    quiet()
    policy = PolicySpec(path=job["model"]).build().eval()
    needed = forward_flops(policy.causal_lm)
    watch = Watch(policy.causal_lm.get_input_embeddings(), job["device"])

    class Known(CachedReference):
        """The weights' digest is left out: it is made once a data set, not once a turn; and so is TRL's."""

        def _digest(self, policy: Any) -> str:
            return "benchmark"

    ranks = _ranks(job)
    turns = grouped(list(loader(steps_of(job))), job["accumulate"])
    watch.turns.start()
    for batches in turns:
        with tempfile.TemporaryDirectory() as folder:
            reference = Known(cache_dir=folder)
            reference.attach(policy, lambda _: policy)
            reference.precompute(batches, policy, ranks, "training")
            found = (pair_logps(reference(batch, policy), batch) for batch in batches)
            watch.losses.append(sum(logps.chosen.sums.sum() for logps in found))
        watch.flops += sum(map(needed.of, batches))
        watch.step()


def references(job: dict[str, Any]) -> None:
    """The reference's log-probs, for both sides: our cache is left where ours looks, TRL gets a file of sums."""
    from lion_lightning import CachedReference, PolicySpec
    from lion_lightning.ops.logprobs import answer_view

    quiet()
    policy = PolicySpec(path=job["model"]).build().eval()
    reference, batches = CachedReference(cache_dir=job["references"]), list(loader(steps_of(job)))
    reference.attach(policy, lambda _: policy)
    reference.precompute(batches, policy, _ranks(job), "training")
    columns: dict[str, list[float]] = {}
    for batch in batches:
        sums = answer_view(batch, range(len(batch.answers))).logps(reference(batch, policy)).sums
        for name, answers in _columns(batch).items():
            columns.setdefault(name, []).extend(sums[answers].tolist())
    Path(job["references"], SUMS).write_text(json.dumps(columns), encoding="ascii")


def _columns(batch: Any) -> dict[str, list[int]]:
    """TRL's columns of reference log-probs, and of which answers they are."""
    if batch.pairs:
        chosen, rejected = (list(side) for side in zip(*batch.pairs, strict=True))
        return {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    mismatched = np.isnan(batch.values)
    return {"ref_logps": np.flatnonzero(~mismatched).tolist(), "ref_KL_logps": np.flatnonzero(mismatched).tolist()}


def _ranks(job: dict[str, Any]) -> Any:
    from lion_lightning.distributed.ranks import Ranks

    precision = job["precision"]
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
    return Ranks(precision=precision, autocast=autocast)


def random_model(job: dict[str, Any]) -> None:
    """Save a random Llama of the job's shape (a reward model for that stage), with a tokenizer for nothing."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        LlamaConfig,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=8192,
        rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=2,
        eos_token_id=2,
        pad_token_id=1,
        num_labels=1,
        **job["shape"],
    )
    models: Any = AutoModelForSequenceClassification if job.get("stage") == "reward" else AutoModelForCausalLM
    with torch.device(job["device"]):
        models.from_config(config, dtype=getattr(torch, job.get("dtype", "float32"))).save_pretrained(job["model"])
    words = Tokenizer(WordLevel({"<unk>": 0, "<pad>": 1, "<end>": 2}, unk_token="<unk>"))
    tokenizer: Any = PreTrainedTokenizerFast
    tokenizer(tokenizer_object=words, eos_token="<end>", pad_token="<pad>").save_pretrained(job["model"])


def loader(steps: Sequence[Sequence[Item]]) -> Any:
    """A packed batch a micro-batch.

    Args:
        steps: The micro-batches.
    """
    from lion_lightning.data.packing.collate import collate
    from lion_lightning.types import Sample, SampleSegment

    def piece(part: list[int], supervised: bool, parent: int) -> SampleSegment:
        return SampleSegment(np.array(part, np.int32), np.full(len(part), supervised), parent)

    def sample(item: Item) -> Sample:
        if len(item.answers) == 1 and not item.labels:
            whole = piece(item.prompt + item.answers[0], True, -1)
            whole.supervised[: len(item.prompt)] = False
            return Sample((whole,), 0)
        answers = [piece(part, True, 0) for part in item.answers]
        values = [float(label) for label in item.labels] or [-float(rank) for rank in range(len(answers))]
        if item.mismatched:
            answers, values = [*answers, piece(list(item.mismatched), True, 0)], [*values, math.nan]
        pairs = () if item.labels else item.pairs
        return Sample((piece(item.prompt, False, -1), *answers), 0, values=tuple(values), pairs=pairs)

    def together(items: list[Sequence[Item]]) -> Any:
        samples = [sample(item) for item in items[0]]
        return collate(samples, sum(item.length for item in samples))

    dataset: Any = steps  # DataLoader takes any sequence
    return DataLoader(dataset, batch_size=1, collate_fn=together)


def quiet() -> None:
    """Keep bars and warnings out of what is measured, once all is imported; memory is counted from here."""
    os.environ["TQDM_DISABLE"] = "1"
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    Turns.libraries = resident_mib()


def serve(sides: dict[str, Callable[[dict[str, Any]], None]]) -> None:
    """Be the side that the command line names, on the job that it gives.

    Args:
        sides: By name.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    sides[sys.argv[1]](json.loads(sys.argv[2]))


if __name__ == "__main__":
    serve({"ours": ours, "ours_reference": ours_reference, "references": references, "model": random_model})
