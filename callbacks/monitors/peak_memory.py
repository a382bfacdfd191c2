"""Largest memory that a training step took."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lion_lightning.one_lightning import LionCallback
from lion_lightning.planning.memory import GIB

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Linux's account of this process, and the file that resets its peak."""


class PeakMemory(LionCallback):
    """Logs the most memory that was in use since the value before: of the rank that used most, in GiB.

    - ``perf/peak_memory``: on a CUDA GPU what tensors held; on a CPU the resident set of the process, by the kernel.
    - ``perf/peak_memory_reserved``: on a GPU what PyTorch has taken from the device, free blocks included.

    The peak starts anew with each value, so that one large row shows in its own step and in no later one. Validation
    and checkpoints count to the step that follows. On a GPU ``torch.cuda.max_memory_allocated`` starts anew too, which
    others may read. A CPU's peak needs Linux; elsewhere nothing is logged.

    Args:
        every: Optimizer steps from value to value.

    Raises:
        ValueError: If ``every`` is not positive.
    """

    def __init__(self, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"PeakMemory.every: {every} must be at least 1 optimizer step.")
        self.every = every
        self._global_step = 0
        self._known = True

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._global_step = trainer.global_step
        try:
            reset_peaks(trainer.strategy.root_device)
            peaks(trainer.strategy.root_device)
            self._known = True
        except OSError as error:
            self._known = False
            rank_zero_warn(f"PeakMemory: this system does not tell a process's peak ({error}), so nothing is logged.")

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._known or trainer.global_step < self._global_step + self.every:
            return
        device = trainer.strategy.root_device
        for name, size in peaks(device).items():
            largest = trainer.strategy.reduce(torch.tensor(size / GIB, device=device), reduce_op="max")
            pl_module.log(f"perf/{name}", cast(Tensor, largest), batch_size=1)
        reset_peaks(device)
        self._global_step = trainer.global_step


def peaks(device: torch.device) -> dict[str, int]:
    """Most bytes since :func:`reset_peaks`, by what they are.

    Raises:
        OSError: The system does not tell.
    """
    if device.type == "cuda":
        allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        return {"peak_memory": allocated, "peak_memory_reserved": reserved}
    _, found, rest = STATUS.read_bytes().partition(b"VmHWM:")  # the process's name may be in any encoding
    if not found:
        raise OSError(f"{STATUS} has no VmHWM")  # as in some sandboxes
    return {"peak_memory": int(rest.split()[0]) * 1024}


def reset_peaks(device: torch.device) -> None:
    """Start the peaks anew, from what is in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        CLEAR.write_text("5", encoding="ascii")  # VmHWM becomes VmRSS (proc_pid_clear_refs(5))
