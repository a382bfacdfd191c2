"""Checks of the constructor arguments and paths in a checkpoint, which may come from anywhere."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

_KEYS = ("hparams", "module_arguments", "hyper_parameters")
"""Where Lightning looks for the arguments that a module was made with."""

_INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"
_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
_KNOWN = ("lion_lightning.", "torch.optim.", "bitsandbytes.optim.")
"""Of what a checkpoint may name classes, without anybody's asking."""


def require_known_classes(checkpoint: Mapping[str, Any], given: Collection[str], kind: type) -> None:
    """Refuse a checkpoint whose arguments would import what the caller has not named, or ask for code of a model.

    Args:
        checkpoint: As it was loaded.
        given: Arguments that the caller gives, in place of the checkpoint's.
        kind: The module's class; what its own module holds is known.
    """
    known = (*_KNOWN, f"{kind.__module__}.")
    entries: list[tuple[str, Any]] = []
    for key in _KEYS:
        entries += dict(checkpoint.get(key) or {}).items()
    for name, value in entries:
        if name in given:
            continue
        if name == "_instantiator":
            if value not in (None, _INSTANTIATOR):
                raise ValueError(f"the checkpoint names {value!r} to be run, which is not done")
            continue
        leaves = list(_leaves(value, name))
        if any(key == "trust_remote_code" and leaf for key, leaf in leaves):
            raise ValueError(
                f"the checkpoint says that code which comes with the model may run ({name}.trust_remote_code), and a "
                f"file is not believed; give {name}=... to load_from_checkpoint"
            )
        for _, path in leaves if name not in ("policy", "tokenizer") else ():
            if isinstance(path, str) and _IMPORT_PATH.fullmatch(path) and not path.startswith(known):
                raise ValueError(
                    f"the checkpoint's {name} is {path!r}, and what a file names is not imported; give {name}=... to "
                    "load_from_checkpoint"
                )


def require_own_paths(checkpoint: Mapping[str, Any], trainer: Trainer) -> None:
    """Refuse a checkpoint that names files elsewhere as checkpoints of the run: Lightning would remove them in time."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    own = tuple(f"{getattr(one, 'dirpath', None)}/" for one in callbacks if isinstance(one, Checkpoint))
    paths: list[Any] = []
    for state in dict(checkpoint.get("callbacks") or {}).values():
        if isinstance(state, Mapping):  # the entries of a ModelCheckpoint that hold paths
            paths += [state.get(name) for name in ("best_model_path", "kth_best_model_path", "last_model_path")]
            paths += state["best_k_models"] if isinstance(state.get("best_k_models"), Mapping) else []
    for path in paths:
        if not isinstance(path, str | Path):
            continue
        elsewhere = "://" in str(path) and not str(path).startswith(own)
        if elsewhere or ".." in Path(path).parts:
            raise ValueError(
                f"the checkpoint takes {str(path)!r} for one of the run's, which Lightning would remove in time; "
                "resume from a checkpoint of your own"
            )


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Plain values within mappings and lists, each with the name that it is under."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, name)
    else:
        yield name, value
