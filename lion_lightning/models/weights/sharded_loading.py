"""Weights read in pieces: each rank reads its rows of every tensor from disk, and no rank ever holds a whole model."""

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
from lion_lightning.models.weights.dtensor import materialize, rows_held, to_local
from lion_lightning.models.weights.stored import WrongWeightsError, refuse_misfits

_WRAPPED = re.compile(r"\.(base_layer|original_module|modules_to_save\.\w+|token_adapter)(?=\.)")


class WeightFiles:
    """The safetensors of a model, of which rows are read one tensor at a time.

    Args:
        names: File of each tensor.
    """

    def __init__(self, names: Mapping[str, Path]) -> None:
        self.names = dict(names)
        self._open: dict[Path, Any] = {}
        self._stack = ExitStack()

    @classmethod
    def find(cls, source: str, revision: str | None = None) -> WeightFiles:
        """Those of a folder or of a hub id (downloaded if they are not there yet).

        Args:
            source: Folder or hub id.
            revision: Hub revision.

        Raises:
            OSError: There are none.
            ValueError: Their index is none.
        """
        found = partial(cached_file, source, revision=revision, _raise_exceptions_for_missing_entries=False)
        single, index = found(SAFE_WEIGHTS_NAME), found(SAFE_WEIGHTS_INDEX_NAME)
        places = {} if index is None else weight_files(Path(index))
        if single is None and places:  # the single file first, as transformers has it: an index may be of another save
            files = {file: Path(str(cached_file(source, file, revision=revision))) for file in set(places.values())}
            return cls({name: files[file] for name, file in places.items()})
        path = Path(single or str(cached_file(source, SAFE_WEIGHTS_NAME, revision=revision)))
        with safe_open(path, "pt") as file:
            return cls(dict.fromkeys(file.keys(), path))

    def __enter__(self) -> WeightFiles:
        """Keep files open, once each, until the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close them."""
        self._stack.close()
        self._open.clear()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._file(name).get_slice(name).get_shape())

    def rows(self, name: str, rows: range) -> Tensor:
        """Rows of a tensor; fewer where it ends before them."""
        found: Tensor = self._file(name).get_slice(name)[rows.start : rows.stop]
        return found

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors are equal; they are read a thousand rows at a time."""
        if self.shape(name) != self.shape(other):
            return False
        blocks = (range(start, start + 1024) for start in range(0, self.shape(name)[0], 1024))
        return all(torch.equal(self.rows(name, rows), self.rows(other, rows)) for rows in blocks)

    def _file(self, name: str) -> Any:
        path = self.names[name]
        if path not in self._open:
            self._open[path] = self._stack.enter_context(safe_open(path, "pt"))
        return self._open[path]


def refuse_other_shapes(
    source: str, revision: str | None, config: PretrainedConfig, make: Callable[[], nn.Module]
) -> None:
    """Refuse weights of another shape than the model's before the model takes any memory.

    Args:
        source: Folder or hub id.
        revision: Hub revision.
        config: The model's.
        make: Makes the model, with any weights.

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
            sizes = {name: tuple(tensor.shape) for name, tensor in make().named_parameters()}
        wrong = [(n, files.shape(n), size) for n, size in sizes.items() if n in files.names and files.shape(n) != size]
    refuse_misfits(f"{source}: its", (), (), wrong)


class PiecesError(ValueError):
    """Weights that cannot be read in pieces; loaded whole they may be fine."""


def plain_name(name: str) -> str:
    """A parameter's name without what adapters put around its layer: the name that it has in a base model's files."""
    return _WRAPPED.sub("", name)


def sources_of(model: PreTrainedModel, files: WeightFiles) -> dict[str, str]:
    """Name in the files of each parameter that they hold.

    Args:
        model: Hollow, with adapters or without.
        files: Of the base model; names there may lack the prefix of the headless model.

    Raises:
        PiecesError: They do not hold a parameter of the base model as it is, or hold what is none of its parameters.
    """
    found: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        plain = plain_name(name)
        known = [key for key in (plain, plain.removeprefix(f"{model.base_model_prefix}.")) if key in files.names]
        if known:
            found[name] = known[0]
        elif _is_hollow(parameter):
            raise PiecesError(f"the files have no {name}")
    for name in files.names.keys() - set(found.values()):
        if not _is_harmless(model, name) and not _is_copy(model, files, name, found):
            raise PiecesError(f"the files have {name}, which is no parameter")
    return found


def _is_harmless(model: PreTrainedModel, name: str) -> bool:
    """Whether transformers itself lets such a tensor be left over."""
    buffers = [buffer for buffer, _ in model.named_buffers()]
    old = [r"rotary_emb\.inv_freq"] if any(buffer.endswith("rotary_emb.inv_freq") for buffer in buffers) else []
    patterns = [*(model._keys_to_ignore_on_load_unexpected or ()), *old]
    return any(re.search(pattern, name) for pattern in patterns)


def _is_copy(model: PreTrainedModel, files: WeightFiles, name: str, found: Mapping[str, str]) -> bool:
    """Whether a tensor is a tied weight's other name, with the same values."""
    plain = {plain_name(own): parameter for own, parameter in model.named_parameters(remove_duplicate=False)}
    twins = [source for own, source in found.items() if plain[plain_name(own)] is plain.get(name)]
    return bool(twins) and files.equal(name, twins[0])


def init_empty(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """A model with its buffers, but with weights that take no memory and no time.

    What wraps layers (adapters) can then be made on the CPU, with the values that it would have on a whole model.

    Args:
        make: Makes the model, with any weights.

    Raises:
        PiecesError: If a buffer cannot be made.
    """
    with torch.device("meta"):
        model = make()
    _make_buffers(model)
    stand_ins: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                value = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                made = nn.Parameter(value, requires_grad=parameter.requires_grad)
                module._parameters[name] = stand_ins.setdefault(id(parameter), made)
    return model


def to_meta(module: nn.Module, names: Iterable[str]) -> None:
    """Move parameters to the meta device, ties kept.

    Args:
        module: Changed in place.
        names: Of the parameters.
    """
    chosen = {id(module.get_parameter(name)) for name in names}
    moved: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and id(parameter) in chosen:
                made = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
                part._parameters[name] = moved.setdefault(id(parameter), made)


@torch.no_grad()
def read_rows(model: nn.Module, files: WeightFiles, sources: Mapping[str, str], device: torch.device) -> None:
    """Fill the parameters that are on the meta device with this rank's rows.

    Args:
        model: Sharded; changed in place.
        files: Where the weights are.
        sources: Names there, by parameter name.
        device: Where the rows go.

    Raises:
        PiecesError: If a tensor is not of its parameter's shape (more rows in the model, for new tokens, are fine).
    """
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:
            continue
        _refuse_other_shape(name, tuple(parameter.shape), files.shape(sources[name]))
        materialize(parameter, device)
        rows = files.rows(sources[name], rows_held(parameter))
        to_local(parameter)[: len(rows)].copy_(rows)


@torch.no_grad()
def start_new_rows(model: nn.Module, embeddings: Container[str], rows: Sequence[int]) -> None:
    """Set the rows of new tokens to the mean of the others, in the embeddings and in what adapters train of them.

    Args:
        model: Sharded and filled; changed in place.
        embeddings: Plain names of the embedding and of an untied head.
        rows: The new tokens.
    """
    tables = {name: p for name, p in model.named_parameters() if rows and plain_name(name) in embeddings}
    means = {plain_name(name): set_to_mean(table, rows) for name, table in tables.items()}
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        layer, is_adapter, _ = name.partition(".token_adapter.trainable_tokens_")
        if is_adapter:  # rows that are trained beside adapters are those of new tokens alone
            to_local(tensor).copy_(means[f"{layer}.weight"])


def _is_hollow(parameter: Tensor) -> bool:
    return parameter.untyped_storage().nbytes() < parameter.numel() * parameter.element_size()


def _make_buffers(model: PreTrainedModel) -> None:
    """Make the buffers by the model's own code, which does so in its ``_init_weights``, and check that it does."""
    for module in model.modules():
        for name in [name for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta]:
            first, second = (_initialized(model, module, name, fill) for fill in (0, 1))
            if not torch.equal(first, second):  # what it was filled with is still there
                raise PiecesError(f"{type(module).__name__} does not say how to make its buffer {name}")


def _initialized(model: PreTrainedModel, module: nn.Module, name: str, fill: int) -> Tensor:
    module._buffers[name] = made = torch.full(module._buffers[name].shape, fill, dtype=module._buffers[name].dtype)  # type: ignore[union-attr]
    model._init_weights(module)  # type: ignore[no-untyped-call]
    return made


def _refuse_other_shape(name: str, own: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    if own[1:] != theirs[1:] or own[0] < theirs[0]:
        raise PiecesError(f"{name} is {own} in the model and {theirs} in its files")
