"""The policy as samplers use it during training: full weights, adapters merged, evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lion_lightning.distributed.ranks import Ranks
from lion_lightning.models.embeddings import still_tied
from lion_lightning.models.generation.adapters import PolicyAdapters, has_plain_lora
from lion_lightning.models.generation.greedy import evaluating
from lion_lightning.models.generation.settings import (
    agree_with,
    generation_config,
    stop_ids,
    without_settings,
    write_settings,
)
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.weights.dtensor import full_parameters
from lion_lightning.models.weights.full_state import full_weights, merged_layer, unflattened, unsharded
from lion_lightning.models.weights.hash import hash_tensors
from lion_lightning.models.weights.safetensors_writer import save_weights
from lion_lightning.ops.logprobs import to_the_end
from lion_lightning.types import Answer, Prompt


class RolloutPolicy:
    """The policy as samplers see it. All ranks must call its methods together where the weights are sharded.

    Args:
        policy: The policy, on its device.
        tokenizer: Its tokenizer.
        ranks: This process among the ranks of the run, with its device and precision.

    Attributes:
        end_ids: Tokens that end an answer.
    """

    def __init__(self, policy: PolicyModel, tokenizer: PreTrainedTokenizerBase, ranks: Ranks | None = None) -> None:
        self.policy, self.tokenizer, self.ranks = policy, tokenizer, ranks or Ranks()
        self.end_ids = stop_ids(tokenizer, policy.causal_lm.generation_config)
        self._gathered = False

    @classmethod
    def load(cls, path: str, tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool = False) -> RolloutPolicy:
        """A stored model, in bf16 on the GPU or in fp32 on the CPU.

        Args:
            path: A Hugging Face folder or a hub id.
            tokenizer: Its tokenizer.
            trust_remote_code: Run code that comes with the model.
        """
        on_gpu = torch.cuda.is_available()
        spec = PolicySpec(path, dtype="bfloat16" if on_gpu else "float32", trust_remote_code=trust_remote_code)
        ranks = Ranks(device="cuda" if on_gpu else "cpu")
        return cls(spec.build().to(ranks.device).eval(), tokenizer, ranks)

    @property
    def model(self) -> Any:
        """The transformers model, with adapters in its layers if there are any."""
        return self.policy.causal_lm

    @property
    def device(self) -> torch.device:
        """Device of the policy."""
        return torch.device(self.ranks.device)

    @property
    def adapters(self) -> PolicyAdapters | None:
        """The adapters alone; None unless they are plain LoRA, and all that is trained."""
        return PolicyAdapters(self.policy, self.ranks) if has_plain_lora(self.policy) else None

    def digest(self) -> str:
        """Hash of all weights, adapters included."""
        return hash_tensors(full_parameters(self.policy))

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full weights by Hugging Face's names, adapters merged; tied weights come under both of their names.

        Each is gathered and merged when its turn comes, so that the full model is never in memory twice. Every rank
        must iterate to the end: see :func:`~lion_lightning.ops.logprobs.to_the_end`.
        """
        with unflattened(self.policy):
            yield from full_weights(self.model, merged_layer)

    def write(self, folder: Path | None) -> None:
        """Write a Hugging Face folder that engines load: :meth:`write_settings` and :meth:`weights`.

        Args:
            folder: Where to; None on ranks that only help to gather. All return once it is written.

        Raises:
            OSError: The folder cannot be written, on this rank or another.
        """
        with self.ranks.together(), to_the_end(self.weights()) as weights:
            if folder is not None:
                self.write_settings(folder)
            save_weights(weights, folder)

    def write_settings(self, folder: Path) -> None:
        """Write all of such a folder but the weights: config, generation config, tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        config = deepcopy(self.model.config)
        config.__dict__.pop("quantization_config", None)  # 4-bit weights are written dequantized
        config.architectures = [type(self.model).__name__]
        # A trained copy of the head unties it: the engine must not tie it again.
        if getattr(config, "tie_word_embeddings", False) and not still_tied(self.model):
            config.tie_word_embeddings = False
        agree_with(config, self.tokenizer)
        config.save_pretrained(folder)
        write_settings(generation_config(self.tokenizer, self.model.generation_config), folder)
        self.tokenizer.save_pretrained(folder)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Full weights on every rank for a while, so that each may generate without waiting for the others."""
        with ExitStack() as stack:
            with self._evaluating():
                stack.enter_context(unsharded(self.policy))
            self._gathered = True
            stack.callback(setattr, self, "_gathered", False)
            yield

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Evaluation mode, no gradients, full weights on every rank; mode and random state are restored afterwards.

        Within :meth:`gathered` no rank waits for another.
        """
        with self._evaluating(), nullcontext() if self._gathered else unsharded(self.policy):
            yield

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        devices = [self.device] if self.device.type == "cuda" else []
        with (
            evaluating(self.policy),
            torch.random.fork_rng(devices),
            torch.no_grad(),
            self.ranks.autocast(),
            without_settings(self.model),
        ):
            yield

    def generate(self, prompt: Prompt, seed: int = 0, **options: Any) -> list[Answer]:
        """Answers to a prompt by transformers' ``generate``, in evaluation mode, up to the end of a turn.

        Args:
            prompt: The prompt.
            seed: The same seed, prompt and options give the same answers; another prompt draws other numbers.
            options: Of ``generate``: ``num_return_sequences``, ``do_sample``, ``num_beams``, ``max_new_tokens``, ...
        """
        ids = torch.tensor([prompt.input_ids], device=self.device)
        ends = list(self.end_ids)
        padding = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else next(iter(ends), 0)
        fixed = {"eos_token_id": ends or None, "pad_token_id": padding, "synced_gpus": False}
        with self.generating():
            torch.manual_seed(int(np.random.SeedSequence([seed, *prompt.input_ids]).generate_state(1)[0]))
            output = self.model.generate(ids, attention_mask=torch.ones_like(ids), **fixed | options)
        return list(map(self.answer, output[:, ids.shape[1] :].tolist()))

    def answer(self, tokens: Sequence[int]) -> Answer:
        """An answer of what was sampled behind a prompt, up to the first token that ends one."""
        length = next((place for place, token in enumerate(tokens) if token in self.end_ids), None)
        text = str(self.tokenizer.decode(list(tokens[:length]), skip_special_tokens=True))
        if length is None:
            return Answer(text, "length", tuple(tokens))
        return Answer(text, "stop", tuple(tokens[: length + 1]))

    def next_logps(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """``(prompts, vocabulary)`` fp32 log-probs of the token after each prompt, on the CPU."""
        with self.generating():
            logps = []
            for ids in prompts:
                output = self.model(torch.tensor([list(ids)], device=self.device), use_cache=False)
                logps.append(output.logits[:, -1].float().log_softmax(-1).cpu())
            return torch.cat(logps)
