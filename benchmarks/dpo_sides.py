"""The two sides of ``dpo.py``, each run in a process of its own: ``python dpo_sides.py ours|trl|model JOB``.

Both sides get the same token ids, and every token of an answer, its end-of-turn token the last, is a target: the ids
are made here, TRL's own tokenisation (whose answers end in the template's newline) is left out.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

LEARNING_RATE, BETA = 1e-5, 0.1
SMOLLM2: dict[str, Any] = {
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


class Ids(NamedTuple):
    """Token ids of a preference pair."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


class Watch:
    """Times the steps after the first, counts tokens through the embedding, and keeps the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.tokens = 0
        self.ends: list[tuple[float, float]] = []
        self.loaded = 0.0
        self.training = False

    def follow(self, embedding: torch.nn.Module) -> None:
        """Count the tokens that go through an embedding in training."""
        embedding.register_forward_pre_hook(lambda _, inputs: self._count(inputs[0].numel()))

    def begin(self) -> None:
        """Training begins: the weights are there, gradients and optimizer states are not."""
        self.loaded, self.training = _resident_mib(), True

    def step(self) -> None:
        """An optimizer step has ended. The first warms up and is not timed."""
        self.ends.append((time.perf_counter(), time.process_time()))

    def report(self, job: dict[str, Any]) -> dict[str, Any]:
        """Figures of the run."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux
        pairs = job["pairs"] * (len(self.ends) - 1)
        seconds, cpu_seconds = (last - first for first, last in zip(self.ends[0], self.ends[-1], strict=True))
        forwards = len(self.losses) // len(self.ends)
        return {
            "pairs_per_second": pairs / seconds,
            "pairs_per_cpu_second": pairs / cpu_seconds,
            "peak_mib": peak,
            "growth_mib": peak - self.loaded,
            "tokens": self.tokens,
            "losses": [sum(self.losses[n : n + forwards]) / forwards for n in range(0, len(self.losses), forwards)],
        }

    def _count(self, tokens: int) -> None:
        self.tokens += tokens if self.training else 0


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """DPOModule under Lightning's Trainer, with a cached reference."""
    import logging
    import warnings

    import numpy as np
    from lightning.pytorch import Callback, Trainer
    from torch.utils.data import DataLoader

    from lion_lightning.data.collate import collate
    from lion_lightning.losses.dpo import SigmoidLoss
    from lion_lightning.models.cached import CachedReference
    from lion_lightning.modules.dpo import DPOModule
    from lion_lightning.types import Piece, Sample

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    watch = Watch()

    class Follow(Callback):
        def on_train_start(self, trainer: Trainer, module: Any) -> None:
            watch.follow(module.policy_model.causal_lm.get_input_embeddings())
            watch.begin()

        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            watch.losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches / job["forward"])
            if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
                watch.step()

    def piece(part: list[int], parent: int) -> Piece:
        return Piece(np.array(part, np.int32), np.full(len(part), parent == 0), parent)

    def sample(ids: Ids) -> Sample:
        return Sample(tuple(map(piece, ids, (-1, 0, 0))), 0)

    samples = [sample(ids) for ids in make_pairs(job)]
    capacity = sum(item.length for item in samples)
    dataset: Any = samples  # DataLoader takes any sequence
    loader: Any = DataLoader(dataset, batch_size=job["forward"], collate_fn=lambda found: collate(found, capacity))
    with tempfile.TemporaryDirectory() as folder:
        module = DPOModule(
            job["model"],
            loss=SigmoidLoss(BETA),
            reference=CachedReference(cache_dir=folder),
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=0.0, fused=True),
        )
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            accumulate_grad_batches=job["pairs"] // job["forward"],
            callbacks=[Follow()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader)
    return watch.report(job)


def trl(job: dict[str, Any]) -> dict[str, Any]:
    """TRL's DPOTrainer: fp32, no gradient checkpointing (its default is on), reference log-probs computed ahead."""
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]

    disable_progress_bars()
    watch = Watch()

    class Follow(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watch.follow(model.get_input_embeddings())
            watch.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.step()

    class OnIds(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def compute_loss(self, *args: Any, **options: Any) -> Any:
            loss = super().compute_loss(*args, **options)  # type: ignore[no-untyped-call]
            watch.losses.append(float(loss.detach()))
            return loss

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="sdpa")
    rows = [{f"{name}_ids": part for name, part in ids._asdict().items()} for ids in make_pairs(job)]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TQDM_DISABLE"] = "1"
        arguments = DPOConfig(
            folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            precompute_ref_log_probs=True,
            beta=BETA,
            max_length=None,
            per_device_train_batch_size=job["forward"],
            gradient_accumulation_steps=job["pairs"] // job["forward"],
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            weight_decay=0.0,
            max_grad_norm=0.0,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = OnIds(
            model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(job["model"]),
            callbacks=[Follow()],
        )
        trainer.train()
    return watch.report(job)


def random_model(job: dict[str, Any]) -> dict[str, Any]:
    """Save a random model of SmolLM2's vocabulary and proportions, with a tokenizer that nobody asks anything of."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    torch.manual_seed(0)
    heads = job["hidden"] // 64
    size = {
        "num_hidden_layers": job["layers"],
        "hidden_size": job["hidden"],
        "intermediate_size": job["hidden"] * 8 // 3,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 3 if heads % 3 == 0 else heads // 2,
    }
    config = LlamaConfig(**SMOLLM2 | size)
    models: Any = AutoModelForCausalLM
    models.from_config(config).save_pretrained(job["model"])
    words = Tokenizer(WordLevel({"<unk>": 0, "<end>": 2}, unk_token="<unk>"))
    tokenizer: Any = PreTrainedTokenizerFast
    tokenizer(tokenizer_object=words, eos_token="<end>", pad_token="<end>").save_pretrained(job["model"])
    return {}


def make_pairs(job: dict[str, Any]) -> list[Ids]:
    """The pairs of a job, in the order in which they are trained."""
    return {"chat": _chat_pairs, "gsm8k": _gsm8k_pairs}[job["data"]](job, job["pairs"] * job["steps"])


def _chat_pairs(job: dict[str, Any], count: int) -> list[Ids]:
    """Random tokens: prompts of 30 to 300, answers of 100 to 700."""
    draw = random.Random(0)

    def tokens(low: int, high: int) -> list[int]:
        return draw.choices(range(3, SMOLLM2["vocab_size"]), k=draw.randint(low, high))

    return [Ids(tokens(30, 300), tokens(100, 700), tokens(100, 700)) for _ in range(count)]


def _gsm8k_pairs(job: dict[str, Any], count: int) -> list[Ids]:
    """A right and a wrong model solution of the same problem."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    pairs: list[Ids] = []
    for line in Path(job["file"]).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        solutions = [value for value in row.values() if isinstance(value, dict)]
        right, wrong = ([s["solution"] for s in solutions if s["is_correct"] is truth] for truth in (True, False))
        if right and wrong:
            turn = [{"role": "user", "content": row["question"]}]
            prompt: Any = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
            answers = (tokenizer(text[0] + tokenizer.eos_token)["input_ids"] for text in (right, wrong))
            pairs.append(Ids(prompt, *answers))
    return pairs[:count]


def _resident_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


if __name__ == "__main__":
    torch.set_num_threads(2)
    task = json.loads(sys.argv[2])
    print(json.dumps({"ours": ours, "trl": trl, "model": random_model}[sys.argv[1]](task)))
