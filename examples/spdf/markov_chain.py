"""Sparse pre-training and dense fine-tuning (SPDF) on sequences of symbols, each drawn by the two before it.

python -m examples.spdf.markov_chain

A model is pre-trained on one chain at 0, 50 and 75% sparsity, then fine-tuned on few sequences of another that shares
half of its contexts: with all of its weights, and with the mask kept. Printed are held-out nats per symbol.
"""

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch.optim import AdamW

from lion_lightning import PolicySpec, SFTModule, TokenizerSpec
from lion_lightning.data.packing.loader import PackedLoader
from lion_lightning.experimental.static_sparsity import StaticSparsity, forward_flops_per_token, prunable
from lion_lightning.modules import CosineWithWarmup
from lion_lightning.tools.demo.model import make_config, make_tokenizer
from lion_lightning.tools.evaluate.intervals import mean_interval
from lion_lightning.types import Sample, SampleSegment

SYMBOLS, LENGTH, BATCH = 16, 64, 8
SPARSITIES = (0.0, 0.5, 0.75)
SIZES = {"num_hidden_layers": 2, "hidden_size": 64, "head_dim": 16, "intermediate_size": 256}
Probabilities = np.ndarray[Any, Any]
"""``(SYMBOLS, SYMBOLS, SYMBOLS)``: of each symbol behind each two."""


class Result(NamedTuple):
    """Held-out nats per symbol, shares of zeros before and after dense fine-tuning, and the factor of FLOPs saved."""

    pretrained: float
    dense: float
    kept: float
    zeros: float
    zeros_left: float
    flops: float


def chains(seed: int) -> tuple[Probabilities, Probabilities]:
    """The chain of pre-training, and that of fine-tuning, which differs behind every second symbol."""
    random = np.random.default_rng(seed)
    first, other = random.dirichlet(np.full(SYMBOLS, 0.1), size=(2, SYMBOLS, SYMBOLS))
    return first, np.where(np.arange(SYMBOLS)[:, None, None] % 2, other, first)


def loader(chain: Probabilities, documents: int, seed: int) -> PackedLoader:
    """Sequences of a chain; the first two symbols of each are given, and no targets."""
    random = np.random.default_rng(seed)
    symbols = random.integers(SYMBOLS, size=(documents, LENGTH))
    for place in range(2, LENGTH):
        below = chain[symbols[:, place - 2], symbols[:, place - 1]].cumsum(1)
        symbols[:, place] = (random.random((documents, 1)) > below).sum(1).clip(max=SYMBOLS - 1)
    supervised = np.arange(LENGTH) >= 2
    samples = [Sample((SampleSegment(row.astype(np.int32), supervised),), n) for n, row in enumerate(symbols)]
    lengths = np.full(documents, LENGTH)
    return PackedLoader(samples, lengths, capacity=BATCH * LENGTH, batch_size=1, shuffle=True, seed=seed)


def train(
    start: PolicySpec, folder: Path, data: Any, held_out: Any, steps: int, rate: float, *callbacks: Any
) -> tuple[float, SFTModule]:
    """Train; return the held-out nats per symbol, and the module."""
    module = SFTModule(
        start,
        tokenizer=TokenizerSpec(str(folder / "tokenizer")),
        optimizer=partial(AdamW, lr=rate, betas=(0.9, 0.95), weight_decay=0.1),
        lr_scheduler=CosineWithWarmup,
    )
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    fitting: dict[str, Any] = {
        "max_steps": steps,
        "gradient_clip_val": 1.0,
        "limit_val_batches": 0,
        "enable_model_summary": False,
    }
    Trainer(accelerator="cpu", callbacks=list(callbacks), **quiet, **fitting).fit(module, data)
    [metrics] = Trainer(accelerator="cpu", **quiet).validate(module, held_out, verbose=False)
    return metrics["val/loss"], module


def run(seed: int, steps: int, tuning_steps: int) -> list[Result]:
    """Pre-train at each sparsity, and fine-tune twice from the saved model."""
    first, second = chains(seed)
    data, held_out = loader(first, BATCH * steps, seed), loader(first, 64, seed + 100)
    tuning, tuned = loader(second, 128, seed + 200), loader(second, 64, seed + 300)
    results = []
    with TemporaryDirectory() as name:
        folder, tokenizer = Path(name), make_tokenizer()
        tokenizer.save_pretrained(folder / "tokenizer")
        start = PolicySpec(config=make_config(tokenizer).to_dict() | SIZES)
        for sparsity in SPARSITIES:
            torch.manual_seed(seed)
            mask = StaticSparsity(sparsity, seed, allow_pretrained=True)  # the same one in both stages
            pretrained, module = train(start, folder, data, held_out, steps, 3e-3, mask)
            module.policy_model.causal_lm.save_pretrained(folder / "model")
            saved = PolicySpec(str(folder / "model"))
            dense, revived = train(saved, folder, tuning, tuned, tuning_steps, 1e-3)
            kept, _ = train(saved, folder, tuning, tuned, tuning_steps, 1e-3, mask)
            shares = zeros(module), zeros(revived)
            results.append(Result(pretrained, dense, kept, *shares, flops_factor(module, sparsity)))
    return results


def zeros(module: SFTModule) -> float:
    """Share of zeros in the matrices that are pruned."""
    matrices = [matrix.flatten() for _, matrix in prunable(module.policy_model.causal_lm)]
    return float((torch.cat(matrices) == 0).double().mean())


def flops_factor(module: SFTModule, sparsity: float) -> float:
    """Factor by which a forward pass of this model took fewer FLOPs, if zeros cost none."""
    config, matrices = module.policy_model.causal_lm.config, prunable(module.policy_model.causal_lm)
    shape = (config.num_hidden_layers, config.hidden_size, LENGTH, config.vocab_size)
    flops = partial(forward_flops_per_token, *shape, matrices=sum(matrix.numel() for _, matrix in matrices))
    return flops() / flops(sparsity)


def main(argv: Sequence[str] | None = None) -> list[list[Result]]:
    """Run all seeds, print a table, and return the results by seed and sparsity."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"--seeds": 3, "--steps": 300, "--tuning-steps": 60}.items():
        parser.add_argument(name, type=int, default=default)
    options = parser.parse_args(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = [run(seed, options.steps, options.tuning_steps) for seed in range(options.seeds)]
    print("| sparsity | FLOPs forward | pre-trained | then dense | minus dense from dense | then with the mask kept |")
    print("|---|---|---|---|---|---|")
    for place, sparsity in enumerate(SPARSITIES):
        results = [each[place] for each in found]
        pretrained, dense, kept = (fmean(numbers) for numbers in list(zip(*results, strict=True))[:3])
        gap = mean_interval([each[place].dense - each[0].dense for each in found])  # of the same seed
        cells = [f"{sparsity:.0%}", f"1/{results[0].flops:.2f}", f"{pretrained:.3f}", f"{dense:.3f}"]
        cells += [f"{gap.estimate:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})", f"{kept:.3f}"]
        print("|", " | ".join(cells), "|")
    return found


if __name__ == "__main__":
    main()
