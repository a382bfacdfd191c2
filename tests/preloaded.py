"""What test processes need, imported once: they are forked from a process that has imported this."""

from __future__ import annotations

import gc
from importlib import import_module

NAMES = (
    "lightning.pytorch.cli",
    "lightning.pytorch.demos.boring_classes",
    "pytest",
    "tensorboard",
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
    "lion_lightning.callbacks",
    "lion_lightning.data",
    "lion_lightning.tools.train.lightning_cli",
    "lion_lightning.models.lora",
    "lion_lightning.modules",
    "lion_lightning.sampling.transformers",
    "lion_lightning.strategies",
    "tests.integration.online",
    "tests.tiny",
)
for name in NAMES:
    import_module(name)
gc.freeze()
