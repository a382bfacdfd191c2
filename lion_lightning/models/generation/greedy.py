"""Greedy answers of a policy in training; its state is left as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lion_lightning.models.generation.settings import stop_ids, without_settings
from lion_lightning.models.generation.trained import find_policy, find_tokenizer
from lion_lightning.models.policy import position_limit
from lion_lightning.models.weights.full_state import unsharded
from lion_lightning.ops.logprobs import pad_left


def generate_answers(module: Any, prompts: Sequence[str], max_new_tokens: int, data: Any = None) -> list[str]:
    """Greedy answer to each prompt, as a conversation of one turn; without a chat template, its continuation.

    Dropout is off; training flags and random state are restored. Every rank must call this if the weights are sharded;
    otherwise no collectives run.

    Args:
        module: An ``AlignmentModule``, or any other with a policy (:func:`find_policy`) and a tokenizer.
        prompts: The user's turns.
        max_new_tokens: Maximum tokens of an answer.
        data: The data module, for its tokenizer where the module has none.

    Raises:
        ValueError: A prompt and an answer of that length exceed the model's positions.
    """
    if not prompts:
        return []
    policy, tokenizer = find_policy(module), find_tokenizer(module, data)
    model = policy.causal_lm
    encoded = [_encode(tokenizer, prompt) for prompt in prompts]
    limit = position_limit(model.config)
    for prompt, ids in zip(prompts, encoded, strict=True):
        needed = len(ids) + max_new_tokens
        if limit is not None and needed > limit:
            raise ValueError(
                f"the prompt {prompt[:40]!r} and an answer need {needed} positions, and the model has {limit}: shorten "
                "the prompt or lower max_new_tokens."
            )
    devices = [model.device] if model.device.type == "cuda" else []
    with evaluating(policy), torch.random.fork_rng(devices), torch.no_grad(), unsharded(policy):
        answers = _greedy(model, tokenizer, encoded, max_new_tokens)
    return [str(tokenizer.decode(answer, skip_special_tokens=True)).strip() for answer in answers]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; each submodule then returns to its own mode, as frozen ones may have another."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    if tokenizer.chat_template is None:
        return list(tokenizer.encode(prompt))
    turns = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(str(text), add_special_tokens=False))  # the template writes a BOS where there is one


def _greedy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]], max_new_tokens: int
) -> Tensor:
    """New tokens, ``(prompts, at most max_new_tokens)``; prompts are padded on the left."""
    stops = list(stop_ids(tokenizer, model.generation_config))
    # Masked before a prompt, and skipped behind an answer.
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(stops), 0)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=stops or None, pad_token_id=pad
    )
    ids = pad_left(prompts, pad).to(model.device)
    mask = pad_left([[1] * len(prompt) for prompt in prompts], 0).to(model.device)
    generate: Any = model.generate
    with without_settings(model):  # the model's own temperature, say, would warn or change the answer
        output: Tensor = generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return output[:, ids.shape[1] :]
