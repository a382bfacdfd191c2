"""What every stage gets from AlignmentModule: exact normalization, weight decay groups, checkpoints, seams."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW

from lion_lightning.losses import TokenLoss
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules import AlignmentModule, CosineWithWarmup, SFTModule
from lion_lightning.modules.checkpointing.resume import resumption
from lion_lightning.types import LossOutput, PackedBatch
from tests.marks import exhaustive
from tests.tiny import Rows, merge, row, shallow, trainer, weights_of

# Ten rows of 1 to 24 supervised tokens, so that a mean of means is far off; at four a step, the last step has two.
ROWS = [row(seed=seed, supervised=range(25 - seed**2 // 4, 25) if seed > 1 else None) for seed in range(10)]
STEP = 4


class Recorder(SFTModule):
    """Keeps the gradients that each optimizer step sees."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        super().on_before_optimizer_step(optimizer)
        self.seen.append({n: p.grad.clone() for n, p in self.named_parameters() if p.grad is not None})


def module(tokenizer: TokenizerSpec, kind: Any = Recorder, spec: PolicySpec | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    made = kind(spec or PolicySpec(config=shallow()), tokenizer=tokenizer, **({"optimizer": sgd} | options))
    made.configure_model()
    return made


def sgd(groups: Any) -> SGD:
    return SGD(groups, lr=0.1)


def fit(made: Any, rows: Any, **options: Any) -> Any:
    run = trainer(**({"max_epochs": 1} | options))
    run.fit(made, Rows(rows))
    return run


def by_hand(made: Any, rows: list[PackedBatch], divide: bool = True) -> dict[str, Tensor]:
    """Gradient of the mean (or sum) over all supervised tokens of all rows, in one backward."""
    made.zero_grad()
    logps = torch.cat([made.policy_model(batch).values for batch in rows])
    torch.autograd.backward(-logps.mean() if divide else -logps.sum())
    gradients = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    made.zero_grad()
    return gradients


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor], relative: float = 1e-6) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert (actual[name] - value).norm() <= relative * value.norm(), name


@pytest.mark.parametrize(("micro", "accumulation"), [(4, 1), (1, 4), *exhaustive((2, 2))])
def test_gradients_do_not_depend_on_how_rows_of_unequal_supervision_are_split(
    tokenizer: TokenizerSpec, micro: int, accumulation: int
) -> None:
    assert len({len(batch.targets) for batch in ROWS}) > 5
    made = module(tokenizer)
    batches = [merge(ROWS[start : start + micro]) for start in range(0, len(ROWS), micro)]
    fit(made, batches, accumulate_grad_batches=accumulation)
    assert len(made.seen) == 3  # the last step has two rows, and for micro-batches of 1 a window that is half full

    reference = module(tokenizer)
    for step, seen in enumerate(made.seen):
        expected = by_hand(reference, ROWS[step * STEP : (step + 1) * STEP])
        assert_equal(seen, expected, 1e-6 if step == 0 else 1e-5)  # weights differ by rounding after the first
        with torch.no_grad():
            for name, parameter in reference.named_parameters():
                parameter -= 0.1 * expected[name]
    assert_equal(dict(made.named_parameters()), dict(reference.named_parameters()))


def test_reduction_sum_divides_by_nothing_however_rows_are_split(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer, reduction="sum")
    fit(made, ROWS[:STEP], accumulate_grad_batches=4)
    assert_equal(made.seen[0], by_hand(module(tokenizer), ROWS[:STEP], divide=False))


@pytest.mark.parametrize(("micro", "accumulation"), [(4, 1), (2, 2), (1, 4)])
def test_weighted_gradients_do_not_depend_on_how_rows_are_split(
    tokenizer: TokenizerSpec, micro: int, accumulation: int
) -> None:
    rows = [ROWS[0], *(replace(b, target_weights=torch.rand(len(b.targets)) / 40) for b in ROWS[7:9]), ROWS[9]]
    rows[3] = replace(rows[3], target_weights=torch.full((len(rows[3].targets),), 2.0))
    made = module(tokenizer)
    fit(
        made, [merge(rows[start : start + micro]) for start in range(0, 4, micro)], accumulate_grad_batches=accumulation
    )
    weights, reference = torch.cat([weights_of(batch) for batch in rows]), module(tokenizer)
    logps = torch.cat([reference.policy_model(batch).values for batch in rows])
    torch.autograd.backward(-(logps * weights).sum() / weights.sum())
    expected = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    assert_equal(made.seen[0], expected)


def test_a_last_window_that_is_half_full_is_divided_by_its_own_tokens(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer)
    fit(made, ROWS[:3], accumulate_grad_batches=2)
    alone = module(tokenizer)
    fit(alone, ROWS[:2], accumulate_grad_batches=2)
    assert_equal(made.seen[1], by_hand(alone, ROWS[2:3]), 1e-5)


def test_a_window_without_any_target_moves_nothing_and_is_not_nan(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer)
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    run = fit(made, [ROWS[0].without_targets()] * 2, accumulate_grad_batches=2)
    assert all(torch.equal(p, before[name]) for name, p in made.named_parameters())
    assert run.callback_metrics["train/loss"] == 0


def test_an_empty_micro_batch_changes_nothing_of_its_window(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer)
    fit(made, [ROWS[0], ROWS[1].without_targets()], accumulate_grad_batches=2)
    assert_equal(made.seen[0], by_hand(module(tokenizer), ROWS[:1]))


def test_clipping_acts_on_the_normalized_gradient(tokenizer: TokenizerSpec) -> None:
    norm = float(torch.stack([g.norm() for g in by_hand(module(tokenizer), ROWS[:STEP]).values()]).norm())
    for limit in (norm / 2, norm * 2):  # sums over the step's tokens are some 50 times larger: both would be clipped
        made = module(tokenizer)
        before = {name: p.detach().clone() for name, p in made.named_parameters()}
        run = fit(made, ROWS[:STEP], accumulate_grad_batches=STEP, gradient_clip_val=limit)
        moved = torch.stack([(p.detach() - before[n]).norm() for n, p in made.named_parameters()]).norm() / 0.1
        assert moved.item() == pytest.approx(min(norm, limit), rel=1e-4)
        assert run.callback_metrics["train/grad_norm"].item() == pytest.approx(norm, rel=1e-5)  # before clipping


def test_bf16_mixed_precision_trains_fp32_weights(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer)
    run = fit(made, ROWS[:STEP], accumulate_grad_batches=STEP, precision="bf16-mixed")
    assert {p.dtype for p in made.policy_model.parameters()} == {torch.float32}
    exact = module(tokenizer)
    reference = fit(exact, ROWS[:STEP], accumulate_grad_batches=STEP)
    losses = [result.callback_metrics["train/loss"].item() for result in (run, reference)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    assert losses[0] != losses[1]
    assert_equal(made.seen[0], exact.seen[0], 0.1)


def test_bf16_true_takes_packed_batches_through_lightnings_conversion(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer, spec=PolicySpec(config=shallow(), dtype="bfloat16"))
    run = fit(made, ROWS[:STEP], accumulate_grad_batches=STEP, precision="bf16-true")
    assert {p.dtype for p in made.policy_model.parameters()} == {torch.bfloat16}
    exact = fit(module(tokenizer), ROWS[:STEP], accumulate_grad_batches=STEP)
    losses = [result.callback_metrics["train/loss"].item() for result in (run, exact)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


def test_norms_and_biases_take_no_weight_decay(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer, spec=PolicySpec(config=shallow("qwen2")), optimizer=lambda g: AdamW(g, weight_decay=0.5))
    groups = made.configure_optimizers().param_groups
    names = {id(parameter): name for name, parameter in made.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert all("norm" in name or name.endswith("bias") for name in free)
    assert sum("norm" in name for name in free) == 3
    assert sum(name.endswith("bias") for name in free) == 3
    assert decayed | free == set(names.values())
    assert not any("norm" in name or name.endswith("bias") for name in decayed)


def test_frozen_weights_are_in_no_group_and_row_masked_embeddings_take_no_decay(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer, spec=PolicySpec(config=shallow(), lora=LoRASpec(r=2)))
    assert all(p.requires_grad for group in made.parameter_groups() for p in group["params"])
    masked = module(tokenizer, spec=PolicySpec(config=shallow(), trainable_rows=90))
    shapes = [[tuple(p.shape) for p in group["params"]] for group in masked.parameter_groups()]
    assert (101, 32) not in shapes[0]
    assert shapes[1].count((101, 32)) == 2


def test_the_schedule_learns_the_runs_length_and_steps_once_an_optimizer_step(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer, lr_scheduler=CosineWithWarmup)
    run = fit(made, ROWS, accumulate_grad_batches=4, max_epochs=2)
    schedule = run.lr_scheduler_configs[0].scheduler
    assert (schedule.total_steps, schedule.last_epoch) == (6, 6)
    given = module(tokenizer, lr_scheduler=lambda optimizer: CosineWithWarmup(optimizer, total_steps=100))
    assert fit(given, ROWS[:2]).lr_scheduler_configs[0].scheduler.total_steps == 100


class Confident(TokenLoss):
    """A loss of a user's own, with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.floor = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, logps: Tensor) -> Tensor:
        return -logps * (1 - logps.detach().exp()) + 0 * self.floor


def test_a_checkpoint_holds_plain_data_and_loads_with_and_without_the_injected_parts(
    tokenizer: TokenizerSpec, tmp_path: Path
) -> None:
    made = module(tokenizer, SFTModule, loss=Confident(), reduction="sum")
    fit(made, ROWS[:2]).save_checkpoint(tmp_path / "last.ckpt")
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["hyper_parameters"]["reduction"] == "sum"
    assert content["hyper_parameters"]["policy"]["config"] == shallow()
    loaded = SFTModule.load_from_checkpoint(tmp_path / "last.ckpt", loss=Confident(), optimizer=sgd, map_location="cpu")
    assert loaded.reduction == "sum"
    assert_equal(loaded.state_dict(), made.state_dict(), 0.0)
    fit(loaded, ROWS[:2])


def test_building_the_model_twice_builds_it_once(tokenizer: TokenizerSpec) -> None:
    made = module(tokenizer)
    first = made.policy
    made.configure_model()
    assert made.policy is first
    with pytest.raises(RuntimeError, match="built in configure_model"):
        _ = SFTModule(PolicySpec(config=shallow()), tokenizer=tokenizer).policy_model


def test_a_subclass_may_override_compute_loss_for_what_a_loss_cannot_say(tokenizer: TokenizerSpec) -> None:
    class PerDocument(AlignmentModule):
        """Every document weighs the same, however long."""

        def compute_loss(self, batch: PackedBatch) -> LossOutput:
            values = self.policy_model(batch).values
            means = [-values[batch.target_segments == s].mean() for s in set(batch.target_segments.tolist())]
            return LossOutput(torch.stack(means).sum(), torch.tensor(len(means)), {"documents": torch.tensor(7.0)})

    made = module(tokenizer, PerDocument)
    with torch.no_grad():
        totals = [made.compute_loss(batch) for batch in ROWS[:2]]
    expected = sum(output.total for output in totals) / sum(output.num_items for output in totals)
    metrics = fit(made, ROWS[:2], accumulate_grad_batches=2).callback_metrics
    assert metrics["train/loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert metrics["train/documents"].item() == pytest.approx(14 / sum(int(output.num_items) for output in totals))
    assert math.isfinite(metrics["train/grad_norm"])


def test_trainable_rows_new_are_those_of_the_added_tokens_and_none_is_an_error(tokenizer: TokenizerSpec) -> None:
    spec = PolicySpec(config=shallow(), trainable_rows="new")
    added = replace(tokenizer, special_tokens=("<|im_end|>", "<a>", "<b>"))
    made = module(added, spec=spec)
    fit(made, ROWS[:1])
    for name, gradient in made.seen[0].items():
        if len(gradient) == 103:
            assert set(gradient.any(1).nonzero().flatten().tolist()) <= {101, 102}, name
    assert made.seen[0]["policy.model.lm_head.weight"][101:].any(1).all()
    with pytest.raises(ValueError, match=r"rows none are not within.*special_tokens for `new`"):
        module(tokenizer, spec=spec)


def test_a_policy_from_a_mapping_needs_a_tokenizer_and_says_so() -> None:
    with pytest.raises(ValueError, match=r"model\.tokenizer: give a tokenizer"):
        SFTModule(PolicySpec(config=shallow()))


def test_a_checkpoint_of_another_lightning_is_left_alone_with_a_warning() -> None:
    checkpoint = {"loops": {"fit_loop": {"counters": {"batch": 3}}}}
    with pytest.warns(UserWarning, match="may be inexact"):
        resumption(checkpoint, trainer())
    assert checkpoint == {"loops": {"fit_loop": {"counters": {"batch": 3}}}}
