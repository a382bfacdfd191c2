"""Checkpoints of a module: all that exact resume and export need; of a LoRA run without the base model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys
from typing_extensions import override

from lion_lightning.models.checkpoints.files import require_checkpoint, require_lightning
from lion_lightning.models.checkpoints.lion_entry import require_plain_entry
from lion_lightning.models.packing.model import PackedModel
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.models.weights.base_model import (
    base_names,
    has_stored_base,
    hash_base_model,
    require_base_model,
    trained_names,
)
from lion_lightning.models.weights.checks import all_tensors, require_finite
from lion_lightning.models.weights.dtensor import unwrapped
from lion_lightning.modules.checkpointing.averaging import warn_of_no_average
from lion_lightning.modules.checkpointing.resume import Resumption, require_same_shapes, resumption, rewind, unlogged
from lion_lightning.modules.checkpointing.resumed_settings import RunSettings
from lion_lightning.modules.checkpointing.settings import Settings, plain, tokenizer_settings
from lion_lightning.modules.checkpointing.stored_settings import require_known_classes, require_own_paths

MADE = ("policy", "tokenizer", "optimizer", "lr_scheduler")
"""Arguments that others are made from, which are asked instead."""

BASE_PLACES = ("model.policy.path", "model.policy.revision")


class PolicyCheckpoints(LightningModule):
    """A module with a policy, whose checkpoints resume exactly and are exported.

    Of a LoRA run they leave out what it does not train, where that can be had again from ``policy.path``, and known by
    a digest. The module's ``state_dict()`` does: what each strategy asks for when it saves, and again when it loads.
    """

    policy_spec: PolicySpec
    tokenizer_spec: TokenizerSpec

    def __init__(self) -> None:
        super().__init__()
        self.policy: PolicyModel | None = None
        self._new_ids: list[int] = []
        self._base: str | None = None
        self._resumed: Resumption | None = None
        self._suspended: dict[ModelCheckpoint, Any] = {}
        self._run_settings = RunSettings()
        self.register_state_dict_post_hook(_leave_base_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_miss_no_base)  # type: ignore[no-untyped-call]

    @property
    def policy_model(self) -> PolicyModel:
        """The policy."""
        if self.policy is None:
            raise RuntimeError(
                "the policy is built in configure_model(); call that first when you run without a Trainer."
            )
        return self.policy

    @property  # type: ignore[explicit-override]  # mypy does not see @override on a property with a setter
    @override
    def strict_loading(self) -> bool:
        """False if checkpoints leave out a base model; :meth:`load_state_dict` checks the rest."""
        return not has_stored_base(self.policy_spec) and super().strict_loading

    @strict_loading.setter
    def strict_loading(self, strict_loading: bool) -> None:
        self._strict_loading = strict_loading

    @override
    def setup(self, stage: str) -> None:
        """Take in the run's settings before anything is restored."""
        if stage == "fit":
            self._run_settings.begin(self.trainer)

    @override
    def on_fit_start(self) -> None:
        """Take in the optimizer's settings before anything of it is restored."""
        self._run_settings.add_stepping(self.trainer, getattr(self, "lr_scheduler_factory", None))

    @override
    def on_train_start(self) -> None:
        """Let the run's own settings be used, and know the base before anybody changes it."""
        self._run_settings.apply(self.trainer)
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            # Lightning 2.6 would still save last.ckpt when it ends, which a real run would be resumed from.
            for callback in self.trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint):
                    self._suspended[callback], callback.save_last = callback.save_last, None
        if self._resumed is not None:
            require_finite(str(self.trainer.ckpt_path), all_tensors(self.policy_model))
        if has_stored_base(self.policy_spec) and self._base is None:
            self._base = hash_base_model(self.policy_spec)

    @override
    def on_train_end(self) -> None:
        """Say where averaging came to nothing."""
        for callback, save_last in self._suspended.items():  # a later run may have the same callbacks
            callback.save_last = save_last
        self._suspended = {}
        warn_of_no_average(self.trainer)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what ``lion export`` needs; keep the file loadable with ``weights_only``."""
        checkpoint["lion"] = {**self.provenance(), "written": time.time()}
        if has_stored_base(self.policy_spec):
            self._base = self._base or hash_base_model(self.policy_spec)
            checkpoint["lion"]["base"] = self._base
        checkpoint["lion"]["settings"] = self._run_settings.values | self.model_settings
        checkpoint["hyper_parameters"] = _plain(checkpoint.get("hyper_parameters", {}))
        if "loops" in checkpoint:
            checkpoint["lion"]["rewound"] = rewind(checkpoint, self.trainer)
            checkpoint["lion"]["unlogged"] = None if checkpoint["lion"]["rewound"] else unlogged(self.trainer)
        if "optimizer_states" in checkpoint:  # left out by ModelCheckpoint(save_weights_only=True)
            self._name_optimizer_states(checkpoint)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take in what an exact resume needs beyond Lightning.

        Raises:
            ValueError: The checkpoint is of another module, or of settings that its state is bound to, or names files
                of others as its own.
        """
        if self._trainer is not None:
            require_plain_entry(checkpoint, self.trainer.ckpt_path)
            require_own_paths(checkpoint, self.trainer)
            self._refuse_other(checkpoint)
        wanted = checkpoint.get("lion", {}).get("base")
        if wanted is not None and wanted != self._base:
            require_base_model(self.policy_spec, wanted)
            self._base = wanted
        if "loops" in checkpoint and self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._resumed = resumption(checkpoint, self.trainer)

    @classmethod
    @override
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **options: Any) -> Any:
        """A module with the weights of a checkpoint, which is checked before; see Lightning's own.

        Classes of this package, of the module's own and of ``torch.optim`` are made as the checkpoint says. Others, and
        models with remote code, must be passed as arguments: a file may not choose code to run.
        """
        if isinstance(checkpoint_path, str | Path):
            path = require_checkpoint(checkpoint_path)
            if path.is_file():
                stored = torch.load(path, "cpu", weights_only=True, mmap=True)
                require_known_classes(require_lightning(path, stored), options, cls)
        return super().load_from_checkpoint(checkpoint_path, *args, **{"weights_only": True, **options})

    def _refuse_other(self, checkpoint: dict[str, Any]) -> None:
        """Refuse what cannot be gone on from, before any weights are loaded."""
        lion, own, fits = checkpoint.get("lion") or {}, type(self).__name__, self.trainer.state.fn == TrainerFn.FITTING
        if lion.get("module", own) != own:
            raise ValueError(
                f"{self.trainer.ckpt_path} is a checkpoint of {lion['module']}, and the config's module is {own}: a "
                "stage starts from the model of the one before; write that with `lion export CHECKPOINT FOLDER`, set "
                "model.policy.path: FOLDER, and leave --ckpt_path out"
            )
        if fits and "lr_schedulers" not in checkpoint:  # strategies that shard have taken the optimizer's state out
            raise ValueError(
                f"{self.trainer.ckpt_path} holds the weights alone (ModelCheckpoint.save_weights_only), so training "
                "cannot go on from it; begin anew with its model: `lion export CHECKPOINT FOLDER`, then "
                "model.policy.path: FOLDER"
            )
        if fits and "settings" not in lion:
            raise ValueError(
                f"{self.trainer.ckpt_path} does not say with which settings it was trained, as checkpoints of this "
                "package do, so training cannot go on from it; to start from a model's weights, name its Hugging Face "
                "folder in model.policy.path"
            )
        if fits:
            self._run_settings.compare(lion["settings"], self.model_settings)
        early = not self.trainer.strategy.restore_checkpoint_after_setup  # else they are sharded, or loaded already
        if early and self.policy is not None:
            then, now = lion.get("config", {}), self.policy_model.causal_lm.config.to_dict()
            require_same_shapes(checkpoint.get("state_dict", {}), self.state_dict(), then, now)

    @property
    def model_settings(self) -> Settings:
        """Settings of model, objective and tokenizer, as plain data by dotted name."""
        parts: dict[str, Any] = {"class_path": type(self).__name__, "policy": self.policy_spec}
        for name, value in self.hparams.items():
            if name not in MADE and not name.startswith("_"):
                parts[name] = getattr(self, name, value)
        found = plain({"model": parts})
        if has_stored_base(self.policy_spec):  # known by its digest, wherever it lies
            for name in BASE_PLACES:
                found.pop(name, None)
        return found | self._tokenizer_settings

    @cached_property
    def _tokenizer_settings(self) -> Settings:
        return tokenizer_settings(self.tokenizer_spec)

    def _name_optimizer_states(self, checkpoint: dict[str, Any]) -> None:
        """Parameters by name: a number is a place in the groups to optimizers, and in the module to who shards it."""
        if isinstance(self.trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            return
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        for optimizer, state in zip(self.trainer.optimizers, checkpoint["optimizer_states"], strict=True):
            own: list[str] = []
            for group in optimizer.param_groups:
                own += [names[id(parameter)] for parameter in group["params"]]
            state["state"] = {own[number]: entry for number, entry in state["state"].items()}
            for group in state["param_groups"]:
                group["params"] = [own[number] for number in group["params"]]

    def provenance(self) -> dict[str, Any]:
        """Description of policy and training data, as plain data: enough to rebuild it without the original model."""
        data: Any = getattr(self.trainer, "datamodule", None) if self._trainer is not None else None
        config = self.policy_model.causal_lm.config.to_dict()
        config.pop("quantization_config", None)  # not plain data; the policy's entry says it
        return {
            "module": type(self).__name__,
            "policy": asdict(self.policy_spec),
            "tokenizer": asdict(self.tokenizer_spec),
            "config": config,
            "new_ids": self._new_ids,
            "generation": json.loads(self.policy_model.causal_lm.generation_config.to_json_string()),
            "data": data.description() if hasattr(data, "description") else {},
            "steps": self.global_step if self._trainer is not None else 0,
        }

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights; those of the base may be missing."""
        if not has_stored_base(self.policy_spec):
            return super().load_state_dict(state_dict, strict, assign)
        missing, unexpected = super().load_state_dict(state_dict, False, assign)
        if missing or unexpected:
            raise ValueError(
                f"the checkpoint's weights do not fit the module: missing {missing[:3]}, unexpected {unexpected[:3]}; "
                "resume with the policy that it was written with"
            )
        return _IncompatibleKeys([], [])

    def base_names(self, names: Iterable[str], prefix: str = "") -> set[str]:
        """Names in a state dict that belong to the base model, also of copies of the policy that a reference holds."""
        trained = trained_names(self.policy_model)  # its copies have the same names, and learn nothing
        found: set[str] = set()
        for name, part in self.named_modules():
            if isinstance(part, PackedModel) and part.has_adapters:
                found |= base_names(names, prefix + unwrapped(f"{name}."), trained)
        return found


def _leave_base_out(module: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    if has_stored_base(module.policy_spec) and module.policy is not None:
        for name in module.base_names(state, prefix):
            del state[name]


def _miss_no_base(module: Any, found: Any) -> None:
    """Accept a state without the base model, also for copies of the module (averaged weights)."""
    if has_stored_base(module.policy_spec) and module.policy is not None:
        own = {name: name.removeprefix("module.") for name in found.missing_keys}  # in torch's AveragedModel
        base = module.base_names(own.values())
        found.missing_keys[:] = sorted(name for name, plain in own.items() if plain not in base)


def _plain(hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Specs as mappings; without injected objects and factories, which ``load_from_checkpoint`` takes as arguments."""
    plain: dict[str, Any] = {}
    for name, value in hyper_parameters.items():
        if is_dataclass(value) and not isinstance(value, type):
            plain[name] = asdict(value)
        elif not isinstance(value, nn.Module) and not callable(value):
            plain[name] = value
    return plain
