"""What a run of policy_gradients.py gave: answers to held-out prompts, rounds and logs."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from ablations import accuracies
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lion_lightning.data.sources.source import Source
from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.readiness import opened
from lion_lightning.rollouts.prompts.pool import PromptPool
from lion_lightning.sampling import SamplingSettings, TransformersSampler
from lion_lightning.tools.demo import check
from lion_lightning.tools.report.logs import Stage, read_stage
from lion_lightning.types import Answer, Prompt

QUESTIONS, ANSWERS = 330, 8
"""Held-out prompts, 30 of each kind, and the answers to each."""


def held_out(folder: Path, start: Path, source: str) -> dict[str, Any]:
    """Number of right answers to each prompt at temperature 1, divergence from the start, entropy; kept in a file.

    Args:
        folder: Of the stage that is measured.
        start: Of the stage that it started from.
        source: File of the prompts.
    """
    path = folder / "held_out.json"
    if path.exists():
        known: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return known
    torch.manual_seed(0)
    policy, first = (_policy(one) for one in (folder, start))
    pool = PromptPool([Source(source)], policy.tokenizer)
    prompts = [one.prompt for one in pool.take(range(QUESTIONS))]
    sampler = TransformersSampler(SamplingSettings(temperature=1.0, max_new_tokens=16), batch_size=320)
    with opened(sampler, policy):
        answers = sampler.sample(prompts, ANSWERS, seed=0)
    right, sums = "", torch.zeros(2)
    for prompt, group in zip(prompts, answers, strict=True):
        right += str(sum(check(prompt.question, answer.text) for answer in group))
        sums += _divergence_and_entropy(policy, first, prompt, group)
    kl, entropy = (sums / len(prompts) / ANSWERS).tolist()
    length = fmean(len(answer.token_ids or ()) for group in answers for answer in group)
    found = {"right": right, "kl": kl, "entropy": entropy, "length": length}
    path.write_text(json.dumps(found) + "\n", "utf-8")
    return found


def _policy(folder: Path) -> RolloutPolicy:
    export = str(folder / "export")
    return RolloutPolicy.load(export, TokenizerSpec(export).load())


@torch.no_grad()
def _divergence_and_entropy(policy: RolloutPolicy, start: RolloutPolicy, prompt: Prompt, group: list[Answer]) -> Tensor:
    """``(2,)`` sums over the tokens of answers, each exact over the vocabulary."""
    asked = len(prompt.input_ids)
    rows = [torch.tensor([*prompt.input_ids, *(answer.token_ids or ())]) for answer in group]
    ids = pad_sequence(rows, batch_first=True)  # on the right, which no token before sees
    own, first = (model.model(ids).logits[:, asked - 1 : -1].log_softmax(-1) for model in (policy, start))
    lengths = torch.tensor([len(row) - asked for row in rows])
    answered = torch.arange(own.shape[1]) < lengths[:, None]  # (answers, tokens)
    chances = own.exp()
    divergence, entropy = (chances * (own - first)).sum(-1), -(chances * own).sum(-1)
    return torch.stack([divergence[answered].sum(), entropy[answered].sum()])


class Outcome(NamedTuple):
    """What one run of one seed gave.

    Attributes:
        accuracy: Share of held-out questions that are answered right, greedily.
        reward: Mean reward of the answers to held-out prompts at temperature 1.
        right: Number of right ones to each of these prompts, a digit each.
        kl: Divergence from the start on these answers, in nats per answer.
        entropy: Of an answer, in nats.
        length: Tokens of an answer.
        scores: Mean reward of each round's answers.
        kls: Each round's ``on_policy/kl``.
        entropies: Of each step's answers, in nats per token.
        steps: Optimizer steps.
        tokens: Tokens that were trained on, prompts included.
        clipped: Share of the tokens beyond the clip range in the direction in which they are clipped, mean over steps.
        ratio: Largest mean ratio of a step to 1, above or below.
        staleness: Most optimizer steps since an answer was sampled.
        seconds: Wall time.
    """

    accuracy: float
    reward: float
    right: str
    kl: float
    entropy: float
    length: float
    scores: list[float]
    kls: list[float]
    entropies: list[float]
    steps: int
    tokens: int
    clipped: float
    ratio: float
    staleness: int
    seconds: float


def outcome(folder: Path, start: Path, source: str) -> Outcome:
    """Read, and where it is missing measure, what a stage gave; arguments as of :func:`held_out`."""
    stage, measured = read_stage(folder), held_out(folder, start, source)
    clipped = _curve(stage, "train/clip/low") + _curve(stage, "train/clip/high")
    ratios = _curve(stage, "train/ratio")
    return Outcome(
        accuracy=accuracies([stage])[0],
        reward=fmean(map(int, measured["right"])) / ANSWERS,
        right=measured["right"],
        kl=measured["kl"],
        entropy=measured["entropy"],
        length=measured["length"],
        scores=_of_rounds(stage, "on_policy/score"),
        kls=_of_rounds(stage, "on_policy/kl"),
        entropies=_curve(stage, "train/entropy"),
        steps=len(_curve(stage, "train/loss")),
        tokens=sum(one["report"]["kept"]["tokens"] for one in stage.rounds),
        clipped=sum(clipped) / max(len(ratios), 1),
        ratio=max((abs(ratio - 1) for ratio in ratios), default=0.0),
        staleness=int(max(_curve(stage, "train/staleness"), default=0)),
        seconds=stage.seconds or 0.0,
    )


def _curve(stage: Stage, key: str) -> list[float]:
    return list(stage.curves.get(key, {}).values())


def _of_rounds(stage: Stage, key: str) -> list[float]:
    return [one["metrics"][key] for one in stage.rounds if key in one["metrics"]]
