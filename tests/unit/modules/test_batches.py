"""The one private attribute of Lightning that batches outside of its loops rest on."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from lightning.pytorch.demos.boring_classes import BoringModel

from lion_lightning.modules.trainer.batches import data_source, epoch_batches, evaluation_batches
from tests import tiny


def test_the_source_of_a_loops_loaders_is_where_lightning_2_6_keeps_it() -> None:
    assert version("lightning").startswith("2.6."), "look at data_source() again: it was written for Lightning 2.6"
    trainer = tiny.trainer(max_steps=1, limit_val_batches=1)
    module = BoringModel()
    seen: list[Any] = []

    def on_train_start() -> None:
        source = data_source(trainer.fit_loop)
        seen.append((source.instance is module, source.name, source.is_defined()))
        seen.append(epoch_batches(trainer) is not trainer.train_dataloader)
        seen.append(len(evaluation_batches(trainer)))

    module.on_train_start = on_train_start  # type: ignore[method-assign]
    trainer.fit(module)
    assert seen == [(True, "train_dataloader", True), True, 1]
