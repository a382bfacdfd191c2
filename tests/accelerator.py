"""A device that is not the CPU, without hardware: tensors with shapes, dtypes and devices, and no values.

A step that runs on it has no tensor left on the CPU, and waits for the device nowhere: reading a value raises
``DataDependentOutputException``, a shape that depends on values ``DynamicOutputShapeException``, a mix of devices
``FakeTensorDeviceMismatchError`` or ``RuntimeError``, and a blocking copy between host and device :class:`WaitError`.
It says nothing of values, speed or memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils import backend_registration

NAME = "fakegpu"
_LIBRARIES: list[Any] = []  # kept: kernels go with the object that registered them


class WaitError(Exception):
    """A copy between host and device waited for it."""


class _FakeAccelerator(FakeTensorMode):
    """Fake tensors, and no copy that waits for the device while ``strict``."""

    strict = False

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.strict and func is torch.ops.aten._to_copy.default:
            options = kwargs or {}
            source = args[0].device.type
            target = torch.device(options.get("device") or source).type
            if source != target and (target == "cpu" or not options.get("non_blocking")):
                raise WaitError(f"a copy of {tuple(args[0].shape)} from {source} to {target}")
        return super().dispatch(func, types, args, kwargs)  # type: ignore[no-untyped-call]


def register() -> None:
    """Make ``torch.device("fakegpu")`` known, once per process."""
    if not hasattr(torch, NAME):
        backend_registration._setup_privateuseone_for_python_backend(NAME)
        backend: Any = getattr(torch, NAME)
        backend.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
        _register_autocast()


def _register_autocast() -> None:
    """Cast what autocast casts on GPUs, and let everything else through."""
    key = "AutocastPrivateUse1"
    library: Any = torch.library.Library
    rest = library("_", "IMPL", key)
    rest.fallback(torch.library.fallthrough_kernel)
    products = library("aten", "IMPL", key)
    for name in ("mm", "addmm", "bmm", "linear", "matmul", "scaled_dot_product_attention"):
        products.impl(name, _in_half_precision(getattr(torch.ops.aten, name)), key)
    _LIBRARIES.extend((rest, products))


def _in_half_precision(operation: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(NAME)
        with torch.autocast(NAME, enabled=False):
            return operation(*(_cast(arg, dtype) for arg in args), **{k: _cast(v, dtype) for k, v in kwargs.items()})

    return run


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.dtype == torch.float32 else value


@contextmanager
def fake_accelerator() -> Iterator[torch.device]:
    """Tensors made inside are fake; those of the host from before keep their values, which code may read as numpy."""
    register()
    with _FakeAccelerator(allow_non_fake_inputs=False) as mode, pytest.MonkeyPatch.context() as patch:
        read, made = Tensor.numpy, torch.from_numpy

        def numpy(tensor: Tensor) -> Any:
            with unset_fake_temporarily():
                return read(tensor)

        def from_numpy(values: Any) -> Tensor:
            with unset_fake_temporarily():
                tensor = made(values)
            return mode.from_tensor(tensor)

        patch.setattr(Tensor, "numpy", numpy)
        patch.setattr(torch, "from_numpy", from_numpy)
        yield torch.device(NAME)


@contextmanager
def no_blocking_copies() -> Iterator[None]:
    """Raise :class:`WaitError` at a copy that waits for the device."""
    _FakeAccelerator.strict = True
    try:
        yield
    finally:
        _FakeAccelerator.strict = False


def move(module: nn.Module, device: torch.device) -> nn.Module:
    """Put a module of the meta device there, in place, ties kept. Call it inside of :func:`fake_accelerator`.

    Args:
        module: Changed in place.
        device: The fake device.
    """
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else _like(buffer, device)
        for name, old in part._parameters.items():
            if old is not None:
                new = nn.Parameter(_like(old, device), requires_grad=old.requires_grad)
                part._parameters[name] = made.setdefault(id(old), new)
    return module


def _like(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
