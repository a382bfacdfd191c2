"""Sparse pre-training, dense fine-tuning (SPDF): most weights stay zero while a model is trained from scratch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from typing_extensions import override

from lion_lightning.callbacks.optimization.fused_backward import steps_within_backward
from lion_lightning.distributed.ranks import Ranks
from lion_lightning.distributed.same_settings import check_same_on_all_ranks
from lion_lightning.models.packing.mixers import named_decoder_layers
from lion_lightning.models.weights.dtensor import local_index, to_local
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.one_lightning import LionCallback


class StaticSparsity(LionCallback):
    """Keeps a fixed random share of the weights at zero, after SPDF (arXiv 2303.10464). Nothing gets faster by it here.

    Every linear layer within the decoder layers has the same sparsity; embeddings, head, norms and biases are dense.
    A mask follows from the seed and the parameter's name, so that it is the same on all ranks and in a later stage;
    checkpoints hold a digest of all masks. Masked gradients are set to zero before they are clipped and their norm is
    logged, masked weights before training and after each batch.

    For dense fine-tuning, train the exported model without this callback: weights that were zero learn from there.

    Args:
        sparsity: Share of zeros in each matrix, at least 0 and below 1; the number of weights that stay is rounded
            down.
        seed: Of the masks.
        allow_pretrained: Also prune weights that were loaded (``policy.path``), which destroys a model unless it was
            trained with the same masks.

    Raises:
        ValueError: ``sparsity`` is out of range, or a checkpoint was written with other masks.
        MisconfigurationException: The module, its model or the strategy cannot be pruned.
    """

    def __init__(self, sparsity: float, seed: int = 0, allow_pretrained: bool = False) -> None:
        if not 0 <= sparsity < 1:
            raise ValueError(f"StaticSparsity.sparsity is {sparsity}; give a share of zeros, at least 0 and below 1")
        self.sparsity, self.seed, self.allow_pretrained = sparsity, seed, allow_pretrained
        self._digest = ""
        self._pruned: list[tuple[Tensor, Tensor]] = []  # with this rank's part of the mask, True for a zero
        self._stored: dict[str, Any] | None = None  # in the checkpoint that the run goes on from

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse, before a model is built, what cannot be pruned."""
        super().setup(trainer, pl_module, stage)
        self._stored = None
        if not isinstance(pl_module, AlignmentModule):
            raise MisconfigurationException(
                f"StaticSparsity prunes the policy of an AlignmentModule, and {type(pl_module).__name__} is none; take "
                "it out of trainer.callbacks"
            )
        spec = pl_module.policy_spec
        if spec.lora is not None:  # without which there is no quantization
            raise MisconfigurationException(
                "StaticSparsity prunes the weights that are trained, and policy.lora trains adapters next to them; "
                "leave one of the two out"
            )
        if steps_within_backward(trainer.callbacks):  # type: ignore[attr-defined]
            raise MisconfigurationException(
                "StaticSparsity masks gradients before the optimizer step, and FusedBackward leaves none until then; "
                "take one of the two out of trainer.callbacks"
            )
        if isinstance(trainer.strategy, FSDPStrategy):
            raise MisconfigurationException(
                "StaticSparsity: FSDPStrategy flattens weights, so that they cannot be masked; use "
                "lion_lightning.strategies.FSDP2Strategy"
            )
        if stage == "fit" and spec.path is not None and not self.allow_pretrained:
            raise MisconfigurationException(
                f"StaticSparsity would set {self.sparsity:.0%} of the weights of {spec.path} to zero at random, which "
                "destroys a trained model; start from random weights (policy.config), or set allow_pretrained: true"
            )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the masks and prune the weights, before the sanity check validates them."""
        assert isinstance(pl_module, AlignmentModule)
        digest, zeros, total = hashlib.sha256(), 0, 0
        self._pruned = []
        for name, parameter in prunable(pl_module.policy_model.causal_lm):
            pruned = random_mask(name, parameter.shape, self.sparsity, self.seed).logical_not_()
            digest.update(f"{name} {tuple(pruned.shape)}".encode())
            digest.update(pruned.numpy().tobytes())
            zeros, total = zeros + int(pruned.sum()), total + pruned.numel()
            self._pruned.append((parameter, pruned[local_index(parameter)].to(to_local(parameter).device)))
        self._digest = digest.hexdigest()
        check_same_on_all_ranks(Ranks.of(trainer.strategy), "StaticSparsity", self.state_dict())
        self._prune_weights()
        rank_zero_info(
            f"StaticSparsity: {zeros:,} of the {total:,} weights in {len(self._pruned)} matrices stay zero "
            f"({zeros / total:.2%})"
        )

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._stored = checkpoint["callbacks"].get(self.state_key, {})

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to go on with other masks."""
        stored, self._stored = self._stored, None
        own = self.state_dict()
        if stored is None or stored == own:
            return
        then = ", ".join(f"{name} {value}" for name, value in stored.items()) or "no such callback"
        raise ValueError(
            f"{trainer.ckpt_path} was written with {then}, and StaticSparsity has "
            f"{', '.join(f'{name} {value}' for name, value in own.items())}: a run keeps its masks; give the settings "
            "(or the version of torch, where only the digest differs) that it began with"
        )

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Zero the masked gradients; selected, not multiplied, so that a NaN or an infinity there does not survive."""
        for parameter, pruned in self._pruned:
            if parameter.grad is not None:
                to_local(parameter.grad).masked_fill_(pruned, 0)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Zero what the optimizer moved for other reasons than a gradient (AdamW moves nothing there)."""
        self._prune_weights()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"sparsity": self.sparsity, "seed": self.seed, "digest": self._digest}

    @torch.no_grad()
    def _prune_weights(self) -> None:
        for parameter, pruned in self._pruned:
            to_local(parameter).masked_fill_(pruned, 0)


def prunable(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Matrices of the linear layers within a model's decoder layers, by their names in the model.

    Raises:
        MisconfigurationException: The model marks no decoder layers, or keeps experts in stacks of matrices.
    """
    layers = named_decoder_layers(model)
    if not layers:
        raise MisconfigurationException(
            f"StaticSparsity prunes within decoder layers, and the code of {type(model).__name__} marks none; take it "
            "out of trainer.callbacks"
        )
    for place, layer in layers.items():
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear | Conv1D):  # the latter is GPT-2's linear layer
                yield f"{place}.{name}.weight", module.weight
            elif any(p.dim() == 3 for p in module.parameters(recurse=False)) and not isinstance(module, nn.Conv1d):
                raise MisconfigurationException(
                    f"StaticSparsity prunes linear layers, and {place}.{name} keeps its experts in stacks of matrices, "
                    "which would stay dense; train a model without experts"
                )


def random_mask(name: str, shape: torch.Size, sparsity: float, seed: int) -> Tensor:
    """Uniform random mask of a matrix on the CPU, True for a weight that stays.

    Args:
        name: The matrix's name, which its draw follows from together with the seed.
        shape: The matrix's shape.
        sparsity: Share of zeros. In decimals: with 0.9, one of ten weights stays, where floats would keep none.
        seed: The seed.

    Raises:
        ValueError: No weight would stay.
    """
    key = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big", signed=True))
    kept = int((1 - Fraction(str(sparsity))) * shape.numel())
    if not kept:
        raise ValueError(
            f"StaticSparsity: sparsity {sparsity} leaves none of the {shape.numel():,} weights of {name}, so that "
            "nothing passes through it; lower it"
        )
    mask = torch.zeros(shape, dtype=torch.bool)
    mask.view(-1)[torch.randperm(shape.numel(), generator=generator)[:kept]] = True
    return mask


def forward_flops_per_token(
    layers: int, hidden: int, length: int, vocabulary: int, sparsity: float = 0.0, matrices: int | None = None
) -> float:
    """FLOPs of a forward pass per token, where a multiplication by a masked weight costs nothing.

    ``2 P (1 - s) + 4 L T h + 2 h V`` gives the factor that SPDF states, 2.5 for GPT-3 XL at 75%: attention counts with
    all tokens, not only with earlier ones, and the head counts.

    Args:
        layers: Number of layers, L.
        hidden: Hidden size, h.
        length: Tokens of a sequence, T.
        vocabulary: Rows of the head, V.
        sparsity: Share of zeros, s.
        matrices: Weights of the pruned matrices, P; None for those of a GPT, ``12 L h^2``.
    """
    weights = 12 * layers * hidden**2 if matrices is None else matrices
    return 2 * weights * (1 - sparsity) + 4 * layers * length * hidden + 2 * hidden * vocabulary
