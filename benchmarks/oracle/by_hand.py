"""The papers' equations in plain torch, one sequence at a time: nothing of ours, of TRL's or of a trainer's.

Each objective is a function from the rows of an optimizer step, a list a micro-batch, to its loss.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.oracle.comparison import Settings, Step
from benchmarks.oracle.rows import Prepared, Row, grouped

MicroBatches = list[list[Row]]
Turns = list[dict[str, str]]
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of AdamW."""


class Models:
    """The policy, and its copy before training as the reference.

    Args:
        prepared: Rows and models.
        settings: Settings of the training.
        reward: True for a reward model.
    """

    def __init__(self, prepared: Prepared, settings: Settings, reward: bool = False) -> None:
        folder = prepared.model("reward" if reward else "policy")
        kind: Any = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
        self.policy = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation=settings.attention)
        self.reference = copy.deepcopy(self.policy)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def ids(self, prompt: Turns, answer: Turns) -> tuple[list[int], list[int]]:
        """Tokens of a prompt with the start of an answer, and of the answer with its end."""
        render = partial(self.tokenizer.apply_chat_template, return_dict=False)
        before, both = render(prompt, add_generation_prompt=True), render(prompt + answer)
        assert both[: len(before)] == before
        return before, both[len(before) :]

    def logps(self, prompt: Turns, answer: Turns, model: Any = None) -> Tensor:
        """``(tokens,)`` log-probs of an answer's tokens; the policy's where no model is given."""
        before, after = self.ids(prompt, answer)
        logits = (model or self.policy)(torch.tensor([before + after])).logits[0]  # (tokens, vocabulary)
        predicted = logits[len(before) - 1 : -1].log_softmax(-1)  # each position predicts the token after it
        return predicted[torch.arange(len(after)), torch.tensor(after)]

    def both(self, prompt: Turns, answer: Turns) -> tuple[Tensor, Tensor]:
        """``(tokens,)`` log-probs of policy and reference."""
        with torch.no_grad():
            reference = self.logps(prompt, answer, self.reference)
        return self.logps(prompt, answer), reference


Objective = Callable[[Models, MicroBatches], Tensor]


class Answer(NamedTuple):
    """An answer of a pair: ``(tokens,)`` log-probs of policy and reference."""

    policy: Tensor
    reference: Tensor

    @property
    def ratio(self) -> Tensor:
        """Log-ratio of the policy to the reference."""
        return (self.policy - self.reference).sum()


def train(kind: str, objective: Objective, prepared: Prepared, settings: Settings) -> list[Step]:
    """Train with AdamW (arXiv 1711.05101, algorithm 2) at a constant rate.

    Args:
        kind: Kind of the rows.
        objective: Gives the loss of a step.
        prepared: Rows and models.
        settings: Settings of the training.
    """
    models = Models(prepared, settings, reward=objective is reward)
    rows = prepared.rows(kind)
    for row, following in zip(rows, [*rows[1:], rows[0]], strict=True):
        row["mismatched"] = following.get("completion")  # which our data module adds, too
    weights = [weight for weight in models.policy.parameters() if weight.requires_grad]
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    done = []
    for number, step in enumerate(_steps(rows[: settings.rows], settings), 1):
        loss = objective(models, step)
        gradients = torch.autograd.grad(loss, weights)
        norm = math.sqrt(sum(gradient.double().square().sum().item() for gradient in gradients))
        done.append(Step(loss.item(), norm))
        shrink = min(1.0, settings.clip / norm) if settings.clip else 1.0
        for weight, gradient, m, v in zip(weights, gradients, first, second, strict=True):
            _adamw(weight, shrink * gradient, m, v, number, settings)
    return done


def _steps(rows: list[Row], settings: Settings) -> Iterator[MicroBatches]:
    """The micro-batches of each optimizer step."""
    yield from grouped(grouped(rows, settings.micro_batch), settings.accumulate)


@torch.no_grad()
def _adamw(weight: nn.Parameter, gradient: Tensor, m: Tensor, v: Tensor, number: int, settings: Settings) -> None:
    """Lines 7 to 12 of the algorithm; norms do not decay."""
    m.mul_(BETAS[0]).add_((1 - BETAS[0]) * gradient)  # line 7
    v.mul_(BETAS[1]).add_((1 - BETAS[1]) * gradient.square())  # line 8
    unbiased = m / (1 - BETAS[0] ** number), v / (1 - BETAS[1] ** number)  # lines 9 and 10
    decay = settings.weight_decay if weight.dim() > 1 else 0.0
    # line 12, its two terms one after the other
    weight.mul_(1 - settings.learning_rate * decay)
    weight.sub_(settings.learning_rate * unbiased[0] / (unbiased[1].sqrt() + EPSILON))


def _flat(step: MicroBatches) -> Iterator[Row]:
    return (row for rows in step for row in rows)  # losses are means over the step, not over its micro-batches


def sft(models: Models, step: MicroBatches) -> Tensor:
    """Negative log-likelihood, the mean over the answers' tokens of the step."""
    logps = torch.cat([models.logps(row["prompt"], row["completion"]) for row in _flat(step)])
    return -logps.mean()


def of_pairs(loss: Callable[[Answer, Answer], Tensor]) -> Objective:
    """The mean over the pairs of the step.

    Args:
        loss: Of a pair, from the chosen answer and the rejected one.
    """

    def objective(models: Models, step: MicroBatches) -> Tensor:
        losses = []
        for row in _flat(step):
            chosen, rejected = (Answer(*models.both(row["prompt"], row[name])) for name in ("chosen", "rejected"))
            losses.append(loss(chosen, rejected))
        return torch.stack(losses).mean()

    return objective


def dpo(chosen: Answer, rejected: Answer, beta: float = 0.1, smoothing: float = 0.0) -> Tensor:
    """DPO (arXiv 2305.18290), equation 7; with smoothing conservative DPO, its authors' note on noisy labels."""
    margin = beta * (chosen.ratio - rejected.ratio)
    return -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)


def ipo(chosen: Answer, rejected: Answer, beta: float = 0.1) -> Tensor:
    """IPO (arXiv 2310.12036), equation 17, of log-ratios a token."""
    ratios = [answer.ratio / len(answer.policy) for answer in (chosen, rejected)]
    return (ratios[0] - ratios[1] - 1 / (2 * beta)) ** 2


def rpo(chosen: Answer, rejected: Answer, beta: float = 0.1) -> Tensor:
    """DPO and the chosen answer's likelihood a token (arXiv 2405.16436, 2411.10442), in equal weights."""
    return dpo(chosen, rejected, beta) - chosen.policy.mean()


def simpo(chosen: Answer, rejected: Answer, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    """SimPO (arXiv 2405.14734)."""
    return -logsigmoid(beta * (chosen.policy.mean() - rejected.policy.mean()) - gamma)


def cpo(chosen: Answer, rejected: Answer, beta: float = 0.1) -> Tensor:
    """CPO (arXiv 2401.08417), its likelihood a token."""
    return -logsigmoid(beta * (chosen.policy.sum() - rejected.policy.sum())) - chosen.policy.mean()


def orpo(chosen: Answer, rejected: Answer, beta: float = 0.1) -> Tensor:
    """ORPO (arXiv 2403.07691), equation 7 with the odds of equation 4; the likelihood is the answer's."""
    means = [answer.policy.mean() for answer in (chosen, rejected)]
    log_odds = [mean - torch.log(1 - mean.exp()) for mean in means]
    return -means[0] - beta * logsigmoid(log_odds[0] - log_odds[1])


def dpop(chosen: Answer, rejected: Answer, beta: float = 0.3, penalty: float = 50.0) -> Tensor:
    """DPO-positive (arXiv 2402.13228)."""
    lost = torch.relu(-chosen.ratio)
    return -logsigmoid(beta * (chosen.ratio - rejected.ratio - penalty * lost))


def r_dpo(chosen: Answer, rejected: Answer, beta: float = 0.1, alpha: float = 0.01) -> Tensor:
    """R-DPO (arXiv 2403.19159): lengths enter the margin."""
    longer = len(chosen.policy) - len(rejected.policy)
    return -logsigmoid(beta * (chosen.ratio - rejected.ratio) + alpha * longer)


class BCO:
    """Binary classifier optimization of pairs (arXiv 2404.04656), its shift the mean reward of all steps before."""

    def __init__(self, beta: float = 0.1) -> None:
        self.beta = beta
        self.before: list[float] = []

    def __call__(self, models: Models, step: MicroBatches) -> Tensor:
        """The mean over the pairs of the step."""
        shift = sum(self.before) / max(len(self.before), 1)
        losses = []
        for row in _flat(step):
            ratios = [Answer(*models.both(row["prompt"], row[name])).ratio for name in ("chosen", "rejected")]
            wanted, unwanted = (self.beta * ratio for ratio in ratios)
            losses.append(-logsigmoid(wanted - shift) - logsigmoid(shift - unwanted))
            self.before += [wanted.item(), unwanted.item()]
        return torch.stack(losses).mean()


def kto(models: Models, step: MicroBatches, beta: float = 0.1) -> Tensor:
    """KTO (arXiv 2402.01306), equations 7 and 8 with weights of 1; a row's mismatched answer is the next row's.

    The reference point is of a micro-batch, as it is on both other sides.
    """
    losses = []
    for rows in step:
        with torch.no_grad():
            mismatched = [Answer(*models.both(row["prompt"], row["mismatched"])).ratio for row in rows]
            point = torch.stack(mismatched).mean().clamp(min=0)  # z_0
        for row in rows:
            ratio = Answer(*models.both(row["prompt"], row["completion"])).ratio
            value = torch.sigmoid(beta * (ratio - point if row["label"] else point - ratio))
            losses.append(1 - value)
    return torch.stack(losses).mean()


def reward(models: Models, step: MicroBatches) -> Tensor:
    """Bradley and Terry (1952), for answers arXiv 2203.02155, equation 1: a sequence's score is of its last token."""

    def score(prompt: Turns, answer: Turns) -> Tensor:
        before, after = models.ids(prompt, answer)
        states = models.policy.model(torch.tensor([before + after])).last_hidden_state[0]
        return models.policy.score(states[-1]).squeeze(0)

    margins = [score(row["prompt"], row["chosen"]) - score(row["prompt"], row["rejected"]) for row in _flat(step)]
    return -logsigmoid(torch.stack(margins)).mean()


class GRPO:
    """GRPO (arXiv 2402.03300), equations 3 and 4: k3 in the loss, the policy of the round's beginning kept.

    Args:
        beta: Weight of the divergence.
        clip: How far from 1 a ratio counts.
        updates: Optimizer steps on a round.
    """

    def __init__(self, beta: float = 0.0, clip: float = 0.2, updates: int = 1) -> None:
        self.beta, self.clip, self.updates = beta, clip, updates
        self.steps = 0
        self.old: Any = None

    def __call__(self, models: Models, step: MicroBatches) -> Tensor:
        """The mean over prompts of the mean over answers of the mean over tokens."""
        if self.steps % self.updates == 0:
            self.old = copy.deepcopy(models.policy)
        self.steps += 1
        return torch.stack([self._group(models, row) for row in _flat(step)]).mean()

    def _group(self, models: Models, row: Row) -> Tensor:
        rewards = torch.tensor(row["scores"])
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)  # as both other sides keep it from 0
        losses = []
        for answer, advantage in zip(row["answers"], advantages, strict=True):
            logps, reference = models.both(row["prompt"], answer)
            with torch.no_grad():
                old = models.logps(row["prompt"], answer, self.old)
            ratios = (logps - old).exp()
            clipped = ratios.clamp(1 - self.clip, 1 + self.clip)
            divergence = (reference - logps).exp() - (reference - logps) - 1  # equation 4
            tokens = torch.minimum(ratios * advantage, clipped * advantage) - self.beta * divergence
            losses.append(-tokens.mean())
        return torch.stack(losses).mean()
