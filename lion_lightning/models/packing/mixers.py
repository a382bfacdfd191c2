"""Token mixers that are not attention (state-space layers, linear attention, convolutions) on packed rows.

Such a module carries a state from token to token and knows nothing of a row's segments. So it alone runs sequence by
sequence: it gets every leaf segment with its ancestors, in right-padded batches of similar lengths, and its output is
brought back to the flat row. All else (feed-forward layers, attention, head) runs once per token of the row, and so do
the linear layers within such a module: its convolution and its scan alone see a shared prompt once per answer. It is
the module's own forward that runs, with whatever kernels it has, and each sequence starts from an empty state, so that
values and gradients are those of each sequence alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from lion_lightning.ops.layout import RowLayout
from lion_lightning.ops.padding import PaddedBatch


def named_decoder_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The decoder layers of a causal LM, as its own code marks them, by name; empty if it marks none."""
    marked = set(model._no_split_modules or ())
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():  # parents first
        is_marked = isinstance(module, GradientCheckpointingLayer) or type(module).__name__ in marked
        in_list = name.rpartition(".")[2].isdigit()  # RoBERTa marks its embeddings too
        if is_marked and in_list and not any(name.startswith(f"{layer}.") for layer in layers):
            layers[name] = module
    return layers


class SequencewiseMixers:
    """The modules of a model that run sequence by sequence on packed rows.

    Each gets another forward (on the instance, as accelerate does it), and the decoder layer that it is in a hook,
    which reads the row's layout from the layer's keywords: those are what checkpointing calls a layer with again. Rows
    without a layout (in ``generate``, or by somebody else's code) go to the module as they are.

    Attributes:
        names: Names of the modules.
        recomputable: False if a layer with such a module is not given the layout, so that it cannot run again.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.recomputable = True
        self._row: RowLayout | None = None  # of the row that the model runs on
        self._layer_row: RowLayout | None = None  # of the row that the current layer runs on, maybe once more
        self._batch: PaddedBatch | None = None  # that a module runs on
        self._hooks: list[RemovableHandle] = []
        self._modules: list[nn.Module] = []

    @contextmanager
    def on(self, layout: RowLayout) -> Iterator[None]:
        """Say which row the model runs on: for modules in front of its layers, and layers that get no keywords."""
        self._row = layout
        try:
            yield
        finally:
            self._row = None

    def add(self, name: str, mixer: nn.Module, layer: nn.Module | None) -> None:
        """Have a module run sequence by sequence.

        Args:
            name: Of the module.
            mixer: Called with tensors ``(1, tokens, ...)``, by keyword or not; gives one, or a tuple with one.
            layer: The decoder layer that calls it; None for a module outside of them.
        """
        # Partials, since a copy of the model is to call its own modules.
        mixer.forward = partial(self._sequencewise, mixer.forward, layer is None)
        if layer is not None:
            self._hooks.append(layer.register_forward_pre_hook(self._read_layout, with_kwargs=True))
        self._modules.append(mixer)
        for child in mixer.children():
            if isinstance(getattr(child, "base_layer", child), nn.Linear):
                child.forward = partial(self._linear, child.forward)
                self._modules.append(child)
        self.names.append(name)

    def remove(self) -> None:
        """Give every module its own forward back."""
        for hook in self._hooks:
            hook.remove()
        for module in self._modules:
            del module.forward
        self._hooks, self._modules, self.names = [], [], []

    def _read_layout(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._layer_row = kwargs.get("layout", self._row)
        if self._row is not None and "layout" not in kwargs:
            self.recomputable = False

    def _sequencewise(self, forward: Callable[..., Any], in_front: bool, *args: Any, **kwargs: Any) -> Any:
        layout = self._row if in_front else self._layer_row
        if layout is None:
            return forward(*args, **kwargs)
        if in_front:
            kwargs.pop("position_ids", None)  # BART counts the row's tokens; the module counts each sequence's
        kwargs.pop("layout", None)  # kernels would not know the word
        outputs = []
        for batch in layout.padded_groups.batches:
            take = partial(_take, source=batch.source, tokens=layout.tokens)
            self._batch = batch
            # Padding stands behind, where a causal module's earlier outputs cannot see it: no mask is needed.
            try:
                outputs.append(forward(*map(take, args), **{name: take(value) for name, value in kwargs.items()}))
            finally:  # recomputation stops a forward by an error as soon as it has what it needs
                self._batch = None
        return _restored(outputs, layout)

    def _linear(self, forward: Callable[..., Any], states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """A linear layer within a mixer, on one copy of each token: copies of a prompt's token are equal."""
        batch = self._batch
        if batch is None or states.shape[:2] != batch.source.shape or batch.places.numel() == batch.source.numel():
            return forward(states, *args, **kwargs)
        output = forward(states.flatten(0, 1)[batch.places][None], *args, **kwargs)
        return embedding(batch.copies, output[0])


def modules_in_front(model: PreTrainedModel, run: Callable[[], Any]) -> dict[str, nn.Module]:
    """The modules of a model that run before its first decoder layer and are more than a layer of torch, by name.

    Embeddings that count positions themselves are among them.
    """
    layers = named_decoder_layers(model)
    called: list[str] = []

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        called.append(name)

    hooks = []
    for name, module in model.named_modules():
        around = any(layer.startswith(f"{name}.") or not name for layer in layers)
        inside = any(name.startswith(f"{layer}.") for layer in layers)
        if not (around or inside):
            hooks.append(module.register_forward_hook(partial(note, name)))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    in_front = called[: min((called.index(name) for name in layers if name in called), default=0)]
    outermost = [name for name in in_front if not any(name.startswith(f"{other}.") for other in in_front)]
    modules = {name: model.get_submodule(name) for name in outermost}
    return {name: module for name, module in modules.items() if not type(module).__module__.startswith("torch.")}


def find_mixers(model: PreTrainedModel, run: Callable[[], Any], layout: RowLayout, mixers: SequencewiseMixers) -> None:
    """Find the modules through which a token reaches another document of a packed row, and set them up.

    Every child of a decoder layer is given the row with NaN in its first document: where NaN comes out in another, the
    module mixes tokens without regard to the layout. Attention through :mod:`lion_lightning.ops.attention` never does.

    Args:
        model: A causal LM, in evaluation mode, whose attention is not the dense path (a mask lets NaN through).
        run: Runs the packed row through the model.
        layout: The row's layout, two or more documents.
        mixers: Gets what is found.
    """
    leaks: dict[str, tuple[nn.Module, nn.Module]] = {}
    with torch.no_grad(), _poisoned(model, layout, leaks):
        run()
    for name, (mixer, layer) in leaks.items():
        if not any(other.startswith(f"{name}.") for other in leaks):  # of nested ones the innermost
            mixers.add(name, mixer, layer)


@contextmanager
def _poisoned(
    model: PreTrainedModel, layout: RowLayout, leaks: dict[str, tuple[nn.Module, nn.Module]]
) -> Iterator[None]:
    """NaN goes into each child of each decoder layer and is taken out behind it; ``leaks`` gets those spreading it."""
    first, tokens = layout.segments[0].length, layout.tokens

    def poison(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        spoil = partial(_spoiled, first=first, tokens=tokens)
        return tuple(map(spoil, args)), {name: spoil(value) for name, value in kwargs.items()}

    def clean(name: str, layer: nn.Module, module: nn.Module, _: Any, output: Any) -> Any:
        outputs = output if isinstance(output, tuple) else (output,)
        if any(_is_row(part, tokens) and bool(part[:, first:].isnan().any()) for part in outputs):
            leaks[name] = (module, layer)
        cleaned = tuple(part.nan_to_num() if _is_row(part, tokens) else part for part in outputs)
        return cleaned if isinstance(output, tuple) else cleaned[0]

    hooks = []
    for place, layer in named_decoder_layers(model).items():
        for name, child in layer.named_children():
            # first in and last out, so that a module which already runs sequence by sequence is seen from outside
            hooks.append(child.register_forward_pre_hook(poison, prepend=True, with_kwargs=True))
            hooks.append(child.register_forward_hook(partial(clean, f"{place}.{name}", layer)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _is_row(value: Any, tokens: int) -> bool:
    return isinstance(value, Tensor) and value.dim() >= 2 and value.shape[:2] == (1, tokens)


def _spoiled(value: Any, first: int, tokens: int) -> Any:
    if isinstance(value, dict):
        return {name: _spoiled(part, first, tokens) for name, part in value.items()}
    if isinstance(value, Tensor) and value.numel() == 0:  # the empty mask of packed rows, see _take
        return None
    if not (_is_row(value, tokens) and value.is_floating_point()):
        return value
    value = value.clone()
    value[:, :first] = float("nan")
    return value


def _take(value: Any, source: Tensor, tokens: int) -> Any:
    """A row's tensor, or its size, as that of a batch of sequences; the empty mask of packed rows as none."""
    if isinstance(value, dict):
        return {name: _take(part, source, tokens) for name, part in value.items()}
    if isinstance(value, tuple) and all(isinstance(part, int) for part in value):
        return (*source.shape, *value[2:]) if value[:2] == (1, tokens) else value
    if isinstance(value, tuple):
        return tuple(_take(part, source, tokens) for part in value)
    if _is_row(value, tokens):
        return embedding(source, value[0]) if value.dim() == 3 and value.is_floating_point() else value[0][source]
    return None if isinstance(value, Tensor) and value.numel() == 0 else value


def _restored(outputs: list[Any], layout: RowLayout) -> Any:
    """Outputs of the batches as those of the row; in a tuple, anything but tensors of the tokens is the first's."""
    if isinstance(outputs[0], tuple):
        return tuple(_restored(list(parts), layout) for parts in zip(*outputs, strict=True))
    sources = [batch.source for batch in layout.padded_groups.batches]
    if not isinstance(outputs[0], Tensor):
        return outputs[0]
    if outputs[0].shape[:2] == sources[0].shape:
        return layout.padded_groups.restore(outputs)[None]
    if outputs[0].shape[:1] == sources[0].shape[1:]:  # of the positions, (longest, size), the same for all sequences
        each = [output.expand(len(source), *output.shape) for source, output in zip(sources, outputs, strict=True)]
        return layout.padded_groups.restore(each)
    return outputs[0]
