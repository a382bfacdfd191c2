"""Sampling from a stored model that does not learn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lion_lightning.distributed.ranks import Ranks
from lion_lightning.models.generation.prompts import with_tokenizer
from lion_lightning.models.model_configs import stored_config
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.models.weights.hash import hash_model
from lion_lightning.sampling.base import SamplingSettings
from lion_lightning.sampling.transformers import TransformersSampler
from lion_lightning.types import Answer, Prompt

if TYPE_CHECKING:
    from lion_lightning.models.generation.rollout_policy import RolloutPolicy


class FrozenSampler(TransformersSampler):
    """Samples from a stored model, which is loaded for a round and freed afterwards; each rank has a full copy.

    Prompts are rendered by the model's own chat template and tokenizer. Answers come back as text alone, which the
    policy's tokenizer reads: tokens of another model say nothing to the policy.

    Args:
        model: Hugging Face folder or hub id of a causal LM; safetensors only.
        sampling: Sampling parameters; None for the defaults.
        batch_size: Number of answers generated at once.
        tokenizer: The model's tokenizer with its chat template; None for the one in the model's folder.
        revision: Branch, tag or commit on the hub.
        dtype: Dtype of the weights; None for bf16 on a GPU and fp32 on a CPU.
        trust_remote_code: Run code that comes with the model.
    """

    def __init__(
        self,
        model: str,
        sampling: SamplingSettings | None = None,
        batch_size: int = 64,
        tokenizer: TokenizerSpec | None = None,
        revision: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(sampling, batch_size)
        self.path, self.revision, self.dtype, self.trust_remote_code = model, revision, dtype, trust_remote_code
        self.tokenizer_spec = tokenizer or TokenizerSpec(model, revision=revision, trust_remote_code=trust_remote_code)

    @override
    def identity(self) -> dict[str, Any]:
        model = hash_model(self.path, self.revision)
        return {**super().identity(), "model": model, "dtype": self.dtype, "tokenizer": vars(self.tokenizer_spec)}

    @override
    def check_distribution(self) -> None:
        """Refuse to answer for the policy."""
        raise ValueError(
            f"FrozenSampler: {self.path} is another model than the policy, and what is trained are log-probs of the "
            "policy's own answers; use TransformersSampler, VLLMSampler or ServerSampler"
        )

    def check_ready(self, prompts: Sequence[Prompt]) -> None:
        """Check that the model's config can be read, and render some prompts."""
        stored_config(self.path, self.revision, self.trust_remote_code)
        with_tokenizer(prompts, self._tokenizer)

    @override
    def open(self, policy: RolloutPolicy) -> None:
        """Load the model to the policy's device."""
        from lion_lightning.models.generation.rollout_policy import RolloutPolicy

        dtype = self.dtype or ("bfloat16" if policy.device.type == "cuda" else "float32")
        spec = PolicySpec(self.path, revision=self.revision, dtype=dtype, trust_remote_code=self.trust_remote_code)
        with torch.random.fork_rng(devices=[]):  # to make a model draws random numbers, which training must not notice
            model = spec.build().requires_grad_(False).to(policy.device)
        # Alone on this rank: the copy is not sharded, whatever the policy is.
        super().open(RolloutPolicy(model, self._tokenizer, Ranks(device=policy.device)))

    @override
    def close(self) -> None:
        """Free the model's memory."""
        super().close()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @override
    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Answer]]:
        rows = super().sample(with_tokenizer(prompts, self._tokenizer), n, seed)
        # Its tokens are another tokenizer's; the policy's reads the text.
        return [[answer._replace(token_ids=None) for answer in row] for row in rows]

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return self.tokenizer_spec.load()
