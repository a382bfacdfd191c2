"""Configuration and run of an evaluation."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from lion_lightning.cache import atomic_write, explain_write_errors
from lion_lightning.data.formats.pairing import Pairing
from lion_lightning.data.sources.source import Source
from lion_lightning.judges.base import Judge
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.readiness import require_ready
from lion_lightning.rollouts.prompts.pool import PromptPool
from lion_lightning.sampling.base import Sampler, SamplingSettings
from lion_lightning.sampling.transformers import TransformersSampler
from lion_lightning.tools.evaluate.answers import answer
from lion_lightning.tools.evaluate.held_out import (
    conversation_loss,
    is_reward_model,
    preference_rewards,
    reward_model_accuracy,
)
from lion_lightning.tools.evaluate.scores import accuracy, categories, judge_all, right_and_parts, win_rate
from lion_lightning.types import Answer, Prompt

logger = logging.getLogger(__name__)

ANSWERS, AGAINST, RESULTS, SCORED = "answers.jsonl", "answers_against.jsonl", "results.json", "scored.jsonl"


@dataclass
class Evaluation:
    """Settings of an evaluation.

    Attributes:
        model: A Hugging Face folder, e.g. the export of a stage, or a hub id: of a causal LM, or of a reward model,
            which is measured on preferences alone.
        out: Folder of answers and results.
        conversations: Sources for the loss; empty for no loss.
        preferences: Sources of pairs, or of ranked answers, for the rewards; empty for no rewards. Those of a policy
            need ``reference``, a reward model has its own.
        reference: Reference model of a policy's rewards, e.g. the export of the previous stage.
        pairing: How ranked answers become pairs; None for the best against the worst.
        prompts: Sources of prompts; empty for no answers. They need a judge.
        judge: Scores each answer; None for no scores.
        sampler: Answers the prompts; None for greedy answers of at most 512 tokens with transformers.
        against: Another model, for a win rate on the same prompts.
        against_judge: Compares the answers of both models; None for ``judge``.
        by: Column of the prompts' rows with their category.
        max_length: Tokens of a conversation, or of a prompt with one answer.
        beta: Scale of the rewards.
        template_kwargs: Variables of the models' chat templates (``{enable_thinking: false}``), over those that an
            export has in it.
        seed: Seed for sampling.
        save_every: Number of prompts that are answered and saved together.
    """

    model: str
    out: Path = Path("runs/evaluation")
    conversations: list[Source] = field(default_factory=list)
    preferences: list[Source] = field(default_factory=list)
    reference: str | None = None
    pairing: Pairing | None = None
    prompts: list[Source] = field(default_factory=list)
    judge: Judge | None = None
    sampler: Sampler | None = None
    against: str | None = None
    against_judge: Judge | None = None
    by: str | None = None
    max_length: int = 2048
    beta: float = 0.1
    template_kwargs: dict[str, Any] | None = None
    seed: int = 0
    save_every: int = 256

    def validate(self, rewards: bool | None = None) -> None:
        """Check the configuration before anything is loaded.

        Args:
            rewards: True if the model is a reward model; None where its files say so.

        Raises:
            ValueError: There is nothing to evaluate, or a setting is missing.
        """
        rewards = is_reward_model(self.model) if rewards is None else rewards
        if rewards and (self.conversations or self.prompts):
            raise ValueError(
                f"model: {self.model} is a reward model, which writes no answers: it takes preferences, and neither "
                "conversations nor prompts; leave them out, or give a causal LM"
            )
        if not (self.conversations or self.preferences or self.prompts):
            raise ValueError("nothing to evaluate; give conversations, preferences or prompts")
        if self.preferences and not self.reference and not rewards:
            raise ValueError("preferences need a reference model; give reference: FOLDER")
        if self.prompts and not (self.judge or (self.against and self.against_judge)):
            raise ValueError("prompts need a judge to score the answers, e.g. lion_lightning.judges.VerifierJudge")
        if self.against and not self.prompts:
            raise ValueError("against needs prompts, which both models answer")
        if self.save_every < 1:
            raise ValueError(f"save_every is {self.save_every}; give at least 1")


def evaluate(config: Evaluation) -> dict[str, Any]:
    """Run an evaluation and write ``results.json``.

    Returns:
        The results as plain data: ``loss``, ``rewards``, ``accuracy`` and ``win_rate``, as configured.

    Raises:
        ValueError: A setting is missing, or a model, a source or the judge fails.
    """
    config.validate()
    results: dict[str, Any] = {"model": config.model}
    if config.conversations:
        results["loss"] = conversation_loss(
            config.model, config.conversations, config.max_length, template_kwargs=config.template_kwargs
        )
    options: dict[str, Any] = {
        "max_length": config.max_length,
        "template_kwargs": config.template_kwargs,
        "pairing": config.pairing,
    }
    if config.preferences and is_reward_model(config.model):
        if config.reference:
            logger.warning("reference: %s is not used; a reward model has rewards of its own", config.reference)
        results["rewards"] = reward_model_accuracy(config.model, config.preferences, **options)
    elif config.preferences and config.reference:
        results["rewards"] = preference_rewards(
            config.model, config.preferences, config.reference, config.beta, **options
        )
    if config.prompts:
        results |= _answers(config)
    with explain_write_errors(config.out, "results", "give another `out`"):
        config.out.mkdir(parents=True, exist_ok=True)
        with atomic_write(config.out / RESULTS) as temporary:
            temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def _answers(config: Evaluation) -> dict[str, Any]:
    sampler = config.sampler or TransformersSampler(SamplingSettings(temperature=0.0))
    prompts, ours = _sample(config.model, config, sampler, ANSWERS)
    results: dict[str, Any] = {}
    if config.judge:
        results["accuracy"] = _scored(config.judge, config, prompts, ours)
    judge = config.against_judge or config.judge
    if config.against and judge:
        # The other model's template may render prompts differently; the judge sees the first model's.
        _, theirs = _sample(config.against, config, sampler, AGAINST)
        results["win_rate"] = {"against": config.against, **win_rate(judge, prompts, ours, theirs)}
    return results


def _scored(judge: Judge, config: Evaluation, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> dict[str, Any]:
    """Score answers, save the scores, and return their means and some counts of the answers."""
    judged = judge_all(judge, prompts, [[one] for one in answers])
    scores = [row[0] for row in judged.scores]
    lines = []
    for number, (prompt, one, score) in enumerate(zip(prompts, answers, scores, strict=True)):
        row = {"question": prompt.question, "answer": one.text, "score": score, "row": dict(prompt.row)}
        if len(judged.by_judge) > 1:
            given = {name: rows[number][0] for name, rows in judged.by_judge.items()}
            row["parts"] = {name: value for name, value in given.items() if not math.isnan(value)}
        lines.append(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    path = config.out / SCORED
    with explain_write_errors(path, "scores", "give another `out`"), atomic_write(path) as temporary:
        temporary.write_text("".join(lines), "utf-8")
    count = len(answers)
    return {
        **accuracy(scores, prompts, config.by),
        **right_and_parts(judged),
        "length": sum(len(one.text) for one in answers) / count,  # in characters
        "unfinished": sum(one.finish_reason == "length" for one in answers) / count,
        "empty": sum(not one.text.strip() for one in answers) / count,
    }


def _sample(model: str, config: Evaluation, sampler: Sampler, name: str) -> tuple[list[Prompt], list[Answer]]:
    tokenizer = TokenizerSpec(model, template_kwargs=config.template_kwargs).load()
    prompts = _prompts(config.prompts, tokenizer)
    if config.by:
        categories(prompts, config.by)  # raises for a missing column before sampling
    require_ready([sampler, config.judge, config.against_judge], prompts)  # likewise for missing packages and models
    policy = RolloutPolicy.load(model, tokenizer)
    return prompts, answer(policy, prompts, sampler, config.seed, config.out / name, config.save_every)


def _prompts(sources: list[Source], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    pool = PromptPool(sources, tokenizer)
    for cause, count in pool.left_out.items():
        logger.info("prompts left out, %s: %d", cause, count)
    for line in pool.warnings():
        logger.warning("%s", line)
    parts = np.array_split(np.arange(len(pool)), 1 + min(len(pool) // 1000, 20))  # each part reads the file again
    prompts: list[Prompt] = []
    for part in tqdm(parts, "reading prompts", unit=" parts", delay=2):
        prompts += [one.prompt for one in pool.take(part.tolist())]
    return prompts
