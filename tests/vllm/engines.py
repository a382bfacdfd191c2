"""A tiny policy that vLLM can serve, and a server of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import torch

from lion_lightning import PolicySpec, TokenizerSpec
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.lora import LoRASpec
from lion_lightning.types import Prompt
from tests import tiny

PROMPTS = [Prompt("", tuple(range(3, 3 + length)), where=f"f:{length}") for length in (4, 9, 40)]


def tiny_policy(folder: Path, tied: bool = False, lora: bool = False) -> RolloutPolicy:
    """A random policy with heads of 32, the least that vLLM's attention takes on a CPU."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    config = tiny.config(hidden_size=64, max_position_embeddings=400, tie_word_embeddings=tied, eos_token_id=2) | heads
    spec = PolicySpec(config=config, lora=LoRASpec(r=4) if lora else None)
    policy = spec.build()
    tiny.tokenizer_folder(folder)
    return RolloutPolicy(policy, TokenizerSpec(str(folder)).load())


def move(served: RolloutPolicy, scale: float = 0.05) -> None:
    """Change all weights that train, as a long training would."""
    with torch.no_grad():
        for parameter in served.policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * scale)


@contextmanager
def server(model: Path, port: int) -> Iterator[str]:
    """vLLM's own server of a folder, on loopback."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    settings = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with (model.parent / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *options], env=os.environ | settings, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", model.parent / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            end_group(process)


def end_group(process: subprocess.Popen[bytes], seconds: float = 20.0) -> None:
    """End a process that leads a group, and all that it has started: vLLM's engine and workers outlive their server.

    Args:
        process: Started with ``start_new_session``.
        seconds: That it has to end by itself.
    """
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(240):
        if process.poll() is not None:
            raise RuntimeError(f"the server died: {log.read_text(errors='replace')[-2000:]}")
        try:
            urlopen(url, timeout=1)
            return
        except (URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError("the server did not come up in two minutes")
