"""How weights reach a server: over the routes that it has for that, by way of a folder that both sides see."""

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


class WeightRoute(Protocol):
    """Lets a server serve the policy."""

    def push(self, policy: RolloutPolicy, endpoint: Endpoint) -> str | None:
        """Let the server serve the policy as it is now; all ranks call this together.

        Args:
            policy: Whose weights it gets.
            endpoint: The server.

        Returns:
            The name that the server has it under from now on; None for that of its model.
        """


class FolderRoute(ABC):
    """Writes all weights to a folder, once, and tells the server to load them.

    Args:
        folder: Where weights are written.
        seen_as: The same folder as the server sees it; None if it is the same path.
    """

    def __init__(self, folder: str, seen_as: str | None = None) -> None:
        self.folder, self.seen_as = folder, seen_as or str(Path(folder).absolute())

    def push(self, policy: RolloutPolicy, endpoint: Endpoint) -> str | None:
        """See :class:`WeightRoute`."""
        policy.write(Path(self.folder) if policy.ranks.is_first else None)
        with policy.ranks.together():
            if policy.ranks.is_first:
                self.load(endpoint)
        return None

    @abstractmethod
    def load(self, endpoint: Endpoint) -> None:
        """Tell the server to load the folder, and to forget what it has cached.

        Args:
            endpoint: The server.
        """


class VLLMRoutes(FolderRoute):
    """vLLM's routes, which it has when it is started with ``VLLM_SERVER_DEV_MODE=1``.

    Args:
        folder: Where weights are written.
        seen_as: The same folder as the server sees it; None if it is the same path.
    """

    @override
    def load(self, endpoint: Endpoint) -> None:
        """Reload the weights while the server is paused.

        Raises:
            ValueError: The server has no such routes, or cannot load the folder.
        """
        try:
            endpoint.post("/pause?mode=wait")
            body = {"method": "reload_weights", "kwargs": {"weights_path": self.seen_as}}
            endpoint.post("/collective_rpc", body)
            endpoint.post("/reset_prefix_cache")  # else cached prompts still answer with the weights before
            endpoint.post("/resume")
        except ValueError as error:
            raise ValueError(
                f"{error}; weights are pushed over vLLM's development routes: start the server with "
                f"VLLM_SERVER_DEV_MODE=1, on a machine that sees {self.seen_as}"
            ) from error


class SGLangRoutes(FolderRoute):
    """SGLang's route for weights on disk.

    Args:
        folder: Where weights are written.
        seen_as: The same folder as the server sees it; None if it is the same path.
    """

    @override
    def load(self, endpoint: Endpoint) -> None:
        """Reload the weights and flush the prefix cache.

        Raises:
            ValueError: The server cannot load the folder.
        """
        route = "/update_weights_from_disk"
        said = endpoint.said(route, endpoint.post(route, {"model_path": self.seen_as}))
        if said["success"].value is False:
            reason = printable(str(said["message"].value))[:300]
            raise ValueError(f"{endpoint.url} cannot load {self.seen_as}: {reason}")
        endpoint.post("/flush_cache")


class AdapterRoutes:
    """For LoRA: a vLLM server of the base model, which gets the adapters alone.

    It must be started from the model that the adapters are on (``policy.path``) with ``--enable-lora``, a
    ``--max-lora-rank`` that is large enough, and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=True``. Adapters are named after
    their content, so one that the server has already is what it is asked for.

    Args:
        folder: Where adapters are written, each into a folder of its own; those before are removed.
        seen_as: The same folder as the server sees it; None if it is the same path.
    """

    def __init__(self, folder: str, seen_as: str | None = None) -> None:
        self.folder, self.seen_as = folder, seen_as or str(Path(folder).absolute())
        self._served: str | None = None

    def push(self, policy: RolloutPolicy, endpoint: Endpoint) -> str | None:
        """See :class:`WeightRoute`.

        Raises:
            ValueError: The policy is not made of adapters alone, or the server cannot load them.
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
                endpoint.tell("/v1/load_lora_adapter", body)
        except ValueError as error:
            raise ValueError(
                f"{error}; start vLLM's server from the model that the adapters are on, with --enable-lora, "
                f"--max-lora-rank {rank} or more and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, on a machine that sees "
                f"{self.seen_as}"
            ) from error
        if self._served in known - {name}:
            endpoint.tell("/v1/unload_lora_adapter", {"lora_name": self._served})
        if self._served not in (None, name):
            shutil.rmtree(Path(self.folder, str(self._served)), ignore_errors=True)
