"""Policy gradients beside TRL 1.16's trainers: their sampling, advantages, losses and gradients, over several steps.

TRL's trainer generates, scores and computes its loss by its own code. Ours gets the tokens and the rewards, packs each
prompt with its answers, and computes all else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from examples.cispo import CISPOLoss
from lion_lightning import PolicySpec
from lion_lightning.losses import K3, DAPOLoss, DrGRPOLoss, GRPOLoss, GSPOLoss, PolicyGradientLoss, RLOOLoss
from lion_lightning.models.policy import PolicyModel
from lion_lightning.ops.logprobs import group_views
from lion_lightning.types import AnswerLogps, PackedBatch, SumOver, TokenLogps
from tests import tiny
from tests.marks import exhaustive

trl_grpo = pytest.importorskip("trl.trainer.grpo_trainer", reason="needs the test extra: pip install -e '.[test]'")
trl_rloo = pytest.importorskip("trl.trainer.rloo_trainer")

PROMPTS = ("w3 w4 w5", "w10 w11 w12 w13", "w20 w21")
GROUP, LONGEST, STEPS = 4, 10, 3

CASES: dict[str, tuple[PolicyGradientLoss, dict[str, Any]]] = {
    "GRPO": (GRPOLoss(), {"loss_type": "grpo"}),
    "GRPO, k3": (GRPOLoss(beta=0.3, kl=K3(weighted=True)), {"loss_type": "grpo", "beta": 0.3}),
    "GRPO, not scaled": (GRPOLoss(scale=False), {"loss_type": "grpo", "scale_rewards": "none"}),
    "GRPO, asymmetric clip": (
        GRPOLoss(clip_low=0.1, clip_high=0.3),
        {"loss_type": "grpo", "epsilon_low": 0.1, "epsilon_high": 0.3},
    ),
    "Dr. GRPO, k3": (
        DrGRPOLoss(max_tokens=LONGEST, beta=0.3, kl=K3(weighted=True)),
        {"loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.3},
    ),
    "DAPO": (DAPOLoss(), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "DAPO, k3": (DAPOLoss(beta=0.3, kl=K3(weighted=True)), {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.3}),
    "TÜLU 3.1": (DAPOLoss(beta=0.01, clip_high=None, kl=K3(weighted=True)), {"loss_type": "bnpo", "beta": 0.01}),
    "GSPO": (
        GSPOLoss(),
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    ),
    "GSPO, k3": (
        GSPOLoss(clip_low=1e-3, clip_high=2e-3, beta=0.3, kl=K3(weighted=True)),
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 1e-3, "epsilon_high": 2e-3}
        | {"beta": 0.3},
    ),
    "CISPO": (CISPOLoss(clip_high=0.1), {"loss_type": "cispo", "epsilon_high": 1.1}),
    "RLOO": (RLOOLoss(beta=0.0), {"beta": 0.0}),
    "RLOO, KL in the reward": (RLOOLoss(beta=0.3), {"beta": 0.3}),
}


WHOLE = ("GRPO, k3", "DAPO", "GSPO", "RLOO, KL in the reward")
"""Cases whose gradients of all weights are compared in every run of the tests."""
LENGTHS: dict[type, float] = {GSPOLoss: 0.001, RLOOLoss: 0.01}
"""Of a step, for ratios of whole answers: shorter, so that not all of them are clipped."""


def reward(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    return [float(sum(ids) % 5) for ids in completion_ids]


class Side(NamedTuple):
    """A trainer of TRL, and the state that it starts every case from."""

    trainer: Any
    weights: dict[str, Tensor]
    settings: dict[str, Any]

    def prepare(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What TRL trains on: its own answers with their advantages, under these settings."""
        self.trainer.model.load_state_dict(self.weights)
        for name, value in (self.settings | settings).items():
            setattr(self.trainer, name, value)
        torch.manual_seed(1)
        inputs: dict[str, Any] = self.trainer._generate_and_score_completions(
            [{"prompt": prompt} for prompt in PROMPTS for _ in range(GROUP)]
        )
        return inputs

    def step(self, inputs: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
        """Loss and gradients."""
        model = self.trainer.model
        model.zero_grad()
        loss = self.trainer._compute_loss(model, inputs)
        torch.autograd.backward(loss)
        return loss.item(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in fp64, so that what differs is what is computed, with a tokenizer."""
    made = tiny.tokenizer_folder(tmp_path_factory.mktemp("model"))
    model = tiny.policy().causal_lm.double()
    model.set_attn_implementation("eager")
    model.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def sides(folder: Path) -> dict[str, Side]:
    """Both of TRL's trainers, their reference a little away from the policy."""
    datasets = pytest.importorskip("datasets")
    made = {}
    for kind, module in (("GRPO", trl_grpo), ("RLOO", trl_rloo)):
        trainer_class, config = getattr(module, f"{kind}Trainer"), getattr(module, f"{kind}Config")
        arguments = config(
            output_dir=str(folder / kind),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            beta=0.3,
            num_generations=GROUP,
            num_iterations=2,  # keeps the log-probs of the policy that sampled
            per_device_train_batch_size=GROUP * len(PROMPTS),
            max_completion_length=LONGEST,
            model_init_kwargs={"dtype": "auto"},
            generation_kwargs={"suppress_tokens": list(range(12, tiny.VOCABULARY))},  # so that some answers end
        )
        rows = datasets.Dataset.from_dict({"prompt": list(PROMPTS)})
        trainer = trainer_class(model=str(folder), reward_funcs=reward, args=arguments, train_dataset=rows)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        with torch.no_grad():
            trainer.ref_model.lm_head.weight.mul_(1.2)
        names = ("loss_type", "scale_rewards", "importance_sampling_level", "epsilon_low", "epsilon_high", "beta")
        settings = {name: getattr(trainer, name) for name in names if hasattr(trainer, name)} | {"beta": 0.0}
        weights = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
        made[kind] = Side(trainer, weights, settings)
    return made


class Given(dict[Any, Tensor]):
    """Log-probs of padded answers by model, in fp64: random ones, instead of what the models say."""

    def __call__(
        self, model: Any, ids: Tensor, mask: Tensor, length: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor, None]:
        if model not in self:
            self[model] = -5 * torch.rand(len(ids), length, dtype=torch.float64)
        return self[model], torch.zeros(len(ids), length), None


def packed(inputs: dict[str, Any]) -> PackedBatch:
    """TRL's padded rows as trees, with the rewards of their answers."""
    prompts, answers = (
        [row[mask.bool()] for row, mask in zip(inputs[f"{part}_ids"], inputs[f"{part}_mask"], strict=True)]
        for part in ("prompt", "completion")
    )
    rewards = reward([answer.tolist() for answer in answers])
    made, ids = [], []
    for first in range(0, len(answers), GROUP):
        group = slice(first, first + GROUP)
        made.append((len(prompts[first]), tuple(map(len, answers[group])), tuple(rewards[group])))
        ids += [prompts[first], *answers[group]]
    return replace(tiny.trees(*made), input_ids=torch.cat(ids), targets=torch.cat(answers))


class Ours:
    """Our side of a case: the loss over a policy of ours, from the same weights."""

    def __init__(self, folder: Path, loss: PolicyGradientLoss, side: Side, batch: PackedBatch) -> None:
        self.policy = PolicySpec(path=str(folder)).build()
        self.policy.causal_lm.double()
        self.loss, self.batch = loss.train(), batch
        [self.view] = group_views(batch)
        self.old = self.answers().detach()
        start = {name: weight.clone() for name, weight in self.policy.causal_lm.state_dict().items()}
        self.policy.causal_lm.load_state_dict(side.trainer.ref_model.state_dict())
        self.reference = self.answers().detach()
        self.policy.causal_lm.load_state_dict(start)

    def answers(self) -> AnswerLogps:
        return self.view.logps(self.policy(self.batch, partial(PolicyModel.logps, entropy=True)))

    def step(self) -> tuple[float, dict[str, Tensor], dict[str, SumOver]]:
        """Loss, gradients and what is logged."""
        self.policy.zero_grad()
        own = self.answers()
        given = own, self.reference, self.view.values, self.old
        loss = self.loss(*given).sum() / self.loss.num_items(own)
        torch.autograd.backward(loss)
        found = {
            name: weight.grad.clone()
            for name, weight in self.policy.causal_lm.named_parameters()
            if weight.grad is not None
        }
        return loss.item(), found, self.loss.metrics(*given)


@pytest.mark.parametrize("name", CASES)
def test_advantages_losses_and_gradients_by_token_equal_trl_in_fp64(
    name: str, sides: dict[str, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, settings = CASES[name]
    side, given = sides["RLOO" if isinstance(loss, RLOOLoss) else "GRPO"], Given()
    monkeypatch.setattr(side.trainer, "_get_per_token_logps_and_entropies", given)
    inputs, model = side.prepare(settings | {"beta": loss.beta}), side.trainer.model
    mask = inputs["completion_mask"].bool()
    old = given[model]
    given[model] = (old + 0.2 * torch.randn(old.shape, dtype=torch.float64)).requires_grad_()
    expected = side.trainer._compute_loss(model, inputs)

    [view] = group_views(packed(inputs))
    reference = given.get(side.trainer.ref_model, torch.zeros_like(old))
    policy, *others = (view.logps(TokenLogps(rows[mask])) for rows in (given[model], reference, old))
    value = loss(policy, others[0], view.values, others[1]).sum() / loss.num_items(policy)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-9)
    gradient, wanted = (torch.autograd.grad(each, given[model])[0] for each in (value, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-8)


def descend(trainer: Any, gradients: dict[str, Tensor], length: float) -> None:
    """A step down of this length, after which some tokens are clipped."""
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            weight.sub_(length * gradients[name] / norm)


@pytest.mark.parametrize("name", [*WHOLE, *exhaustive(*(name for name in CASES if name not in WHOLE))])
def test_losses_gradients_and_metrics_of_several_steps_equal_trl(
    name: str, folder: Path, sides: dict[str, Side]
) -> None:
    loss, settings = CASES[name]
    side = sides["RLOO" if isinstance(loss, RLOOLoss) else "GRPO"]
    inputs = side.prepare(settings)
    ours = Ours(folder, loss, side, packed(inputs))
    assert len(set(ours.view.answers.counts.flatten().tolist())) > 2  # ragged
    logged = side.trainer._metrics["train"]
    clipped = 0.0
    for _ in range(STEPS):
        expected, theirs = side.step(inputs)
        ours.policy.causal_lm.load_state_dict(side.trainer.model.state_dict())
        value, found, metrics = ours.step()
        size = torch.stack([gradient.norm() for gradient in theirs.values()]).norm()
        apart = torch.stack([(found[key] - gradient).norm() for key, gradient in theirs.items()]).norm()
        means = {key: (metric.total / metric.number).item() for key, metric in metrics.items()}
        clipped += means["clip/low"] + means["clip/high"]
        assert means["entropy"] == pytest.approx(logged["entropy"][-1], rel=1e-6)
        assert value == pytest.approx(expected, rel=1e-6, abs=1e-6)
        # TRL's ratio of whole answers is that of two fp32 sums of about 45 nats
        assert apart <= (1e-5 if isinstance(loss, RLOOLoss) else 1e-6) * size
        descend(side.trainer, theirs, LENGTHS.get(type(loss), 0.05))
    assert clipped > 0
