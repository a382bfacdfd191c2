"""Sharded loading: each rank reads its part of every tensor from disk, and no rank ever holds the full model."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from lion_lightning.models.embeddings import set_to_mean
from lion_lightning.models.model_configs import weight_files
from lion_lightning.models.weights.checks import WrongWeightsError, require_matching
from lion_lightning.models.weights.dtensor import local_index, materialize, to_local

_PEFT_WRAPPERS = re.compile(r"\.(base_layer|original_module|modules_to_save\.\w+|token_adapter)(?=\.)")


class WeightFiles:
    """The safetensors files of a model. As a context manager it opens each once, and closes them at the end.

    Args:
        names: File of each tensor.
    """

    def __init__(self, names: Mapping[str, Path]) -> None:
        self.names = dict(names)
        self._open: dict[Path, Any] = {}
        self._stack = ExitStack()

    @classmethod
    def find(cls, source: str, revision: str | None = None) -> WeightFiles:
        """The files of a folder or hub id, downloaded if needed.

        Raises:
            OSError: There are none.
            ValueError: Their index is malformed.
        """
        found = partial(cached_file, source, revision=revision, _raise_exceptions_for_missing_entries=False)
        single, index = found(SAFE_WEIGHTS_NAME), found(SAFE_WEIGHTS_INDEX_NAME)
        weight_map = {} if index is None else weight_files(Path(index))
        if single is None and weight_map:  # as in transformers, a single file goes first: the index may be stale
            paths = {file: Path(str(cached_file(source, file, revision=revision))) for file in set(weight_map.values())}
            return cls({name: paths[file] for name, file in weight_map.items()})
        path = Path(single or str(cached_file(source, SAFE_WEIGHTS_NAME, revision=revision)))
        with safe_open(path, "pt") as file:
            return cls(dict.fromkeys(file.keys(), path))

    def __enter__(self) -> WeightFiles:
        """Start of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self._stack.close()
        self._open.clear()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._file(name).get_slice(name).get_shape())

    def part(self, name: str, *index: slice) -> Tensor:
        """Part of a tensor: rows, columns and so on, up to the last of each; all of what is left out."""
        found: Tensor = self._file(name).get_slice(name)[index]
        return found

    def equal(self, name: str, other: str) -> bool:
        """True if two tensors are equal; they are read a thousand rows at a time."""
        if self.shape(name) != self.shape(other):
            return False
        for start in range(0, self.shape(name)[0], 1024):
            rows = slice(start, start + 1024)
            if not torch.equal(self.part(name, rows), self.part(other, rows)):
                return False
        return True

    def _file(self, name: str) -> Any:
        path = self.names[name]
        if path not in self._open:
            self._open[path] = self._stack.enter_context(safe_open(path, "pt"))
        return self._open[path]


def require_matching_shapes(
    source: str, revision: str | None, config: PretrainedConfig, make: Callable[[], nn.Module]
) -> None:
    """Refuse weights of other shapes than the model's, before the model takes any memory.

    Raises:
        WrongWeightsError: A tensor has another shape, or there are fewer tensors than layers.
    """
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    with WeightFiles.find(source, revision) as files:
        if layers > len(files.names):
            raise WrongWeightsError(
                f"{source}: its config has {layers} layers, and its files {len(files.names)} tensors"
            )
        with torch.device("meta"):
            model = make()
        wrong = []
        for name, parameter in model.named_parameters():
            if name in files.names and files.shape(name) != tuple(parameter.shape):
                wrong.append((name, files.shape(name), tuple(parameter.shape)))
    require_matching(f"{source}: its", (), (), wrong)


class ShardedLoadingError(ValueError):
    """Weights that cannot be loaded sharded, though perhaps as a full model."""


def base_name(name: str) -> str:
    """A parameter's name without peft's wrappers, as in the files of the base model."""
    return _PEFT_WRAPPERS.sub("", name)


def tensor_names(model: PreTrainedModel, files: WeightFiles, unused: Container[str] = ()) -> dict[str, str]:
    """Name in the files of each parameter that they hold.

    Args:
        model: From :func:`init_empty`, with or without adapters.
        files: Of the base model; names there may lack the prefix of the headless model.
        unused: Names in the files that the model need not have.

    Raises:
        ShardedLoadingError: The files lack a parameter of the base model, or hold a tensor that belongs to none.
    """
    found: dict[str, str] = {}
    # Parameters of adapters are not in the files, and hold values already.
    for name, parameter in model.named_parameters():
        plain = base_name(name)
        known = [key for key in (plain, plain.removeprefix(f"{model.base_model_prefix}.")) if key in files.names]
        if known:
            found[name] = known[0]
        elif parameter.untyped_storage().nbytes() < parameter.numel() * parameter.element_size():  # still empty
            raise ShardedLoadingError(f"the files have no {name}")
    _require_no_others(model, files, found, unused)
    return found


def _require_no_others(
    model: PreTrainedModel, files: WeightFiles, found: Mapping[str, str], unused: Container[str]
) -> None:
    """Refuse files with tensors that belong to no parameter, but for those that transformers itself leaves unused."""
    ignored = list(model._keys_to_ignore_on_load_unexpected or ())
    if any(buffer.endswith("rotary_emb.inv_freq") for buffer, _ in model.named_buffers()):
        ignored.append(r"rotary_emb\.inv_freq")
    parameters = {base_name(own): parameter for own, parameter in model.named_parameters(remove_duplicate=False)}
    for name in files.names.keys() - set(found.values()):
        if name in unused or any(re.search(pattern, name) for pattern in ignored):
            continue
        # It may be another name of a tied weight, if it has the same values.
        twins = [source for own, source in found.items() if parameters[base_name(own)] is parameters.get(name)]
        if not twins or not files.equal(name, twins[0]):
            raise ShardedLoadingError(f"the files have {name}, which is not a parameter of the model")


def init_empty(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """A model with its buffers, but with weights that take no memory and no time.

    Unlike on the meta device, adapters can be put on it on the CPU, with the values that they have on a full model.
    """
    with torch.device("meta"):
        model = make()
    for module in model.modules():
        for name in [name for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta]:
            _init_buffer(model, module, name)
    empty: dict[int, nn.Parameter] = {}  # tied parameters stay one object
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                value = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                made = nn.Parameter(value, requires_grad=parameter.requires_grad)
                module._parameters[name] = empty.setdefault(id(parameter), made)
    return model


def _init_buffer(model: PreTrainedModel, module: nn.Module, name: str) -> None:
    """Let the model's ``_init_weights`` compute a buffer; if it doesn't, two different fills remain two values."""
    buffer: Any = module._buffers[name]
    values = []
    for fill in (0, 1):
        module._buffers[name] = torch.full(buffer.shape, fill, dtype=buffer.dtype)
        model._init_weights(module)  # type: ignore[no-untyped-call]
        values.append(module._buffers[name])
    if not torch.equal(*values):  # type: ignore[arg-type]
        raise ShardedLoadingError(f"{type(module).__name__}'s code does not initialize its buffer {name}")


def init_head(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Initialize weights of an empty model that its files lack, as the model's own code does.

    Args:
        model: From :func:`init_empty`, changed in place.
        names: Of the weights.
    """
    for name in names:
        layer: Any = model.get_submodule(name.rpartition(".")[0])
        layer.weight = nn.Parameter(torch.empty(layer.weight.shape, dtype=layer.weight.dtype))
        model._init_weights(layer)  # type: ignore[no-untyped-call]


def to_meta(module: nn.Module, names: Iterable[str]) -> None:
    """Move parameters to the meta device; tied ones stay tied."""
    chosen = {id(module.get_parameter(name)) for name in names}
    moved: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and id(parameter) in chosen:
                made = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
                part._parameters[name] = moved.setdefault(id(parameter), made)


@torch.no_grad()
def read_parts(model: nn.Module, files: WeightFiles, names: Mapping[str, str], device: torch.device) -> None:
    """Fill the parameters on the meta device with what this rank holds of them.

    Raises:
        ShardedLoadingError: A tensor has another shape than its parameter, rows for new tokens apart.
    """
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:
            continue
        own, stored = tuple(parameter.shape), files.shape(names[name])
        if own[1:] != stored[1:] or own[0] < stored[0]:
            raise ShardedLoadingError(f"{name} is {own} in the model and {stored} in its files")
        materialize(parameter, device)
        part = files.part(names[name], *local_index(parameter))  # fewer rows than the rank's where some were added
        to_local(parameter)[: len(part)].copy_(part)


@torch.no_grad()
def start_new_rows(model: nn.Module, embeddings: Container[str], rows: Sequence[int]) -> None:
    """Set the rows of new tokens to the mean of the others, in the embeddings and in adapters that train such rows."""
    tables = {name: p for name, p in model.named_parameters() if rows and base_name(name) in embeddings}
    means = {base_name(name): set_to_mean(table, rows) for name, table in tables.items()}
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        layer, is_adapter, _ = name.partition(".token_adapter.trainable_tokens_")
        if is_adapter:  # these hold the rows of new tokens and no others
            to_local(tensor).copy_(means[f"{layer}.weight"])
