"""A decoder on packed rows: the base of policies and reward models."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lion_lightning.errors import first_line
from lion_lightning.models.packing.forms import RowForm, additive_mask, has_window, possible_forms, selects_keys
from lion_lightning.models.packing.hidden_states import HiddenStates, backbone_output
from lion_lightning.models.packing.mixers import SequencewiseMixers, find_mixers, modules_in_front
from lion_lightning.models.packing.probe import PROMPT, causal_module, close, differing_layer, probe_row
from lion_lightning.models.packing.rotary import LengthwiseRotary
from lion_lightning.models.packing.routers import RouterRecorder
from lion_lightning.models.weights.checks import all_tensors, require_finite
from lion_lightning.ops.attention import PATHS
from lion_lightning.ops.layout import RowLayout
from lion_lightning.types import PackedBatch

log = logging.getLogger(__name__)

FORWARD_ERRORS = (TypeError, NotImplementedError, RuntimeError, IndexError, ValueError, AttributeError)
"""Errors that a model raises on a form of rows that it does not know."""


class PackedModel(nn.Module, ABC):
    """A Hugging Face decoder with a head, run on packed rows. A subclass says what its head makes of hidden states.

    Rows go through the model packed, with the attention of :mod:`lion_lightning.ops.attention`; token mixers that are
    no attention run sequence by sequence (:mod:`lion_lightning.models.packing.mixers`). A probe at construction
    compares both with each sequence alone; models on which they differ run padded, with a warning.

    Args:
        model: A causal LM or a sequence classifier, or a PEFT model around one.
        packed: False to run every sequence alone in a padded batch; True to try attention code of the model's own on
            packed rows; None to pack rows if the model's attention is one of :mod:`lion_lightning.ops.attention`.
        probe: False for a model without its weights; call :meth:`probe` once they are loaded.

    Raises:
        ValueError: The model's output is not what :meth:`head_output` makes of any hidden states.
    """

    sources: ClassVar[tuple[HiddenStates, ...]] = (backbone_output,)
    """Where the input of the head may be found, in the order in which they are tried."""

    fault: ClassVar[str]
    """Error message for a model whose output is not that of its head."""

    def __init__(self, model: nn.Module, packed: bool | None = None, probe: bool = True) -> None:
        super().__init__()
        self.model = model
        self.packed = self._has_row_attention if packed is None else packed
        self.form = RowForm()
        self._hidden: HiddenStates = backbone_output
        self.mixers = SequencewiseMixers()
        self.rotary = LengthwiseRotary(self.causal_lm)
        self.recorder: RouterRecorder | None = None
        self.causal_only: str | None = None  # why it is causal throughout; None if segments may be bidirectional
        if probe:
            self.probe()

    @abstractmethod
    def head_output(self, states: Tensor) -> Tensor | None:
        """Output of the head for a sequence, to be compared with :meth:`_logits`; None if the states do not fit it.

        Args:
            states: ``(tokens, hidden)`` hidden states of the sequence.
        """

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model inside of the adapters: a causal LM, or a reward model's classifier."""
        model: Any = self.model
        base: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
        return base

    @property
    def _has_row_attention(self) -> bool:
        return getattr(self.causal_lm.config, "_attn_implementation", None) in PATHS

    @property
    def _name(self) -> str:
        """Name in messages: the model's path, or its class."""
        return str(getattr(self.causal_lm.config, "_name_or_path", "") or type(self.causal_lm).__name__)

    def hidden_states(self, batch: PackedBatch, **inputs: Any) -> Tensor:
        """Last hidden state, ``(tokens, hidden)``, of every token of a packed batch.

        Args:
            batch: Packed rows.
            inputs: More keywords of the model's forward.
        """
        layout = RowLayout(batch.segments, batch.input_ids.device)
        if layout.bidirectional and self.causal_only is not None:
            raise ValueError(
                f"{self._name} cannot let tokens of a prefix see those behind them: {self.causal_only}; choose another "
                "model, or data without bidirectional segments"
            )
        run = self._packed_hidden if self.packed else self._padded_hidden
        with self.rotary.on(layout, self.packed):
            if self.recorder is None:
                return run(batch.input_ids, batch.position_ids, layout, **inputs)
            with self.recorder.row(layout.tokens, None if self.packed else layout.padded.first):
                return run(batch.input_ids, batch.position_ids, layout, **inputs)

    def record_routers(self) -> RouterRecorder:
        """Record router logits in forward passes under gradient from now on; a ``ValueError`` without routers."""
        self.recorder = self.recorder or RouterRecorder(self.causal_lm)
        return self.recorder

    @property
    def has_adapters(self) -> bool:
        """True with LoRA adapters."""
        return self.model is not self.causal_lm

    @contextmanager
    def adapters_off(self) -> Iterator[None]:
        """Switch the adapters off for a while; a ``ValueError`` without adapters."""
        model: Any = self.model
        if not hasattr(model, "disable_adapter"):
            raise ValueError("the policy has no adapters to switch off; set policy.lora, or choose another reference")
        with model.disable_adapter():
            yield

    def _packed_hidden(self, input_ids: Tensor, position_ids: Tensor, layout: RowLayout, **inputs: Any) -> Tensor:
        inputs = self.form.inputs(input_ids, position_ids, layout, self.causal_lm.dtype) | inputs
        with self.mixers.on(layout):
            return self._hidden(self.causal_lm, **inputs)[0]

    def _padded_hidden(self, input_ids: Tensor, position_ids: Tensor, layout: RowLayout, **inputs: Any) -> Tensor:
        (batch,) = layout.padded.batches
        mask = batch.mask.long()
        if layout.bidirectional:
            mask = additive_mask(layout.padded_visible, self.causal_lm.dtype)[:, None]
        inputs = {"input_ids": input_ids[batch.source], "attention_mask": mask, "use_cache": False} | inputs
        return layout.padded.restore([self._hidden(self.causal_lm, **inputs)])

    @torch.no_grad()
    def probe(self) -> None:
        """Run a packed row and its sequences padded, so that a model on which they differ never trains packed.

        Called at construction, or once the weights are loaded; raises as the class says.
        """
        require_finite(self._name, all_tensors(self.causal_lm))
        training = self.training
        self.eval()
        try:
            self._probe_head()
            if self.packed:
                self._probe_packing()
            self._probe_causality()
            self.causal_only = self._causal_only_cause()
        finally:
            self.train(training)

    def _probe_packing(self) -> None:
        """Choose the first form of rows that is exact; a model without one runs padded."""
        asked = self.causal_lm.config._attn_implementation
        causes = []
        for form in possible_forms(self.causal_lm, self._has_row_attention):
            self.form = form
            self._set_attention("eager" if self.form.dense_mask else asked)
            cause = self._packing_fault()
            if cause is None:
                return
            causes.append(cause)
            self.mixers.remove()
        self.packed = False
        log.warning(
            "%s cannot run packed rows (%s); every sequence runs alone in a padded batch, which is slower.",
            type(self.causal_lm).__name__,
            next(iter(causes), "its attention code has a window, or compresses or selects keys"),
        )
        config = self.causal_lm.config.get_text_config()
        softcapped = getattr(config, "attn_logit_softcapping", None) is not None  # SDPA has no soft cap
        self._set_attention("sdpa" if self.causal_lm._supports_sdpa and not softcapped else "eager")

    def _set_attention(self, name: str) -> None:
        self.causal_lm.set_attn_implementation(name)
        # Models with custom attention code ignore that, and read in their config which mask they are to make.
        self.causal_lm.config._attn_implementation = name

    def _packing_fault(self) -> str | None:
        """Difference between packed and padded in the present form; None if they agree."""
        ids, layout = probe_row(self.causal_lm)
        asked = self.causal_lm.config._attn_implementation
        run = partial(self._packed_hidden, ids, layout.positions, layout)

        def padded() -> Tensor:
            self._set_attention("eager")  # the model's own definition: SDPA ignores soft caps and sinks
            hidden = self._padded_hidden(ids, layout.positions, layout)
            self._set_attention(asked)
            return hidden

        try:
            self.mixers = SequencewiseMixers()
            if self.form.own_positions:
                for place, module in modules_in_front(self.causal_lm, run).items():
                    self.mixers.add(place, module, layer=None)
            if not self.form.dense_mask:
                self._set_attention("lion" if asked == "lion_dense" else asked)  # NaN passes a mask
                find_mixers(self.causal_lm, run, layout, self.mixers)
                self._set_attention(asked)
            name: str | None = differing_layer(self.causal_lm, run, padded, layout)
        except FORWARD_ERRORS as error:
            return first_line(error)
        if name is None and self.causal_lm.is_gradient_checkpointing and not self.mixers.recomputable:
            return "its layers are not told which row they recompute, set policy.recompute: none"
        return f"{name} gives other values than alone" if name else None

    def _probe_causality(self) -> None:
        row = probe_row(self.causal_lm)[0][:5][None]
        long, short = (
            self._hidden(self.causal_lm, input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            for ids in (row, row[:, :3])
        )
        if not close(long[:, :3], short, self.causal_lm.config):
            raise ValueError(
                f"{self._name}: what it gives for a token depends on later tokens: it is not a causal language model, "
                f"or its attention has no causal mask with {self.causal_lm.config._attn_implementation!r}."
            )

    def _causal_only_cause(self) -> str | None:
        """Why tokens never see later ones in this model; None if they do in a bidirectional segment."""
        if self.packed and not self.form.dense_mask and not self.mixers.names:
            return None  # all of its layers read the layout
        if not self.packed and (has_window(self.causal_lm) or selects_keys(self.causal_lm)):
            return "it runs padded, and may have a window or select keys (policy.attention: lion has windows)"
        ids, layout = probe_row(self.causal_lm, bidirectional=True)
        run = partial(self._packed_hidden if self.packed else self._padded_hidden, ids, layout.positions, layout)
        first = layout.segments[PROMPT].start + torch.arange(2)
        try:
            if not self.packed and not self._takes_masks(ids):
                return "its attention code takes no mask of queries and keys"
            name = causal_module(self.causal_lm, run, *(first if self.packed else layout.padded.first[first]).tolist())
        except FORWARD_ERRORS as error:
            return f"its attention code takes no mask of queries and keys ({first_line(error)})"
        return name and f"{name} sees no later tokens"

    def _takes_masks(self, ids: Tensor) -> bool:
        """True if sequences run alike under the causal masks that are given as such and by their padding."""
        layout = probe_row(self.causal_lm)[1]
        mask = additive_mask(layout.padded_visible, self.causal_lm.dtype)[:, None]
        by_padding = self._padded_hidden(ids, layout.positions, layout)
        by_mask = self._padded_hidden(ids, layout.positions, layout, attention_mask=mask)
        return close(by_mask, by_padding, self.causal_lm.config)

    def _probe_head(self) -> None:
        row = probe_row(self.causal_lm)[0][:5][None]
        try:
            logits = self._logits(row)
        except ValueError:
            if not self._has_row_attention:
                raise
            log.warning("%s has custom attention code, so policy.attention is ignored.", self._name)
            self._set_attention("eager")
            logits = self._logits(row)
        if not bool(logits.isfinite().all()):
            raise ValueError(
                f"{self._name}: its logits are not finite, although its weights are: its config "
                f"is wrong, or {str(logits.dtype).removeprefix('torch.')} is too narrow for it (policy.dtype)"
            )
        for hidden in self.sources:
            if self._gives_logits(hidden, row, logits):
                self._hidden = hidden
                return
        raise ValueError(f"{type(self.causal_lm).__name__}: {self.fault}")

    def _logits(self, row: Tensor) -> Tensor:
        try:
            logits: Tensor = self.causal_lm(input_ids=row, use_cache=False).logits[0]
        except Exception as error:  # code of any model
            asked = self.causal_lm.config._attn_implementation
            raise ValueError(
                f"{self._name}: the model does not run with policy.attention {asked!r} ({first_line(error)}); set it "
                "to eager or sdpa, or choose another model"
            ) from error
        return logits

    def _gives_logits(self, hidden: HiddenStates, row: Tensor, logits: Tensor) -> bool:
        """True if the head makes the model's logits of such hidden states."""
        try:
            states = hidden(self.causal_lm, input_ids=row, use_cache=False)[0]
        except (AttributeError, AssertionError, RuntimeError, TypeError, ValueError):
            return False  # the backbone has another name, so that base_model is the model itself (Llama 4), say
        own = self.head_output(states)
        return own is not None and close(own, logits.to(own.dtype), self.causal_lm.config)
