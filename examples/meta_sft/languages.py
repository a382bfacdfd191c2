"""Meta-learned training on languages that are permutations: each word has one successor, another in each language.

python -m examples.meta_sft.languages

Trained for what k gradient steps on a language make of the weights (k = 0: ordinary training), a model is then given
0, 1 and 3 such steps on languages that it has never seen. Printed are nats per word.
"""

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch.optim import AdamW
from torch.utils.data import DataLoader

from lion_lightning import PolicySpec, SFTModule, TokenizerSpec
from lion_lightning.data.packing.collate import collate
from lion_lightning.experimental.meta_sft import MetaSFTModule
from lion_lightning.tools.demo.model import make_config, make_tokenizer
from lion_lightning.tools.evaluate.intervals import mean_interval
from lion_lightning.types import PackedBatch, Sample, SampleSegment

WORDS, LANGUAGES, UNSEEN = 16, 200, 20
DEPTHS = (0, 1, 3)
INNER_LR = 0.3
SIZES = {"num_hidden_layers": 1, "hidden_size": 64, "head_dim": 16, "intermediate_size": 128}


def languages(seed: int) -> list[PackedBatch]:
    """A row for each language, with every word and its successor, which is the target."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(LANGUAGES + UNSEEN):
        pairs = np.stack([np.arange(WORDS), random.permutation(WORDS)], axis=1).astype(np.int32)
        samples = [Sample((SampleSegment(pair, np.array([False, True])),), place) for place, pair in enumerate(pairs)]
        rows.append(collate(samples, 2 * WORDS))
    return rows


def train(rows: Sequence[PackedBatch], depth: int, steps: int, seed: int, folder: str) -> SFTModule:
    """Train on episodes of ``depth`` steps and a test, all in one language."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    config = make_config(tokenizer).to_dict() | SIZES
    torch.manual_seed(seed)
    kind = partial(MetaSFTModule, inner_lr=INNER_LR) if depth else SFTModule
    module = kind(
        PolicySpec(config=config, attention="lion_dense"),
        tokenizer=TokenizerSpec(folder),
        optimizer=partial(AdamW, lr=3e-3),
    )
    drawn = np.random.default_rng(seed).integers(LANGUAGES, size=steps)
    episodes: Any = [rows[language] for language in drawn.repeat(depth + 1).tolist()]
    trainer = Trainer(
        max_epochs=1,
        accumulate_grad_batches=depth + 1,
        gradient_clip_val=1.0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(episodes, batch_size=None))
    return module


def adapted_nats(module: SFTModule, row: PackedBatch, steps: Sequence[int]) -> list[float]:
    """Nats per word of a language after so many gradient steps on it; the module is left as it was."""
    start = {name: p.detach().clone() for name, p in module.policy_model.named_parameters()}
    nats = []
    for _ in range(max(steps) + 1):
        loss = -module.policy_model(row).values.mean()
        nats.append(loss.item())
        parameters = list(module.policy_model.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(INNER_LR * gradient)
    module.policy_model.load_state_dict(start, strict=False)
    return [nats[step] for step in steps]


def main(argv: Sequence[str] | None = None) -> dict[int, list[list[float]]]:
    """Run all seeds, print a table, and return nats by depth, seed and number of steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"--seeds": 3, "--steps": 400}.items():
        parser.add_argument(name, type=int, default=default)
    options = parser.parse_args(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found: dict[int, list[list[float]]] = {depth: [] for depth in DEPTHS}
    for seed in range(options.seeds):
        rows = languages(seed)
        for depth in DEPTHS:
            with TemporaryDirectory() as folder:
                module = train(rows, depth, options.steps, seed, folder)
            nats = [adapted_nats(module, row, DEPTHS) for row in rows[LANGUAGES:]]
            found[depth].append([fmean(column) for column in zip(*nats, strict=True)])
    print("| trained for k steps | " + " | ".join(f"after {steps} steps" for steps in DEPTHS) + " |")
    print("|---|" + "---|" * len(DEPTHS))
    for depth, by_seed in found.items():
        cells = [mean_interval(column) for column in zip(*by_seed, strict=True)]
        print(
            f"| {depth} |",
            " | ".join(f"{cell.estimate:.2f} ({cell.low:.2f} to {cell.high:.2f})" for cell in cells),
            "|",
        )
    return found


if __name__ == "__main__":
    main()
