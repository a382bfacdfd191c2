"""The two sides of ``memory.py``, each run in a process of its own: ``python memory_workers.py train|estimate JOB``."""

from __future__ import annotations

import json
import logging
import math
import sys
import tempfile
import time
import warnings
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ANSWERS = {"SFT": 0, "DPO": 2, "DPO of four": 4, "KTO": 1, "groups of four": 4, "GRPO of four": 4, "reward model": 2}
"""Answers to the prompt of a micro-batch; 0 for a document. KTO's has one of another prompt, too."""


def train(job: dict[str, Any]) -> dict[str, float]:
    """Train two steps; the peak of this process in MiB, and the second step's time."""
    from lightning.pytorch import Callback, Trainer
    from torch.utils.data import DataLoader

    from lion_lightning.callbacks import FusedBackward

    class Clock(Callback):
        seconds = 0.0

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            self.seconds = time.process_time()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.seconds = time.process_time() - self.seconds  # the last step's stays

    clock, clip = Clock(), 1.0 if job["clipped"] else None
    steps: Any = [_batch(job)] * 2  # in the second, the optimizer has its state
    loader: Any = DataLoader(steps, batch_size=None)
    trainer = Trainer(
        accelerator="cpu",
        devices=job["ranks"],
        strategy=_strategy(job),
        precision=job["precision"],
        max_epochs=1,
        callbacks=[clock, *([FusedBackward(clip)] if job["fused"] else [])],
        gradient_clip_val=None if job["fused"] else clip,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(_module(job), loader)
    return {"measured": _status("VmHWM") - _mapped_weights(), "seconds": clock.seconds}


def estimate(job: dict[str, Any]) -> dict[str, float]:
    """What the case is estimated to take."""
    from lion_lightning.planning.job import job_of
    from lion_lightning.planning.sharding_layout import placements
    from lion_lightning.tools.plan.step_time import micro_batch_flops

    module = _module(job)
    libraries = round(_status("VmRSS") * 2**20)  # this process has Python and the libraries loaded
    answers = ANSWERS[job["stage"]]
    settings = {"fused": job["fused"], "on_gpu": False, "overhead": libraries}
    planned = job_of(module, job["tokens"], job["tokens"], job["precision"], answers, **settings)
    moments = placements(_strategy(job), job["ranks"], job["packed"])[0].moments(planned)
    for estimate in moments:
        print({name: size >> 20 for name, size in estimate.parts.items()}, estimate.moment, file=sys.stderr)
    peak = max(estimate.total for estimate in moments)
    return {"estimated": peak / 2**20, "libraries": libraries / 2**20, "gflop": micro_batch_flops(planned) / 1e9}


def _strategy(job: dict[str, Any]) -> Any:
    from lightning.pytorch.strategies import DDPStrategy

    from lion_lightning.strategies import FSDP2Strategy

    made: dict[str, Any] = {
        "auto": lambda: "auto",
        "ddp": lambda: DDPStrategy(gradient_as_bucket_view=True),
        "fsdp": FSDP2Strategy,
    }
    return made[job["strategy"]]()


def _module(job: dict[str, Any]) -> Any:
    from torch.optim import SGD, AdamW

    from lion_lightning.models.lora import LoRASpec
    from lion_lightning.models.quantization import NF4Spec
    from lion_lightning.models.spec import PolicySpec
    from lion_lightning.models.tokenizer import TokenizerSpec
    from lion_lightning.modules import DPOModule, GroupModule, KTOModule, RewardModule, SFTModule
    from lion_lightning.optim import AdaLomo
    from lion_lightning.references.base import AdapterOffReference, FrozenReference

    lora = LoRASpec() if job["lora"] else None
    packed = NF4Spec() if job["packed"] else None
    policy = PolicySpec(recompute=job["recompute"], lora=lora, quantization=packed, **job["source"])
    tokenizer = TokenizerSpec(job["tokenizer"], special_tokens=("<pad>",))  # of which a reward model needs one
    optimizer: Any = {"AdamW": AdamW, "SGD": SGD, "AdaLomo": AdaLomo}[job["optimizer"]]
    if job["stage"] in ("SFT", "reward model"):
        stage: Any = {"SFT": SFTModule, "reward model": RewardModule}[job["stage"]]
        return stage(policy, tokenizer=tokenizer, optimizer=optimizer)
    if job["stage"] == "GRPO of four":
        return _policy_gradient(policy, tokenizer)
    module: Any = {"KTO": KTOModule, "groups of four": GroupModule}.get(job["stage"], DPOModule)
    return module(policy, tokenizer=tokenizer, reference=AdapterOffReference() if lora else FrozenReference())


def _policy_gradient(policy: Any, tokenizer: Any) -> Any:
    """A module on a round of two steps, which nobody sampled."""
    from lion_lightning.modules import PolicyGradientModule

    folder = Path(tempfile.mkdtemp())
    made = SimpleNamespace(number=0, path=folder / "round-0000.arrow")
    data = SimpleNamespace(current_round=made, is_used_again=lambda epoch: False)

    class OneRound(PolicyGradientModule):
        _data = data

        def require_data(self, data: Any) -> None:
            """Take the loader as it is."""

    return OneRound(policy, tokenizer=tokenizer, kl_batches=0)


_SCORES = (3.0, 2.0, 1.0, 0.0)


def _batch(job: dict[str, Any]) -> Any:
    """A row of random tokens: one document, or one prompt with its answers: pairs of them, or with values."""
    import numpy as np

    from lion_lightning.data.packing.collate import collate
    from lion_lightning.types import Sample, SampleSegment

    draw, tokens, stage = np.random.default_rng(0), job["tokens"], job["stage"]
    values = {"KTO": (1.0, math.nan), "groups of four": _SCORES, "GRPO of four": _SCORES}.get(stage, ())
    answers = len(values) or ANSWERS[stage]
    length = tokens // (1 + answers)
    pieces = []
    for number in range(1 + answers):
        trained = number > 0 or not answers
        ids = draw.integers(3, 30000, length, dtype=np.int32)
        pieces.append(SampleSegment(ids, np.full(length, trained), 0 if number else -1))
    pairs = () if values else tuple(combinations(range(answers), 2))
    return collate([Sample(tuple(pieces), 0, values=values, pairs=pairs)], tokens)


def _mapped_weights() -> float:
    """MiB of model files that are still mapped: the kernel may drop them, and a GPU does not hold them."""
    held, ours = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):  # begins a mapping, and ends in its file
            ours = line.endswith(".safetensors")
        elif ours and name == "Rss:":
            held += int(rest[0])
    return held / 1024


def _status(field: str) -> float:
    """A measurement of this process in MiB."""
    return int(Path("/proc/self/status").read_text(encoding="ascii").partition(f"{field}:")[2].split()[0]) / 1024


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    print(json.dumps({"train": train, "estimate": estimate}[sys.argv[1]](json.loads(sys.argv[2]))))
