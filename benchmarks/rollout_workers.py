"""Rounds of on-policy sampling and the bare engine's answers to the same prompts: ``python rollout_workers.py JOB``.

A worker of ``interleaved``: a turn is a round of ``OnPolicySampling`` under a Trainer, and the engine alone, in
turn. The model is random and of moderate size, made on the spot.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from interleaved import Turns
from lightning.pytorch import Trainer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from training_workers import quiet
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, PreTrainedTokenizerFast
from typing_extensions import override

from lion_lightning import (
    OnlineDPOModule,
    OnPolicyDataModule,
    OnPolicyGroupDataModule,
    PolicyGradientModule,
    Source,
    TokenizerSpec,
)
from lion_lightning.callbacks import OnPolicySampling
from lion_lightning.losses import GRPOLoss, SimPOLoss
from lion_lightning.ops.logprobs import pad_left
from lion_lightning.sampling import SamplingSettings, TransformersSampler, VLLMSampler
from lion_lightning.types import Prompt

END, LONGEST = 2, 64
"""The token that ends an answer; tokens of the longest prompt."""


class Brevity:
    """A judge that costs next to nothing: shorter answers are better; of equally long ones, those of early letters."""

    def score(self, prompts: Any, answers: Any) -> list[list[float]]:
        """See :class:`~lion_lightning.judges.base.Judge`."""
        return [[-len(text) - sum(map(ord, text)) / 1e6 for text in given] for given in answers]


class BareTransformers:
    """The same weights as transformers loads them, and its ``generate`` on batches of like lengths.

    Args:
        job: With the model and how much is drawn.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        model: Any = AutoModelForCausalLM.from_pretrained(job["folder"], attn_implementation="sdpa")
        self.model = model.to(job["device"]).eval()
        self.settings: Any = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=True,
            temperature=1.0,
            top_k=0,
            max_new_tokens=job["new_tokens"],
            num_return_sequences=job["samples"],
            eos_token_id=END,
            pad_token_id=END,
        )

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt]) -> int:
        """New tokens of the answers.

        Args:
            prompts: What is asked.
        """
        rows = sorted((prompt.input_ids for prompt in prompts), key=len, reverse=True)
        size = max(1, self.job["batch_size"] // self.job["samples"])
        return sum(self._batch(rows[start : start + size]) for start in range(0, len(rows), size))

    def _batch(self, rows: Sequence[Sequence[int]]) -> int:
        padded = pad_left(rows, END), pad_left([[1] * len(row) for row in rows], 0)
        ids, mask = (part.to(self.job["device"]) for part in padded)
        made = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=self.settings)
        answers = made[:, ids.shape[1] :]
        before = (answers == END).long().cumsum(1) - (answers == END).long()
        return int((before == 0).sum())


class BareVLLM:
    """The engine that ``VLLMSampler`` has started, asked directly.

    Args:
        sampler: Has answered before.
        job: How much is drawn.
    """

    def __init__(self, sampler: VLLMSampler, job: dict[str, Any]) -> None:
        self.sampler, self.job = sampler, job

    def __call__(self, prompts: Sequence[Prompt]) -> int:
        """New tokens of the answers.

        Args:
            prompts: What is asked.
        """
        from vllm import SamplingParams

        llm: Any = self.sampler._llm
        llm.reset_prefix_cache()  # else a prompt would cost nothing where the other side has just asked it
        settings = SamplingParams(temperature=1.0, max_tokens=self.job["new_tokens"], n=self.job["samples"])
        outputs = llm.generate([{"prompt_token_ids": list(p.input_ids)} for p in prompts], settings, use_tqdm=False)
        return sum(len(completion.token_ids) for output in outputs for completion in output.outputs)


class Watched(OnPolicySampling):
    """Times each round as the data module pulls it, and the bare engine on its prompts; they take turns in going first.

    Args:
        bare: The engine alone: from prompts to the number of new tokens.
        told: Is told the measurements of each round.
        **options: Of :class:`OnPolicySampling`.
    """

    def __init__(self, bare: Callable[[Sequence[Prompt]], int], told: Callable[..., None], **options: Any) -> None:
        super().__init__(**options)
        self.bare, self.told, self.seconds = bare, told, Counter[str]()
        for engine, name in ((self.sampler, "open"), (self.sampler, "sample"), (self.judge, "score")):
            setattr(engine, name, self._timed(name, getattr(engine, name)))

    @override
    def pull(self, trainer: Trainer, module: Any, epoch: int) -> Any:
        if self.current is not None and self.current.number == epoch:
            return self.current
        self.seconds.clear()
        sides = {"ours": partial(super().pull, trainer, module, epoch), "bare": partial(self._alone, trainer, epoch)}
        found = {name: self._timed(name, sides[name])() for name in sorted(sides, reverse=epoch % 2 == 0)}
        answers = [answer for rollout in found["ours"].rollouts for answer in rollout.answers]
        tokens = {"tokens": sum(len(answer.token_ids or ()) for answer in answers), "bare_tokens": found["bare"]}
        self.told(**tokens, **{f"{name}_seconds": seconds for name, seconds in self.seconds.items()})
        return found["ours"]

    def _alone(self, trainer: Any, epoch: int) -> int:
        data = trainer.datamodule
        asked = self.choose_prompts(trainer, data.pool, epoch, data.prompt_limit)
        return self.bare([rollout.prompt for rollout in (*asked.prompts, *asked.monitors)])

    def _timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = work(*arguments)
            self.seconds[name] += time.perf_counter() - start
            return result

        return timed


def make_model(job: dict[str, Any]) -> None:
    """Write a random model, a tokenizer of as many words, and prompts for all rounds.

    Args:
        job: Sizes, and the ``folder`` to write to.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=job["vocabulary"],
        num_hidden_layers=job["layers"],
        hidden_size=job["hidden"],
        intermediate_size=3 * job["hidden"],
        num_attention_heads=job["hidden"] // 32,  # heads of 32 at least: vLLM takes no smaller ones on a CPU
        num_key_value_heads=job["hidden"] // 32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=END,
    )
    models: Any = AutoModelForCausalLM
    models.from_config(config).save_pretrained(job["folder"])
    names = ["<unk>", "<start>", "<end>", *(f"w{number}" for number in range(3, job["vocabulary"]))]
    words = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer: Any = PreTrainedTokenizerFast
    tokenizer(tokenizer_object=words, eos_token="<end>", pad_token="<end>").save_pretrained(job["folder"])
    draw = random.Random(0)
    lengths = [draw.randint(LONGEST // 6, LONGEST) for _ in range(job["prompts"] * job["rounds"])]
    rows = [{"prompt": " ".join(f"w{draw.randrange(3, job['vocabulary'])}" for _ in range(n))} for n in lengths]
    Path(job["folder"], "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def run(job: dict[str, Any], told: Callable[..., None]) -> None:
    """Train online, one tiny step a round.

    Args:
        job: ``engine``, ``folder``, sizes of the model, and how much is drawn.
        told: Is told the measurements of each round.
    """
    make_model(job)
    folder = Path(job["folder"])
    settings = SamplingSettings(temperature=1.0, max_new_tokens=job["new_tokens"])
    bare: Any
    if job["engine"] == "vllm":
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        sampler: Any = VLLMSampler(settings, max_model_len=512)
        bare = BareVLLM(sampler, job)
    else:
        sampler, bare = TransformersSampler(settings, job["batch_size"]), BareTransformers(job)
    watched = Watched(
        bare,
        told,
        sampler=sampler,
        judge=Brevity(),
        num_samples=job["samples"],
        prompts_per_round=job["prompts"],
        keep_unfinished=True,  # a random model hardly ever ends
        monitor_prompts=0,
        rounds_dir=folder / "rounds",
    )
    kinds: dict[str, tuple[Any, Any, Any]] = {
        "pairs": (OnPolicyDataModule, OnlineDPOModule, SimPOLoss()),
        "groups": (OnPolicyGroupDataModule, PolicyGradientModule, GRPOLoss()),
    }
    data_class, module_class, loss = kinds[job["items"]]
    data = data_class(
        [Source(str(folder / "prompts.jsonl"))],
        TokenizerSpec(str(folder)),
        max_length=LONGEST + job["new_tokens"],
        row_length=LONGEST + job["samples"] * job["new_tokens"],
        cache_dir=folder / "cache",
    )
    module = module_class(str(folder), loss=loss, kl_batches=0)  # no reference: what trains is not timed
    trainer = Trainer(
        accelerator="gpu" if job["device"] == "cuda" else "cpu",
        devices=1,
        max_epochs=job["rounds"],
        limit_train_batches=1,
        reload_dataloaders_every_n_epochs=1,
        callbacks=[watched],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)


if __name__ == "__main__":
    quiet()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    turns = Turns()
    turns.start()
    run(json.loads(sys.argv[1]), turns.end)
