"""Checkpoints of a LoRA run hold what was trained; the base comes from its path again, and is known by a digest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import LightningModule
from torch.nn.modules.module import _IncompatibleKeys

from lion_lightning.models.bases import base_digest, base_names, has_base, require_base, trained_names
from lion_lightning.models.cached import has_adapters
from lion_lightning.models.pieces import unwrapped
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.spec import PolicySpec


class AdapterCheckpoints(LightningModule):
    """A module whose checkpoints leave out what it does not train, where that can be had again from ``policy.path``.

    Its ``state_dict()`` does: what each strategy asks for when it saves, and again when it loads.
    """

    policy_spec: PolicySpec
    policy: PolicyModel | None
    _base: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(_leave_base_out)  # type: ignore[no-untyped-call]

    @property
    def policy_model(self) -> PolicyModel:
        """The policy.

        Raises:
            RuntimeError: If it has not been built yet.
        """
        if self.policy is None:
            raise RuntimeError(
                "the policy is built in configure_model(); call that first when you run without a Trainer."
            )
        return self.policy

    @property
    def strict_loading(self) -> bool:
        """Whether checkpoints hold all weights; :meth:`load_state_dict` finds what is missing beside the base."""
        return not has_base(self.policy_spec) and super().strict_loading

    @strict_loading.setter
    def strict_loading(self, strict_loading: bool) -> None:
        self._strict_loading = strict_loading

    def on_train_start(self) -> None:
        """Know the base before anybody can change it (Lightning calls this)."""
        if has_base(self.policy_spec) and self._base is None:
            self._base = base_digest(self.policy_spec)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which base the adapters are on (Lightning calls this)."""
        if not has_base(self.policy_spec):
            return
        self._base = self._base or base_digest(self.policy_spec)
        checkpoint["lion"]["base"] = self._base
        checkpoint["lion"]["config"].pop("quantization_config", None)  # not plain data; the policy's entry says it

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another base than the checkpoint's adapters were trained on (Lightning calls this)."""
        wanted = checkpoint.get("lion", {}).get("base")
        if wanted is not None and wanted != self._base:
            require_base(self.policy_spec, wanted)
            self._base = wanted

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights; those of the base may be missing.

        Raises:
            ValueError: If others are, or if there are weights that do not belong here.
        """
        if not has_base(self.policy_spec):
            return super().load_state_dict(state_dict, strict, assign)
        missing, unexpected = super().load_state_dict(state_dict, False, assign)
        missing = sorted(set(missing) - self.base_names(missing))
        if missing or unexpected:
            raise ValueError(
                f"the checkpoint's weights do not fit the module: missing {missing[:3]}, unexpected {unexpected[:3]}; "
                "resume with the policy that it was written with"
            )
        return _IncompatibleKeys([], [])

    def base_names(self, names: Iterable[str], prefix: str = "") -> set[str]:
        """Those of a state dict's names that belong to the base, also of copies of the policy that a reference holds.

        Args:
            names: Of the state dict.
            prefix: Of this module in them.
        """
        trained = trained_names(self.policy_model)  # its copies have the same names, and learn nothing
        adapted = (name for name, part in self.named_modules() if isinstance(part, PolicyModel) and has_adapters(part))
        return set().union(*(base_names(names, f"{prefix}{unwrapped(f'{name}.')}", trained) for name in adapted))


def _leave_base_out(module: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    if has_base(module.policy_spec) and module.policy is not None:
        for name in module.base_names(state, prefix):
            del state[name]
