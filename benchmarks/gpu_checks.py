"""Parity on the device at hand: packed rows against sequences alone, the head in tiles, references (for ``gpu.py``).

In fp32 nothing may differ by more than 1e-4: kernels only add in other orders. In bf16 both ways round every activation
to 8 bits, so neither is right: each is compared with the same weights in fp32, and packed rows may be off no more than
sequences alone are. They round about as often in other places, so their errors are of equal size but not equal: 1.5
times is granted to the root mean square of thousands of errors, 2 times to the largest. A token that sees what it must
not is off by the spread of log-probs itself: rows whose documents see each other fail by a factor of fifty and more.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from batches import Item
from torch import Tensor
from training_workers import loader

from lion_lightning import CachedReference, PolicySpec
from lion_lightning.distributed.ranks import Ranks
from lion_lightning.models.policy import PolicyModel
from lion_lightning.ops import attention
from lion_lightning.ops.logprobs import token_logps
from lion_lightning.references.base import FrozenReference

DOCUMENTS = ((100, 200), (1, 127), (40, 477), (30, 34), (5, 1))
"""Tokens of prompt and answer."""
PAIRS = ((260, 129, 64), (100, 300, 17), (3, 64, 65))
"""Tokens of prompt, chosen and rejected."""
EXACT, RMS, LARGEST = 1e-4, 1.5, 2.0


class Place(NamedTuple):
    """Where to check, and how large.

    Attributes:
        device: ``cuda`` or ``cpu``.
        tiny: Whether model and rows are made small, for a quick run.
    """

    device: str
    tiny: bool = False

    @property
    def shape(self) -> dict[str, Any]:
        """Config of a Llama with weights so large that its attention is far from uniform."""
        hidden, layers, vocabulary = (64, 2, 256) if self.tiny else (256, 4, 2048)
        return {
            "model_type": "llama",
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": hidden // 4,
            "max_position_embeddings": 1024,
            "initializer_range": 0.08,
        }


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        what: In words.
        found: The difference; in bf16, in units of the one that sequences alone have.
        most: What it may be at most.
    """

    what: str
    found: float
    most: float

    @property
    def passed(self) -> bool:
        """Whether the difference is small enough; not a number is not."""
        return self.found <= self.most

    def row(self) -> str:
        """A line to print."""
        return f"{'ok  ' if self.passed else 'FAIL'} {self.what}: {self.found:.3g} (at most {self.most:g})"


def checks(place: Place) -> Iterator[Check]:
    """All checks, one after the other.

    Args:
        place: Where, and how large.
    """
    torch.set_float32_matmul_precision("highest")
    kinds = {"documents": items(DOCUMENTS, place), "pairs": items(PAIRS, place)}
    for kind, rows in kinds.items():
        for dtype, paths in (("float32", PATHS_FP32), ("bfloat16", paths_bf16(place.device))):
            for path in paths:
                yield from packed_rows(f"{kind}, {path}, {dtype}", path, dtype, rows, place)
        yield from packed_rows(f"{kind}, lion, bf16-mixed", "lion", "float32", rows, place, mixed=True)
    yield from head("float32", place.device)
    yield from head("bfloat16", place.device)
    for dtype in ("float32", "bfloat16"):
        yield cached_reference(dtype, kinds["pairs"], place)


PATHS_FP32 = ("lion_sdpa", "lion_dense")


def paths_bf16(device: str) -> tuple[str, ...]:
    """Paths that can run there in half precision.

    Args:
        device: ``cuda`` or ``cpu``.
    """
    if device == "cpu":
        return PATHS_FP32
    varlen = ("lion_varlen",) if find_spec("torch.nn.attention.varlen") else ()
    flash = ("lion_flash",) if find_spec("flash_attn") else ()
    return (*PATHS_FP32, *varlen, *flash)


def items(lengths: Sequence[Sequence[int]], place: Place) -> list[Item]:
    """Prompts and answers of random tokens.

    Args:
        lengths: Tokens of each part.
        place: Where, and how large.
    """
    draw = random.Random(0)
    parts = [
        [draw.choices(range(3, place.shape["vocab_size"]), k=-(-n // (4 if place.tiny else 1))) for n in item]
        for item in lengths
    ]
    return [Item(prompt, tuple(answers)) for prompt, *answers in parts]


def build(path: str, dtype: Any, place: Place) -> PolicyModel:
    """A random policy; equal weights each time, whatever the path.

    Args:
        path: Of attention.
        dtype: Of the weights.
        place: Where to: it is built there, since its probe runs the kernel.
    """
    torch.manual_seed(0)
    with torch.device(place.device):
        return PolicySpec(config=place.shape, dtype=dtype, attention=path).build().eval()


def path_taken(place: Place) -> str:
    """What ``lion`` runs under bf16 autocast with fp32 weights, found out by running it.

    Args:
        place: Where, and how large.
    """
    seen: list[str] = []
    policy = build("lion", "float32", place)
    single = {name: path for name, path in attention.PATHS.items() if name != "lion"}

    def spy(name: str, path: attention.Attend) -> attention.Attend:
        return lambda heads, layout: (seen.append(name), path(heads, layout))[1]

    spies = {path.__name__: spy(name, path) for name, path in single.items()}
    attention._gpu_path.cache_clear()  # it keeps the function that it chose
    with patch.multiple(attention, **spies), torch.autocast(place.device, torch.bfloat16), torch.no_grad():
        policy(_batch(items(DOCUMENTS, place), place.device))
    attention._gpu_path.cache_clear()
    return ", ".join(sorted(set(seen)))


def packed_rows(
    what: str, path: str, dtype: str, rows: list[Item], place: Place, mixed: bool = False
) -> Iterator[Check]:
    """Log-probs and gradients of a packed row against those of its sequences alone.

    Args:
        what: In words.
        path: Of attention.
        dtype: Of the weights.
        rows: What is in the row.
        place: Where, and how large.
        mixed: Under bf16 autocast.
    """
    autocast: AbstractContextManager[Any] = torch.autocast(place.device, torch.bfloat16) if mixed else nullcontext()
    policy, plain = (build(name, dtype, place) for name in (path, "eager"))
    yield Check(f"{what}: fell back to padding", float(not policy.packed), 0.0)
    truth = build("eager", "float32", place)
    truth.load_state_dict(plain.state_dict())
    with autocast:
        packed = _with_gradient(policy, lambda: policy(_batch(rows, place.device)).values)
        alone = _with_gradient(plain, lambda: _alone(plain, rows, place.device))
    exact = _with_gradient(truth, lambda: _alone(truth, rows, place.device))
    yield from _compare(what, packed, alone, exact, half=mixed or dtype == "bfloat16")


def head(dtype: str, device: str) -> Iterator[Check]:
    """The head in tiles of the vocabulary against cross-entropy of whole logits.

    Args:
        dtype: Of hidden states and weight.
        device: Where.
    """
    torch.manual_seed(0)
    with torch.device(device):
        hidden, weight = torch.randn(700, 256), torch.randn(5000, 256) / 4
        targets = torch.randint(5000, (700,))
    ends = [tensor.to(getattr(torch, dtype)).requires_grad_() for tensor in (hidden, weight)]
    precise = [end.detach().float().requires_grad_() for end in ends]
    tiled = token_logps(ends[0], ends[1], targets, logits_per_tile=2**18).values
    found = [
        _flat_gradient(values, of) for values, of in ((tiled, ends), _plain(ends, targets), _plain(precise, targets))
    ]
    yield from _compare(f"head in tiles, {dtype}", *found, half=dtype == "bfloat16")


def cached_reference(dtype: str, rows: list[Item], place: Place) -> Check:
    """Log-probs from a cache on disk against those of a copy of the model.

    Args:
        dtype: Of the weights.
        rows: Pairs.
        place: Where, and how large.
    """
    policy, batch = build("lion", dtype, place), _batch(rows, place.device)
    with tempfile.TemporaryDirectory() as folder:
        cached, live = CachedReference(cache_dir=folder), FrozenReference()
        for reference in (cached, live):
            reference.attach(policy, lambda _: deepcopy(policy))
            reference.precompute([batch], policy, Ranks(device=place.device, precision=dtype), "check")
        largest = float((cached(batch, policy).values - live(batch, policy).values).abs().max())
    return Check(f"cached reference, {dtype}: largest difference", largest, EXACT)


def _compare(
    what: str, ours: tuple[Tensor, Tensor], plain: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor], half: bool
) -> Iterator[Check]:
    """Log-probs and gradients, each ours, the plain way's and (for half precision) the same in fp32."""
    values, gradient = (a - b for a, b in zip(ours, exact if half else plain, strict=True))
    scale = float(exact[1].norm())
    if not half:
        yield Check(f"{what}: largest difference of log-probs", float(values.abs().max()), EXACT)
        yield Check(f"{what}: difference of gradients", float(gradient.norm()) / scale, EXACT)
        return
    unit_values, unit_gradient = (a - b for a, b in zip(plain, exact, strict=True))
    yield Check(f"{what}: errors of log-probs, root mean square", _ratio(values, unit_values, Tensor.norm), RMS)
    yield Check(f"{what}: errors of log-probs, largest", _ratio(values.abs(), unit_values.abs(), Tensor.max), LARGEST)
    yield Check(f"{what}: error of gradients", _ratio(gradient, unit_gradient, Tensor.norm), RMS)


def _ratio(ours: Tensor, unit: Tensor, size: Callable[[Tensor], Tensor]) -> float:
    return float(size(ours)) / float(size(unit))


def _plain(ends: list[Tensor], targets: Tensor) -> tuple[Tensor, list[Tensor]]:
    logits = (ends[0] @ ends[1].T).float()
    return -torch.nn.functional.cross_entropy(logits, targets, reduction="none"), ends


def _with_gradient(policy: PolicyModel, run: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    return _flat_gradient(run(), list(policy.parameters()))


def _flat_gradient(values: Tensor, of: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The values, and the gradient of an uneven combination of them, in fp32."""
    uneven = torch.linspace(-1, 2, len(values), device=values.device)
    parts = torch.autograd.grad((uneven * values).sum(), of)
    return values.detach(), torch.cat([part.float().flatten() for part in parts])


def _alone(policy: PolicyModel, rows: list[Item], device: str) -> Tensor:
    """Log-probs of all answers by the model itself, each sequence in a forward of its own, from whole logits."""
    parts = []
    for prompt, answers, *_ in rows:
        for answer in answers:
            ids = torch.tensor([prompt + answer], device=device)
            logits = policy.causal_lm(input_ids=ids, use_cache=False).logits[0].float()
            logps = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None]).squeeze(1)
            parts.append(logps[len(prompt) - 1 :])
    return torch.cat(parts)


def _batch(rows: list[Item], device: str) -> Any:
    return next(iter(loader([rows]))).to(device)
