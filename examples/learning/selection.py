"""The demo task with planted wrong answers: what is learnt late, where wrong rows are, what a share of rows teaches.

python -m examples.learning.selection runs/learning    # about two and a half minutes on two cores
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer

from lion_lightning import PolicySpec, SFTDataModule, SFTModule, Source, TokenizerSpec
from lion_lightning.callbacks import LearningRecord
from lion_lightning.data.learning import LatestLearnt
from lion_lightning.data.learning.percentage import learning_percentages
from lion_lightning.data.learning.record import RecordedLosses
from lion_lightning.models.generation.greedy import generate_answers
from lion_lightning.modules.optimization.schedules import CosineWithWarmup
from lion_lightning.tools.demo import FAMILIES, Row, check, make_config, make_rows, make_tokenizer
from lion_lightning.tools.evaluate.intervals import mean_interval

SELECTIONS: dict[str, dict[str, Any]] = {
    "latest": {},
    "latest of each cluster": {"clusters": 11, "embed": "examples.learning.embeddings.hashed_words"},
    "latest, approximate": {"approximate": True},
    "random": {"keep": "random"},
    "earliest": {"keep": "earliest"},
}
WRONG, SHARE, HELD_OUT = 0.05, 0.25, 330
Metrics = dict[str, float]


class Trained(NamedTuple):
    """A model, and the lines of the file that it was trained on, from 0."""

    module: SFTModule
    lines: set[int]


def main(argv: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Run the demonstration; all metrics by name, one for each seed."""
    parser = argparse.ArgumentParser(prog="python -m examples.learning.selection", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=2000, help="right rows (2000)")
    parser.add_argument("--epochs", type=int, default=6, help="epochs on a selection (6)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(argv)
    runs = [one_seed(options.folder / str(seed), seed, options.rows, options.epochs) for seed in options.seeds]
    found = {name: [run[name] for run in runs] for name in runs[0]}
    print(f"means of seeds {options.seeds} with 95% intervals")
    for name, values in found.items():
        mean, low, high = mean_interval(values)
        print(f"{name:56} {mean:7.3f}  [{low:.3f}, {high:.3f}]")
    return found


def one_seed(folder: Path, seed: int, rows: int, epochs: int) -> Metrics:
    """Record three epochs on all rows, then train on each selection of a quarter of them."""
    held_out = write_task(folder, seed, rows)
    fit = partial(train, folder, seed)
    # A model that has seen a little of the task stands for a pre-trained one.
    start = fit("before", 1).module.policy_model.state_dict()
    everything = fit("train", 3, start=start, record=True)
    losses = RecordedLosses.read(folder / LearningRecord.filename)
    found = what_was_learnt(losses, rows)
    found["accuracy after 3 epochs on all rows"] = accuracy(everything.module, held_out)
    for name, settings in SELECTIONS.items():
        rule = LatestLearnt(str(folder / LearningRecord.filename), SHARE, **settings)
        trained = fit("train", epochs, rule, start=start)
        found[f"{name}: wrong rows in it"] = sum(line >= rows for line in trained.lines)
        found[f"{name}: accuracy"] = accuracy(trained.module, held_out)
    return found


def write_task(folder: Path, seed: int, rows: int) -> list[Row]:
    """Write the rows, the wrong ones last, and what the model has seen before; rows that are held out."""
    folder.mkdir(parents=True, exist_ok=True)
    random, taken = Random(seed), set[str]()
    held_out, right, before = (make_rows(count, random, taken) for count in (HELD_OUT, rows, rows // 2))
    wrong = make_rows(round(WRONG * rows), random, taken)
    for row, kind in zip(wrong, list(FAMILIES.values()) * len(wrong), strict=False):
        question, answer = row["messages"]
        while check(question["content"], answer["content"]):  # the right answer to another question of its family
            answer["content"] = kind.solve(kind.draw(random))
    for name, written in (("train", right + wrong), ("before", before)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written), "utf-8")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    make_config(tokenizer).save_pretrained(folder / "model")
    return held_out


def train(
    folder: Path,
    seed: int,
    name: str,
    epochs: int,
    *rules: LatestLearnt,
    start: Mapping[str, Any] | None = None,
    record: bool = False,
) -> Trained:
    """Fine-tune on the rows of a file that the rules leave, from random weights or others."""
    torch.manual_seed(seed)
    tokenizer = TokenizerSpec(str(folder / "model"))
    data = SFTDataModule(
        [Source(str(folder / f"{name}.jsonl"))],
        tokenizer,
        max_length=256,
        batch_size=2,
        seed=seed,
        cache_dir=folder / "cache",
        document_filters=[*rules],
    )
    words: Any = tokenizer.load()
    config = make_config(words).to_dict() | {"num_hidden_layers": 2}
    made: dict[str, Any] = {"optimizer": partial(torch.optim.AdamW, lr=2e-3), "lr_scheduler": CosineWithWarmup}
    module = SFTModule(PolicySpec(config=config), tokenizer=tokenizer, **made)
    module.configure_model()
    if start is not None:
        module.policy_model.load_state_dict(start)
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    callbacks: list[Callback] = [LearningRecord()] if record else []
    trainer = Trainer(accelerator="cpu", max_epochs=epochs, default_root_dir=folder, callbacks=callbacks, **quiet)
    trainer.fit(module, datamodule=data)
    assert data.train_mixture is not None
    documents = data.train_mixture.documents
    return Trained(module, {line_of(documents.where(number)) for number in range(len(documents))})


def line_of(place: str) -> int:
    """Line of a file, from 0."""
    return int(place.rpartition(":")[2]) - 1


def what_was_learnt(losses: RecordedLosses, rows: int) -> Metrics:
    """Mean learning percentage of each family, and the share of wrong rows among as many as there are, by each sign."""
    lines = np.array([line_of(place) for place in losses.places])
    exact, approximate = learning_percentages(losses), learning_percentages(losses, approximate=True)
    wrong, families = lines >= rows, np.array(list(FAMILIES))
    kinds = families[np.where(wrong, lines - rows, lines) % len(families)]
    found = {f"learning percentage, {kind}": float(exact[(kinds == kind) & ~wrong].mean()) for kind in families}
    found["learning percentage, wrong rows"] = float(exact[wrong].mean())
    means = losses.nll / losses.targets
    signs = {"the lowest percentages": exact, "the lowest approximate percentages": approximate}
    signs |= {"the highest losses after epoch 1": -means[1], "the highest losses after epoch 3": -means[-1]}
    for name, keys in signs.items():
        found[f"wrong rows among {name}"] = float(wrong[np.argsort(keys)[: wrong.sum()]].mean())
    return found


def accuracy(module: SFTModule, held_out: Sequence[Row]) -> float:
    """Share of right greedy answers."""
    questions = [row["messages"][0]["content"] for row in held_out]
    return float(np.mean(list(map(check, questions, generate_answers(module, questions, 24)))))


if __name__ == "__main__":
    main()
