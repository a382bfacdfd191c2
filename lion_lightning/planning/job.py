"""What a module, a trainer or a config says about a step: the job that is reckoned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lion_lightning.models.references import AdapterOffReference, FrozenReference
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.planning.memory import GIB, Job, pair_row

GPU_OVERHEAD = 2 * GIB
"""Left for CUDA's context, libraries, communication buffers and fragments. A guess: no GPU was measured."""


def job_of(module: AlignmentModule, tokens: int, longest: int, **settings: Any) -> Job:
    """What a module does with micro-batches of so many tokens.

    Args:
        module: Built or not; only its settings are read.
        tokens: Tokens of a micro-batch. Documents for a module without a reference; else pairs, whose prompts and answers
            are taken to be equally long.
        longest: Most tokens of a document, or of a prompt and one answer.
        settings: Further fields of the job.
    """
    reference = getattr(module, "reference", None)
    lengths, parents = pair_row(tokens, longest) if reference is not None else documents(tokens, longest)
    frozen = reference if isinstance(reference, FrozenReference) else None
    return Job(
        spec=module.policy_spec,
        lengths=lengths,
        parents=parents,
        optimizer=module.optimizer_factory or module._default_optimizer,
        reference=None if frozen is None else frozen.spec or module.policy_spec,
        reference_passes=int(isinstance(reference, FrozenReference | AdapterOffReference)),
        **settings,
    )


def documents(tokens: int, longest: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lengths and parents of documents that fill a micro-batch.

    Args:
        tokens: Of the micro-batch.
        longest: Most tokens of a document.
    """
    count = -(-tokens // longest)
    lengths = [min(longest, tokens - start * longest) for start in range(count)]
    return tuple(lengths), (-1,) * count


def library_memory() -> int:
    """Bytes of this process, which has Python and the libraries loaded that training loads; 0 where that is not known."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return int(status.read_text("ascii").partition("VmRSS:")[2].split()[0]) * 1024
