"""Weight sync to a server, through a folder that this process and the server share."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from typing_extensions import override

from lion_lightning.endpoint.client import Endpoint
from lion_lightning.printing import printable
from lion_lightning.sampling.base import require_adapters

if TYPE_CHECKING:
    from lion_lightning.models.generation.rollout_policy import RolloutPolicy


class WeightSync(Protocol):
    """Loads the policy's weights into a server."""

    def push(self, policy: RolloutPolicy, endpoint: Endpoint) -> str | None:
        """Load the policy's current weights; called on all ranks together.

        Returns:
            The model name to use in requests from now on; None to keep the current one.
        """


class FolderWeightSync(ABC):
    """Writes all weights to a folder and requests the server to load them.

    Args:
        folder: Folder that the weights are written to.
        seen_as: Path of that folder on the server's machine; None for the same path.
    """

    def __init__(self, folder: str, seen_as: str | None = None) -> None:
        self.folder, self.seen_as = folder, seen_as or str(Path(folder).absolute())

    def push(self, policy: RolloutPolicy, endpoint: Endpoint) -> str | None:
        """Write the weights and load them into the server."""
        policy.write(Path(self.folder) if policy.ranks.is_first else None)
        with policy.ranks.together():
            if policy.ranks.is_first:
                self.load(endpoint)
        return None

    @abstractmethod
    def load(self, endpoint: Endpoint) -> None:
        """Request the server to load the folder and to reset its prefix cache."""


class VLLMWeightSync(FolderWeightSync):
    """Weight sync to a vLLM server that was started with ``VLLM_SERVER_DEV_MODE=1``.

    Args:
        folder: Folder that the weights are written to.
        seen_as: Path of that folder on the server's machine; None for the same path.
    """

    @override
    def load(self, endpoint: Endpoint) -> None:
        """Pause the server, reload its weights, reset its prefix cache and resume it.

        Raises:
            ValueError: The server does not have these routes, or cannot load the folder.
        """
        try:
            endpoint.post("/pause?mode=wait")
            body = {"method": "reload_weights", "kwargs": {"weights_path": self.seen_as}}
            endpoint.post("/collective_rpc", body)
            endpoint.post("/reset_prefix_cache")  # cached prefixes were computed with the previous weights
            endpoint.post("/resume")
        except ValueError as error:
            raise ValueError(
                f"{error}; VLLMWeightSync needs vLLM's development routes: start the server with "
                f"VLLM_SERVER_DEV_MODE=1, on a machine that can read {self.seen_as}"
            ) from error


class SGLangWeightSync(FolderWeightSync):
    """Weight sync to an SGLang server.

    Args:
        folder: Folder that the weights are written to.
        seen_as: Path of that folder on the server's machine; None for the same path.
    """

    @override
    def load(self, endpoint: Endpoint) -> None:
        """Request an update from disk and flush the cache."""
        route = "/update_weights_from_disk"
        said = endpoint.reply(route, endpoint.post(route, {"model_path": self.seen_as}))
        if said["success"].value is False:
            reason = printable(str(said["message"].value))[:300]
            raise ValueError(f"{endpoint.url} cannot load {self.seen_as}: {reason}")
        endpoint.post("/flush_cache")


class VLLMAdapterSync:
    """Sync of LoRA adapters to a vLLM server of the base model.

    The server must be started from the base model (``policy.path``) with ``--enable-lora``, a sufficient
    ``--max-lora-rank`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=True``. Adapters are named after the hash of their
    weights, so adapters that the server already has are not loaded again.

    Args:
        folder: Parent of the adapter folders; the previous round's is removed.
        seen_as: Path of that folder on the server's machine; None for the same path.
    """

    def __init__(self, folder: str, seen_as: str | None = None) -> None:
        self.folder, self.seen_as = folder, seen_as or str(Path(folder).absolute())
        self._served: str | None = None  # name of the adapters of the previous round

    def push(self, policy: RolloutPolicy, endpoint: Endpoint) -> str | None:
        """Write the adapters, load them into the server and unload the previous ones.

        Raises:
            ValueError: The policy trains more than plain LoRA, or the server cannot load the adapters.
        """
        adapters = require_adapters(policy)
        name = f"policy-{adapters.digest()[:16]}"
        adapters.write(Path(self.folder, name) if policy.ranks.is_first else None)
        with policy.ranks.together():
            if policy.ranks.is_first:
                self._replace(endpoint, name, adapters.rank)
        self._served = name
        return name

    def _replace(self, endpoint: Endpoint, name: str, rank: int) -> None:
        known = set(endpoint.models())
        try:
            if name not in known:
                body = {"lora_name": name, "lora_path": f"{self.seen_as}/{name}"}
                endpoint.post_only("/v1/load_lora_adapter", body)
        except ValueError as error:
            raise ValueError(
                f"{error}; start the vLLM server from the policy's base model, with --enable-lora, --max-lora-rank of "
                f"at least {rank} and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, on a machine that can read {self.seen_as}"
            ) from error
        if self._served in known - {name}:
            endpoint.post_only("/v1/unload_lora_adapter", {"lora_name": self._served})
        if self._served not in (None, name):
            shutil.rmtree(Path(self.folder, str(self._served)), ignore_errors=True)
