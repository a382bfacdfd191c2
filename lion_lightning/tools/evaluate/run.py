"""All that ``lion evaluate`` can be asked for, and one call that does what was asked."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from lion_lightning.cache import atomic_write, explain_write_errors
from lion_lightning.data.sources.source import Source
from lion_lightning.distributed.ranks import Ranks
from lion_lightning.judges.base import Judge
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.readiness import require_ready
from lion_lightning.rollouts.prompt_pool import PromptPool
from lion_lightning.sampling.base import Sampler, SamplingSettings
from lion_lightning.sampling.transformers import TransformersSampler
from lion_lightning.tools.evaluate.answers import answer
from lion_lightning.tools.evaluate.held_out import conversation_loss, preference_rewards
from lion_lightning.tools.evaluate.verdicts import accuracy, kinds, scored, win_rate
from lion_lightning.types import Answer, Prompt

logger = logging.getLogger(__name__)

ANSWERS, AGAINST, RESULTS, SCORED = "answers.jsonl", "answers_against.jsonl", "results.json", "scored.jsonl"


@dataclass
class Evaluation:
    """What to find out about a model.

    Attributes:
        model: A Hugging Face folder, such as a stage exports, or a hub id.
        out: Folder of the answers and results.
        conversations: What the loss is estimated on; empty for no loss.
        preferences: Pairs that rewards are estimated on; empty for none. They need ``reference``.
        reference: What rewards are measured against, e.g. the export of the stage before.
        prompts: What the model is asked; empty for nothing. They need ``judge``.
        judge: What scores each answer; None for nothing.
        sampler: What answers; None for greedy answers of at most 512 tokens by transformers.
        against: Another model, for a win rate on the same prompts.
        against_judge: What compares the two models' answers; None for ``judge``.
        by: Column of the prompts' rows that names their kind.
        max_length: Tokens of a row of conversations, or of a prompt with one answer.
        beta: Scale of the rewards.
        seed: Of the draws.
        save_every: Prompts that are answered, and saved, together.
    """

    model: str
    out: Path = Path("runs/evaluation")
    conversations: list[Source] = field(default_factory=list)
    preferences: list[Source] = field(default_factory=list)
    reference: str | None = None
    prompts: list[Source] = field(default_factory=list)
    judge: Judge | None = None
    sampler: Sampler | None = None
    against: str | None = None
    against_judge: Judge | None = None
    by: str | None = None
    max_length: int = 2048
    beta: float = 0.1
    seed: int = 0
    save_every: int = 256

    def require_sense(self) -> None:
        """Refuse what cannot be answered, before anything is loaded.

        Raises:
            ValueError: Nothing is asked, or a part is missing.
        """
        if not (self.conversations or self.preferences or self.prompts):
            raise ValueError("nothing to evaluate on; give conversations, preferences or prompts")
        if self.preferences and not self.reference:
            raise ValueError("preferences need a reference to measure rewards against; give reference: FOLDER")
        if self.prompts and not (self.judge or (self.against and self.against_judge)):
            raise ValueError("prompts need a judge to score the answers, e.g. lion_lightning.judges.VerifierJudge")
        if self.against and not self.prompts:
            raise ValueError("against needs prompts, which both models answer")
        if self.save_every < 1:
            raise ValueError(f"save_every is {self.save_every}; give at least 1")


def evaluate(asked: Evaluation) -> dict[str, Any]:
    """Do what was asked, and write ``results.json``.

    Args:
        asked: What to find out.

    Returns:
        The results as plain data: ``loss``, ``rewards``, ``accuracy`` and ``win_rate``, as far as they were asked for.

    Raises:
        ValueError: If something is missing, or a model, a source or the judge fails.
    """
    asked.require_sense()
    results: dict[str, Any] = {"model": asked.model}
    if asked.conversations:
        results["loss"] = conversation_loss(asked.model, asked.conversations, asked.max_length)
    if asked.preferences and asked.reference:
        results["rewards"] = preference_rewards(
            asked.model, asked.preferences, asked.reference, asked.beta, asked.max_length
        )
    if asked.prompts:
        results |= _answers(asked)
    with explain_write_errors(asked.out, "results", "give another `out`"):
        asked.out.mkdir(parents=True, exist_ok=True)
        with atomic_write(asked.out / RESULTS) as temporary:
            temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def _answers(asked: Evaluation) -> dict[str, Any]:
    sampler = asked.sampler or TransformersSampler(SamplingSettings(temperature=0.0))
    prompts, ours = _ask(asked.model, asked, sampler, ANSWERS)
    results: dict[str, Any] = {}
    if asked.judge:
        scores = [row[0] for row in scored(asked.judge, prompts, [[one] for one in ours])]
        _keep_scores(asked.out / SCORED, prompts, ours, scores)
        results["accuracy"] = {**accuracy(scores, prompts, asked.by), **_shape(ours)}
    judge = asked.against_judge or asked.judge
    if asked.against and judge:
        # The other model's template may write the same prompts otherwise; what is judged is what was asked.
        _, theirs = _ask(asked.against, asked, sampler, AGAINST)
        results["win_rate"] = {"against": asked.against, **win_rate(judge, prompts, ours, theirs)}
    return results


def _ask(model: str, asked: Evaluation, sampler: Sampler, name: str) -> tuple[list[Prompt], list[Answer]]:
    tokenizer = TokenizerSpec(model).load()
    prompts = _prompts(asked.prompts, tokenizer)
    if asked.by:
        kinds(prompts, asked.by)  # a missing column is found before the work, not after it
    require_ready([sampler, asked.judge, asked.against_judge], prompts)  # likewise
    served = _served(model, tokenizer)
    return prompts, answer(served, prompts, sampler, asked.seed, asked.out / name, asked.save_every)


def _prompts(sources: list[Source], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    pool = PromptPool(sources, tokenizer)
    for cause, count in pool.left_out.items():
        logger.info("prompts left out, %s: %d", cause, count)
    for line in pool.warnings():
        logger.warning("%s", line)
    parts = np.array_split(np.arange(len(pool)), 1 + min(len(pool) // 1000, 20))  # each reads its file anew
    bar = tqdm(parts, "reading prompts", unit=" parts", delay=2)
    return [one.prompt for part in bar for one in pool.take(part.tolist())]


def _served(model: str, tokenizer: PreTrainedTokenizerBase) -> RolloutPolicy:
    """The model on the GPU in bf16 where there is one, else on the CPU in fp32, as `lion chat` has it."""
    on_gpu = torch.cuda.is_available()
    policy = PolicySpec(model, dtype="bfloat16" if on_gpu else "float32").build()
    device = "cuda" if on_gpu else "cpu"
    return RolloutPolicy(policy.to(device).eval(), tokenizer, Ranks(device=device))


def _shape(answers: Sequence[Answer]) -> dict[str, float]:
    """How long the answers are, in characters, and how many were cut off or say nothing."""
    count = len(answers)
    return {
        "length": sum(len(one.text) for one in answers) / count,
        "unfinished": sum(one.finish_reason == "length" for one in answers) / count,
        "empty": sum(not one.text.strip() for one in answers) / count,
    }


def _keep_scores(path: Path, prompts: Sequence[Prompt], answers: Sequence[Answer], scores: Sequence[float]) -> None:
    rows = (
        {"question": prompt.question, "answer": one.text, "score": score, "row": dict(prompt.row)}
        for prompt, one, score in zip(prompts, answers, scores, strict=True)
    )
    with explain_write_errors(path, "scores", "give another `out`"), atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows), "utf-8")
