"""Sampling from what a policy of Q-SFT and its behaviour model say together."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel
from typing_extensions import override

from lion_lightning.losses.base import out_of_range
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.weights.hash import hash_model
from lion_lightning.ops.logprobs import pad_left
from lion_lightning.sampling.base import SamplingSettings
from lion_lightning.sampling.transformers import TransformersSampler
from lion_lightning.types import Prompt

if TYPE_CHECKING:
    from lion_lightning.models.generation.rollout_policy import RolloutPolicy


class QSFTSampler(TransformersSampler):
    r"""Draws from :math:`\pi_\phi(a|s)\, e^{\beta\, p_\theta(a|s)}` (Q-SFT, arXiv 2411.05193, step 4). Experimental.

    The exponent is the policy's probability, not its logarithm: :math:`p_\theta = \pi_\phi Q`, so that a good action
    that is rare in the data needs a large ``beta``, and a small one may do worse than the behaviour itself. The
    behaviour model is loaded for a round, a full copy on each rank, and keeps a cache of keys of its own.

    Args:
        behaviour: Hugging Face folder or hub id of the behaviour model, with the policy's vocabulary.
        beta: Strength of the values, above 0.
        floor: Tokens that the behaviour gives less probability are not drawn, as they do not count in training; where
            all have less, the most probable one is.
        sampling: Sampling parameters, applied to that distribution; None for the defaults with a temperature of 1.
        batch_size: Number of answers generated at once.

    Raises:
        ValueError: A number is out of range. From :meth:`open`: the models have other vocabularies.
    """

    def __init__(
        self,
        behaviour: str,
        beta: float,
        floor: float = 0.01,
        sampling: SamplingSettings | None = None,
        batch_size: int = 64,
    ) -> None:
        super().__init__(sampling or SamplingSettings(temperature=1.0), batch_size)
        if not 0 < beta < math.inf:
            raise out_of_range(self, "beta", beta, "above 0")
        if not 0 < floor < 1:
            raise out_of_range(self, "floor", floor, "between 0 and 1")
        self.behaviour, self.beta, self.floor = behaviour, beta, floor
        self._model: PreTrainedModel | None = None

    @override
    def identity(self) -> dict[str, Any]:
        return {
            **super().identity(),
            "behaviour": hash_model(self.behaviour, None),
            "beta": self.beta,
            "floor": self.floor,
        }

    @override
    def open(self, policy: RolloutPolicy) -> None:
        """Gather the policy's weights, and load the behaviour model in their dtype."""
        super().open(policy)
        spec = PolicySpec.of({"path": self.behaviour, "dtype": str(policy.model.dtype).removeprefix("torch.")})
        with torch.random.fork_rng(devices=[]):  # to make a model draws random numbers, which training must not notice
            self._model = spec.build().requires_grad_(False).eval().to(policy.device).causal_lm
        sizes = [model.get_output_embeddings().weight.shape[0] for model in (policy.model, self._model)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"QSFTSampler: {self.behaviour} has {sizes[1]} tokens and the policy {sizes[0]}; give the behaviour "
                "model that the policy was trained with"
            )

    @override
    def close(self) -> None:
        super().close()
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @override
    def processors(self, prompts: Sequence[Prompt], n: int, start: int) -> list[LogitsProcessor]:
        assert self._model is not None, "call open(policy) before sample()"
        mask = pad_left([[1] * len(prompt.input_ids) for prompt in prompts], 0).repeat_interleave(n, 0)
        return [BehaviourTimesValue(self._model, mask, self.beta, self.floor)]


class BehaviourTimesValue(LogitsProcessor):
    r"""From logits of a policy to :math:`\log \pi_\phi + \beta p_\theta`, unnormalized, for a batch that is generated.

    Args:
        behaviour: The behaviour model, on the policy's device.
        mask: ``(answers, prompt)`` which tokens of the prompts are no padding.
        beta: Strength of the values.
        floor: Least probability under the behaviour.
    """

    def __init__(self, behaviour: PreTrainedModel, mask: Tensor, beta: float, floor: float) -> None:
        self.behaviour, self.beta, self.floor = behaviour, beta, floor
        self.mask = mask.to(behaviour.device)
        self.cache: Any = None
        known = inspect.signature(behaviour.forward).parameters
        self._takes_positions, self._keeps = "position_ids" in known, "logits_to_keep" in known

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``(answers, vocabulary)`` logits to draw from.

        Args:
            input_ids: ``(answers, tokens)`` prompts and what was generated so far.
            scores: ``(answers, vocabulary)`` logits of the policy.
        """
        log_behaviour = self._next_logits(input_ids).float().log_softmax(-1)
        likeliest = log_behaviour.amax(-1, keepdim=True)
        supported = log_behaviour >= likeliest.clamp(max=math.log(self.floor))
        return (log_behaviour + self.beta * scores.float().softmax(-1)).masked_fill(~supported, -math.inf)

    def _next_logits(self, input_ids: Tensor) -> Tensor:
        """``(answers, vocabulary)`` logits of the behaviour; of the tokens that it has seen the cache knows all."""
        self.mask = torch.nn.functional.pad(self.mask, (0, input_ids.shape[1] - self.mask.shape[1]), value=1)
        new = input_ids if self.cache is None else input_ids[:, -1:]
        options: dict[str, Any] = {"logits_to_keep": 1} if self._keeps else {}
        if self._takes_positions:
            options["position_ids"] = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -new.shape[1] :]
        output = self.behaviour(
            input_ids=new, attention_mask=self.mask, past_key_values=self.cache, use_cache=True, **options
        )
        self.cache = output.past_key_values
        logits: Tensor = output.logits[:, -1]
        return logits
