"""How weights reach a server: over the routes that it has for that, by way of a folder that both sides see."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from lion_lightning.endpoint import Endpoint


class WeightRoute(Protocol):
    """Lets a server load the weights that were written to a folder.

    Attributes:
        folder: Where weights are written, as this process sees it.
    """

    folder: str

    def load(self, endpoint: Endpoint) -> None:
        """Tell the server to load the folder, and to forget what it has cached.

        Args:
            endpoint: The server.
        """


class VLLMRoutes:
    """vLLM's routes, which it has when it is started with ``VLLM_SERVER_DEV_MODE=1``.

    Args:
        folder: Where weights are written.
        seen_as: The same folder as the server sees it; None if it is the same path.
    """

    def __init__(self, folder: str, seen_as: str | None = None) -> None:
        self.folder, self.seen_as = folder, seen_as or str(Path(folder).absolute())

    def load(self, endpoint: Endpoint) -> None:
        """See :class:`WeightRoute`.

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


class SGLangRoutes:
    """SGLang's route for weights on disk.

    Args:
        folder: Where weights are written.
        seen_as: The same folder as the server sees it; None if it is the same path.
    """

    def __init__(self, folder: str, seen_as: str | None = None) -> None:
        self.folder, self.seen_as = folder, seen_as or str(Path(folder).absolute())

    def load(self, endpoint: Endpoint) -> None:
        """See :class:`WeightRoute`.

        Raises:
            ValueError: The server cannot load the folder.
        """
        said = endpoint.post("/update_weights_from_disk", {"model_path": self.seen_as})
        if not said.get("success", True):
            raise ValueError(f"{endpoint.url} cannot load {self.seen_as}: {said.get('message', said)}")
        endpoint.post("/flush_cache")
