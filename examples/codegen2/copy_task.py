"""Filling holes of files that say everything twice: causal training against CodeGen2's mixture and other forms.

python -m examples.codegen2.copy_task                           # causal and spans, two minutes
python -m examples.codegen2.copy_task --forms psm+spm prefix    # two more forms, two minutes
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, PreTrainedTokenizerFast

from lion_lightning import InfillDataModule, PolicySpec, SFTModule, Source
from lion_lightning.data.infill import Corruption, FillInMiddle, PrefixLM, SpanInfill
from lion_lightning.models.generation.prefix import after_prefixes
from lion_lightning.modules import LinearWithWarmup
from lion_lightning.tools.evaluate.intervals import wilson

LETTERS = "abcdefghijklmnop"
HALF, HOLE = 6, 2  # letters of half a file and of a hole in the first half; a guess is right once in 256
SPANS, MIDDLE = SpanInfill(spans=1), FillInMiddle()


class Form(NamedTuple):
    """What a model is trained on, how it is asked to fill a hole, and what it is to write."""

    corruption: Corruption
    share: float
    prompts: dict[str, str]
    answer: str


AFTER_FILE = {"span": "{before}<mask_1>{behind}<|endoftext|><sep><mask_1>"}
WHOLE_FILE = {"span": "{before}<mask_1>{behind}<|endoftext|><sep>"}  # the prefix; the answer begins with the mask
IN_MIDDLE = {
    "PSM": "<|fim_prefix|>{before}<|fim_suffix|>{behind}<|fim_middle|>",
    "SPM": "<|fim_prefix|><|fim_suffix|>{behind}<|fim_middle|>{before}",
}
FORMS = {
    "causal": Form(SPANS, 0.0, AFTER_FILE, "{hole}<eom>"),
    "spans": Form(SPANS, 0.5, AFTER_FILE, "{hole}<eom>"),
    "psm+spm": Form(MIDDLE, 0.5, IN_MIDDLE, "{hole}<|endoftext|>"),
    "prefix": Form(PrefixLM(SPANS), 0.5, WHOLE_FILE, "<mask_1>{hole}<eom>"),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token per letter, and the special tokens of all forms."""
    letters = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(LETTERS)}, merges=[]))
    special = [*SPANS.tokens, *MIDDLE.tokens]
    ends: dict[str, Any] = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    return PreTrainedTokenizerFast(tokenizer_object=letters, extra_special_tokens=special, **ends)


def make_files(count: int, seed: int) -> list[str]:
    """Random letters, twice."""
    halves = np.random.default_rng(seed).choice(list(LETTERS), (count, HALF))
    return ["".join(half) * 2 for half in halves]


def make_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """A Llama of 0.1M parameters."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.12,  # about 1/sqrt(hidden size), with which it learns to copy sooner
        rope_parameters={"rope_type": "default", "rope_theta": 30.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )


def train(form: Form, files: Sequence[str], folder: Path, steps: int, seed: int) -> SFTModule:
    """Train a small model on one form."""
    seed_everything(seed, verbose=False)
    tokenizer, path = make_tokenizer(), folder / "files.jsonl"
    tokenizer.save_pretrained(folder)
    path.write_text("".join(json.dumps({"text": file}) + "\n" for file in files))
    options: dict[str, Any] = {"share": form.share, "max_length": 1024, "seed": seed, "cache_dir": folder / "cache"}
    data = InfillDataModule([Source(str(path))], tokenizer, form.corruption, **options)
    module = SFTModule(
        PolicySpec(config=make_config(tokenizer).to_dict()),
        tokenizer={"path": str(folder)},
        optimizer=partial(torch.optim.AdamW, lr=5e-3, betas=(0.9, 0.95), weight_decay=0.0),
        lr_scheduler=partial(LinearWithWarmup, warmup=0.08),
    )
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar"), False)
    trainer = Trainer(accelerator="cpu", max_steps=steps, gradient_clip_val=1.0, **quiet)  # type: ignore[arg-type]
    trainer.fit(module, data)
    return module


def holes(files: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Each file around a hole in its first half: before, hole, behind."""
    starts = np.random.default_rng(0).integers(0, HALF - HOLE + 1, len(files)).tolist()
    for file, start in zip(files, starts, strict=True):
        yield file[:start], file[start : start + HOLE], file[start + HOLE :]


def exact_infills(module: SFTModule, form: Form, prompt: str, files: Sequence[str]) -> int:
    """Number of holes that the model fills letter for letter, and stops."""
    tokenizer, policy = make_tokenizer(), module.policy_model
    prompts, wanted = [], []
    for before, hole, behind in holes(files):
        prompts.append(tokenizer.encode(prompt.format(before=before, behind=behind)))
        wanted.append(tokenizer.encode(form.answer.format(hole=hole)))
    if isinstance(form.corruption, PrefixLM):
        inputs = after_prefixes(policy, prompts)
    else:  # all prompts are equally long
        inputs = {"input_ids": torch.tensor(prompts), "attention_mask": torch.ones(len(prompts), len(prompts[0]))}
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": len(wanted[0]), "eos_token_id": wanted[0][-1]}
    model: Any = policy.causal_lm
    made = model.generate(**inputs, pad_token_id=tokenizer.pad_token_id, **options)
    return sum(row[len(prompts[0]) :] == answer for row, answer in zip(made.tolist(), wanted, strict=True))


@torch.no_grad()
def nats_per_copied_letter(module: SFTModule, files: Sequence[str]) -> float:
    """Negative log-probability of the second halves, read left to right."""
    ids = torch.tensor(make_tokenizer()(list(files))["input_ids"])
    logps = module.policy_model.causal_lm(ids).logits.log_softmax(-1)[:, HALF - 1 : -1]
    return -float(logps.gather(2, ids[:, HALF:, None]).mean())


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[int, float]]:
    """Train each form, print a table, and give exact infills and nats per copied letter by row."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--forms", nargs="+", choices=list(FORMS), default=["causal", "spans"])
    options.add_argument("--steps", type=int, default=1200)
    options.add_argument("--files", type=int, default=8192, help="files to train on")
    options.add_argument("--holes", type=int, default=256, help="new files to fill a hole of")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    held, rows = make_files(given.holes, seed=given.seed + 1000), {}
    print(f"{'trained on':<12} {'asked by':<10} {'exact infills':>13}  {'95% interval':>14}  nats per copied letter")
    for name in given.forms:
        form = FORMS[name]
        with TemporaryDirectory() as folder:
            module = train(form, make_files(given.files, given.seed), Path(folder), given.steps, given.seed).eval()
        nats = nats_per_copied_letter(module, held)
        for asked, prompt in form.prompts.items():
            count = exact_infills(module, form, prompt, held)
            low, high = wilson(count / len(held), len(held))
            print(
                f"{name:<12} {asked:<10} {count / len(held):>13.3f}  {low:>6.3f} - {high:.3f}  {nats:.4f}", flush=True
            )
            rows[f"{name} {asked}"] = (count, nats)
    return rows


if __name__ == "__main__":
    main()
