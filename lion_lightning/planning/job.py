"""The job that is estimated: model, micro-batch, precision and optimizer of a training step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn

from lion_lightning.models.spec import PolicySpec
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.planning.dry_run import DryRun
from lion_lightning.planning.meta_model import meta_model
from lion_lightning.planning.optimizer_memory import Factory
from lion_lightning.references.base import AdapterOffReference, FrozenReference

Rows = tuple[tuple[int, ...], tuple[int, ...]]
"""Tokens of each segment, and its parent."""

HALVES: dict[str, Literal["bfloat16", "float16"]] = {"bf16-true": "bfloat16", "16-true": "float16"}
"""Dtype of a model's weights under Lightning's true half precisions."""


@dataclass(frozen=True)
class Job:
    """Settings that decide memory and time of a step.

    Attributes:
        spec: The policy.
        lengths: Tokens of each segment of a micro-batch.
        parents: Parent of each segment.
        mismatched: True if the last answer of each prompt is one of another prompt, as KTO has them: they run with
            their prompts in a separate forward, without a gradient.
        precision: The trainer's.
        optimizer: From parameter groups to an optimizer.
        accumulate: Micro-batches of a step, on each device.
        references: Other models in memory, which do not learn.
        reference_passes: Forward passes of references in each step: 1 for each such model, or for adapters off.
        fused: True if each weight is stepped within the backward pass, by ``FusedBackward``.
        on_gpu: True if devices are GPUs.
        overhead: Bytes of frameworks (CUDA context, libraries).
    """

    spec: PolicySpec
    lengths: tuple[int, ...]
    parents: tuple[int, ...]
    precision: str
    optimizer: Factory
    accumulate: int = 1
    references: tuple[PolicySpec, ...] = ()
    reference_passes: int = 0
    mismatched: bool = False
    fused: bool = False
    on_gpu: bool = True
    overhead: int = 0
    _dry_runs: dict[Any, dict[str, Counter[str]]] = field(default_factory=dict, init=False, repr=False)

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return sum(self.lengths)

    @property
    def trained_rows(self) -> Rows:
        """Lengths and parents of the segments that run with a gradient."""
        if not self.mismatched:
            return self.lengths, self.parents
        return self._part([not ends for ends in self._ends])

    @property
    def untrained_rows(self) -> Rows:
        """Lengths and parents of the segments that the policy runs on once more, without a gradient; mostly none."""
        if not self.mismatched:
            return (), ()
        return self._part([parent < 0 or ends for parent, ends in zip(self.parents, self._ends, strict=True)])

    @property
    def _ends(self) -> list[bool]:
        """For each segment, whether it is the last answer of its prompt."""
        return [parent >= 0 and parent != after for parent, after in pairwise([*self.parents, -1])]

    def _part(self, kept: list[bool]) -> Rows:
        """Some segments of the row, with parents counted among themselves."""
        places = {-1: -1}  # of each segment that is kept
        lengths: list[int] = []
        parents: list[int] = []
        for number, keep in enumerate(kept):
            if keep:
                places[number] = len(lengths)
                lengths.append(self.lengths[number])
                parents.append(places[self.parents[number]])  # a parent comes before its children
        return tuple(lengths), tuple(parents)

    @property
    def mixed(self) -> bool:
        """True if products run in bf16 and weights are fp32."""
        return self.precision.endswith("-mixed") and self.spec.dtype == "float32"

    @cached_property
    def model(self) -> nn.Module:
        """The policy on the meta device."""
        return meta_model(self.spec)

    @property
    def trained(self) -> list[Tensor]:
        """Parameters that learn."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def held(self, stays: str, gathered: str | None = None) -> dict[str, Counter[str]]:
        """Memory of a micro-batch beyond weights, optimizer state and earlier gradients, by phase and kind.

        Arguments as of :class:`~lion_lightning.planning.dry_run.DryRun`. A plan asks for the same one several times.
        """
        if (stays, gathered) not in self._dry_runs:
            mixed = self.precision.endswith("-mixed")
            own = (self.spec, *self.trained_rows, mixed, self.optimizer, self.on_gpu and not self.fused)
            self._dry_runs[stays, gathered] = DryRun(*own, stays=stays, gathered=gathered).held()
        return self._dry_runs[stays, gathered]


def job_of(
    module: AlignmentModule, tokens: int, longest: int, precision: str, answers: int | None = None, **settings: Any
) -> Job:
    """The job of a module with micro-batches of so many tokens.

    Args:
        module: Built or not; only its settings are read.
        tokens: Tokens of a micro-batch.
        longest: Most tokens of a document, or of a prompt and one answer.
        precision: The trainer's.
        answers: Answers to a prompt, each as long as the prompt, mismatched ones apart; 0 for documents. None for the
            module's ``typical_answers``.
        settings: Further fields of the job.
    """
    answers = module.typical_answers if answers is None else answers
    mismatched = bool(getattr(getattr(module, "loss", None), "needs_mismatched", False))
    answers += mismatched
    lengths, parents = trees(tokens, longest, answers) if answers else documents(tokens, longest)
    frozen = [part for part in module.children() if isinstance(part, FrozenReference)]
    adapters_off = any(isinstance(part, AdapterOffReference) for part in module.children())
    return Job(
        spec=_in_precision(module.policy_spec, precision),
        lengths=lengths,
        parents=parents,
        mismatched=mismatched,
        precision=precision,
        optimizer=module.optimizer_factory or module._default_optimizer,
        references=tuple(_in_precision(part.spec or module.policy_spec, precision) for part in frozen),
        reference_passes=len(frozen) + adapters_off,
        **settings,
    )


def documents(tokens: int, longest: int) -> Rows:
    """Lengths and parents of documents of at most ``longest`` tokens that fill a micro-batch."""
    lengths = [longest] * (tokens // longest)
    if tokens % longest:
        lengths.append(tokens % longest)
    return tuple(lengths), (-1,) * len(lengths)


def trees(tokens: int, longest: int, answers: int) -> Rows:
    """Lengths and parents of prompts with so many answers each that fill a micro-batch, all of them equally long.

    A prompt and one answer have at most ``longest`` tokens.
    """
    size = 1 + answers  # segments of a tree
    part = max(1, min(longest // 2, tokens // size))
    count = max(1, round(tokens / (size * part)))
    lengths = [tokens // (size * count)] * (size * count)
    parents: list[int] = []
    for prompt in range(0, size * count, size):
        parents += [-1, *[prompt] * answers]
    return tuple(lengths), tuple(parents)


def _in_precision(spec: PolicySpec, precision: str) -> PolicySpec:
    return replace(spec, dtype=HALVES.get(precision, spec.dtype))
