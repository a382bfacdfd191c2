"""The model that a LightningModule of any make trains, and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lion_lightning.models.packing.model import PackedModel
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.tokenizer import TokenizerSpec


def find_policy(module: Any, reader: str = "") -> PackedModel:
    """The model that a LightningModule of any make trains, as callbacks take it.

    That is its attribute ``policy_model``; without one, the model in it that trains: a :class:`PolicyModel`, or one of
    transformers or PEFT, with a :class:`PolicyModel` around it. Frozen models, such as a reference, do not count, nor
    does a model that another one holds: it may stand next to its :class:`PolicyModel`, PEFT or compiled one.

    Args:
        module: Whose models are built.
        reader: Name of who asks, for the error.

    Raises:
        MisconfigurationException: There is none, or more than one.
    """
    prefix = f"{reader}: " if reader else ""
    own = getattr(module, "policy_model", None)
    if own is None:
        found = _trained(module)
        if len(found) != 1:
            number = f"{len(found)} language models that train" if found else "no language model that trains"
            raise MisconfigurationException(
                f"{prefix}{type(module).__name__} holds {number}; give it an attribute `policy_model`, the "
                "lion_lightning.PolicyModel to take"
            )
        own = found[0]
        if not isinstance(_inner(own), PackedModel):
            own = PolicyModel(own, packed=False, probe=False)
    if not isinstance(_inner(own), PackedModel):
        raise MisconfigurationException(
            f"{prefix}{type(module).__name__}.policy_model is a {type(own).__name__}; make it a "
            "lion_lightning.PolicyModel, which takes a causal LM of transformers"
        )
    return cast(PackedModel, own)


def find_tokenizer(module: Any, data: Any = None, reader: str = "") -> PreTrainedTokenizerBase:
    """The tokenizer of a LightningModule of any make.

    That is the one of its ``tokenizer_spec``, else its attribute ``tokenizer``, else that of its data module.

    Args:
        module: The module.
        data: The Trainer's data module, if there is one.
        reader: Name of who asks, for the error.

    Raises:
        MisconfigurationException: There is none.
    """
    spec = getattr(module, "tokenizer_spec", None)
    if isinstance(spec, TokenizerSpec):
        return spec.load()
    for owner in (module, data):
        tokenizer = getattr(owner, "tokenizer", None)
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            return tokenizer
    prefix = f"{reader}: " if reader else ""
    raise MisconfigurationException(
        f"{prefix}{type(module).__name__} has no tokenizer; set one in __init__ (self.tokenizer = "
        "AutoTokenizer.from_pretrained(...)), or train from a data module of lion_lightning"
    )


def builds_early(module: LightningModule) -> bool:
    """True if a module's models are there when it is made: it does not build them in ``configure_model``."""
    return type(module).configure_model is LightningModule.configure_model


def _trained(module: nn.Module) -> list[nn.Module]:
    """Language models in a module that train, each once, and without those that another one holds."""
    found, held = {}, set()
    for model in _models(module):
        if any(each.requires_grad for each in model.parameters()):
            found[id(model)] = model
            held |= {id(part) for part in model.modules() if part is not model}
    return [model for place, model in found.items() if place not in held]


def _models(module: nn.Module) -> Iterator[nn.Module]:
    """Language models in a module, without those inside of others; of PEFT, the model with its adapters."""
    inner: Any = _inner(module)
    is_peft = hasattr(inner, "get_base_model") and hasattr(inner, "disable_adapter")
    base = inner.get_base_model() if is_peft else inner
    generates = isinstance(base, PreTrainedModel) and base.can_generate()
    if isinstance(inner, PackedModel) or generates:
        yield module
        return
    for child in module.children():
        yield from _models(child)


def _inner(module: nn.Module) -> nn.Module:
    """A module without the unit of FSDPStrategy around it, which forwards its attributes."""
    return module.module if isinstance(module, FullyShardedDataParallel) else module
