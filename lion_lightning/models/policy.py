"""The policy model: a causal LM that turns packed rows into log-probs of their targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from typing_extensions import override

from lion_lightning.models.embeddings import output_head
from lion_lightning.models.model_configs import logit_transform
from lion_lightning.models.packing.hidden_states import backbone_output, head_input
from lion_lightning.models.packing.model import PackedModel
from lion_lightning.models.weights.dtensor import to_local
from lion_lightning.ops.logprobs import token_logps
from lion_lightning.types import PackedBatch, TokenLogps


class PolicyModel(PackedModel):
    """A Hugging Face causal LM behind the one forward that every stage of a policy uses; see :class:`PackedModel`.

    Args:
        model: A causal LM, or a PEFT model around one.
        packed: As :class:`PackedModel` takes it.
        probe: As :class:`PackedModel` takes it.

    Raises:
        ValueError: The model's logits are not those of its head, under any post-processing known here.
    """

    sources = (backbone_output, head_input)
    fault = (
        "its logits are not those of its head under any post-processing known here (scale, soft cap); log-probs would "
        "be wrong. Please report the model."
    )

    def __init__(self, model: nn.Module, packed: bool | None = None, probe: bool = True) -> None:
        super().__init__(model, packed, probe=False)
        self.transform = logit_transform(self.causal_lm.config)
        if probe:
            self.probe()

    @override
    def forward(self, batch: PackedBatch, read: Read | None = None) -> Any:
        """Log-prob of every target of a packed batch, or what else is to be read from the hidden states.

        Args:
            batch: Rows on the model's device.
            read: What to make of the hidden states, within this forward pass, where the head is whole, however the
                model is sharded; None for :meth:`logps`.

        Returns:
            What ``read`` gives; by default a :class:`~lion_lightning.types.TokenLogps`, ``(targets,)`` in the order of
            ``batch.targets``.
        """
        batch = self.rotary.apart(batch)
        return (read or PolicyModel.logps)(self, self.hidden_states(batch), batch)

    def logps(self, hidden: Tensor, batch: PackedBatch, entropy: bool = False) -> TokenLogps:
        """Log-probs of the targets, where the last hidden states are known.

        Args:
            hidden: ``(tokens, hidden)`` of :meth:`hidden_states` of the batch.
            batch: The batch.
            entropy: Whether to give the entropy, too.
        """
        weight, bias = self.head()
        states = hidden[batch.logit_positions]
        return token_logps(states, weight, batch.targets, bias=bias, transform=self.transform, entropy=entropy)

    def head(self) -> tuple[Tensor, Tensor | None]:
        """Weight ``(vocabulary, hidden)`` and bias of the output head, with any adapter merged in.

        Raises:
            ValueError: The head has LoRA on it.
        """
        head = output_head(self.causal_lm)
        if hasattr(head, "lora_A"):
            raise ValueError(
                "lora.target_modules: leave the output head out (use modules_to_save to train it in full)."
            )
        return head.weight, getattr(head, "bias", None)  # peft's wrappers give the weight of the adapter that is on

    @override
    def head_output(self, states: Tensor) -> Tensor | None:
        weight, bias = self.head()
        if states.shape[-1] != weight.shape[1]:
            return None
        logits = states @ to_local(weight).T  # of this rank's part of the vocabulary
        if bias is not None:
            logits = logits + to_local(bias)
        if isinstance(weight, DTensor):
            placements = [Shard(1) if each.is_shard() else each for each in weight.placements]
            logits = DTensor.from_local(logits, weight.device_mesh, placements, run_check=False).full_tensor()
        return self.transform.apply(logits.float().clone())


Read = Callable[[PolicyModel, Tensor, PackedBatch], Any]
"""From a model, ``(tokens, hidden)`` last hidden states of a batch, and the batch to anything."""


def position_limit(config: Any) -> int | None:
    """Maximum sequence length of a model; None if it has no limit.

    Llama 4's chunks of attention count, since packed rows know none.
    """
    config = config.get_text_config()
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "attention_chunk_size")]
    return min((int(limit) for limit in limits if limit), default=None)
