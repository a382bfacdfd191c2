"""A pass over references that is killed for real goes on where its last block was written, bit for bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from lion_lightning.distributed.ranks import Ranks
from lion_lightning.references import answer_file, scoring, store
from lion_lightning.references.cached import CachedReference
from tests.processes import start
from tests.tiny import pairs, policy

BATCHES = [pairs((3, 2, 4), (2, 3, 1), seed=seed) for seed in range(6)]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def precompute(folder: Path, kill: str = "", at: int = -1) -> None:
    """A pass that writes after each batch, notes each forward in a file, and is killed before or in the midst of one.

    Args:
        folder: Of the cache and the notes.
        kill: ``forward``, ``first block`` or ``block``; empty for nothing.
        at: Number of the forward.
    """
    if kill:
        scoring.FLUSH_SECONDS = -1.0
    model, forwards = policy(), 0

    def note(*_: Any) -> None:
        nonlocal forwards
        if kill == "forward" and forwards == at:
            die()
        forwards += 1
        with (folder / "forwards").open("a") as file:
            file.write("x")

    def half_a_block(*arguments: Any) -> Any:
        block = bytes(to_block(*arguments))
        if forwards - 1 == at:
            (path,) = folder.glob("references/*/*.arrow")
            with path.open("ab") as file:
                file.write(block[: len(block) // 2])
            die()
        return block

    to_block = answer_file.to_block
    if kill == "block":
        vars(store)["to_block"] = half_a_block
    if kill == "first block":
        os.replace = lambda *_: die()
    model.register_forward_pre_hook(note)
    reference = CachedReference(cache_dir=folder)
    reference.attach(model, lambda spec: model)
    reference.precompute(BATCHES, model, Ranks(), "training")
    torch.save([reference(batch, model).values for batch in BATCHES], folder / "values.pt")


@pytest.mark.parametrize(
    ("kill", "at", "kept"), [("forward", 0, 0), ("forward", 3, 3), ("block", 4, 4), ("first block", 0, 0)]
)
def test_what_was_written_is_not_computed_again(kill: str, at: int, kept: int, tmp_path: Path) -> None:
    killed = start(precompute, tmp_path, kill, at)
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    before = len((tmp_path / "forwards").read_text()) if (tmp_path / "forwards").exists() else 0
    precompute(tmp_path)
    assert len((tmp_path / "forwards").read_text()) - before == len(BATCHES) - kept
    model = policy()
    for batch, values in zip(BATCHES, torch.load(tmp_path / "values.pt"), strict=True):
        assert torch.equal(values, model(batch).values)
