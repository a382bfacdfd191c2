"""References: the first pass does each answer once, goes on after a kill, and never scores with the wrong weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lion_lightning.distributed.ranks import Ranks
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.weights.hash import hash_tensors
from lion_lightning.references import scoring as passes
from lion_lightning.references.base import FrozenReference, MixedReference, NoReference
from lion_lightning.references.cached import CachedReference, RefreshedReference
from lion_lightning.types import PackedBatch
from tests.tiny import config, pairs, policy

BATCHES = [pairs((5, 4, 7), (3, 6, 2), seed=1), pairs((4, 1, 3), seed=2), pairs((2, 5, 5), seed=3)]


class Counting(nn.Module):
    """Counts the forwards of a policy."""

    def __init__(self, model: PolicyModel) -> None:
        super().__init__()
        self.forwards = 0
        model.register_forward_pre_hook(self.count)

    def count(self, *_: Any) -> None:
        self.forwards += 1


def never(spec: PolicySpec | None) -> PolicyModel:
    raise AssertionError("nothing has to be built")


def live(model: PolicyModel, batch: PackedBatch) -> Tensor:
    with torch.no_grad():
        values: Tensor = model(batch).values
    return values


def attached(model: PolicyModel, build: Any = never, **options: Any) -> CachedReference:
    reference = CachedReference(**options)
    reference.attach(model, build)
    return reference


def change(model: PolicyModel, by: float = 0.1) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))


def test_cached_log_probs_are_those_of_the_live_model(tmp_path: Path) -> None:
    model = policy()
    reference = attached(model, cache_dir=tmp_path)
    reference.precompute(BATCHES, model, Ranks(), "training")
    for batch in BATCHES:
        torch.testing.assert_close(reference(batch, model).values, live(model, batch), rtol=1e-6, atol=1e-6)


def test_a_second_start_computes_nothing(tmp_path: Path) -> None:
    model = policy()
    count = Counting(model)
    attached(model, cache_dir=tmp_path).precompute(BATCHES, model, Ranks(), "training")
    assert count.forwards == len(BATCHES)
    again = attached(model, cache_dir=tmp_path)
    again.precompute(BATCHES, model, Ranks(), "training")
    assert count.forwards == len(BATCHES)
    assert len(again(BATCHES[0], model).values) == 19


def test_only_new_batches_are_computed(tmp_path: Path) -> None:
    model = policy()
    count = Counting(model)
    attached(model, cache_dir=tmp_path).precompute(BATCHES[:2], model, Ranks(), "training")
    attached(model, cache_dir=tmp_path).precompute(BATCHES, model, Ranks(), "training")
    assert count.forwards == len(BATCHES)


def test_a_killed_pass_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "FLUSH_SECONDS", 0.0)
    model = policy()
    count = Counting(model)

    def killed() -> Iterator[PackedBatch]:
        yield from BATCHES[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attached(model, cache_dir=tmp_path).precompute(killed(), model, Ranks(), "training")
    attached(model, cache_dir=tmp_path).precompute(BATCHES, model, Ranks(), "training")
    assert count.forwards == len(BATCHES)


@pytest.mark.parametrize("what", ["weights", "precision", "attention"])
def test_another_model_precision_or_attention_is_computed_anew(tmp_path: Path, what: str) -> None:
    attached(policy(), cache_dir=tmp_path).precompute(BATCHES, policy(), Ranks(), "training")
    model = policy(attention="lion_dense" if what == "attention" else "lion")
    if what == "weights":
        change(model)
    count = Counting(model)
    ranks = Ranks(precision="bf16-mixed" if what == "precision" else "32-true")
    reference = attached(model, cache_dir=tmp_path)
    reference.precompute(BATCHES, model, ranks, "training")
    assert count.forwards == len(BATCHES)
    torch.testing.assert_close(reference(BATCHES[0], model).values, live(model, BATCHES[0]))


def test_a_trained_policy_never_scores_for_its_reference(tmp_path: Path) -> None:
    model, start = policy(), policy()
    reference = attached(model, build=lambda spec: policy(), cache_dir=tmp_path)
    change(model)
    reference.precompute(BATCHES, model, Ranks(), "evaluation")
    torch.testing.assert_close(reference(BATCHES[0], model).values, live(start, BATCHES[0]))


def test_a_starting_model_that_is_gone_is_an_error(tmp_path: Path) -> None:
    model, other = policy(), policy()
    change(other)
    reference = attached(model, build=lambda spec: other, cache_dir=tmp_path)
    change(model)
    with pytest.raises(ValueError, match="the model that they come from is gone"):
        reference.precompute(BATCHES, model, Ranks(), "evaluation")


def test_an_uncached_answer_is_an_error_not_a_zero(tmp_path: Path) -> None:
    model = policy()
    reference = attached(model, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="precompute"):
        reference(BATCHES[0], model)
    reference.precompute(BATCHES[:1], model, Ranks(), "training")
    with pytest.raises(ValueError, match="no reference log-probs for 2"):
        reference(BATCHES[1], model)


def test_another_model_by_name_is_cached_or_held(tmp_path: Path) -> None:
    other = policy()
    change(other)
    other.causal_lm.save_pretrained(tmp_path / "other")
    model = policy()
    build = lambda spec: spec.build()  # noqa: E731
    cached = CachedReference(str(tmp_path / "other"), tmp_path / "cache")
    held = FrozenReference(PolicySpec(path=str(tmp_path / "other")))
    for reference in (cached, held):
        reference.attach(model, build)
        reference.precompute(BATCHES, model, Ranks(), "training")
        torch.testing.assert_close(reference(BATCHES[0], model).values, live(other, BATCHES[0]))


def test_a_frozen_copy_stays_when_the_policy_moves_and_gets_no_gradient() -> None:
    model, start = policy(), policy()
    reference = FrozenReference()
    reference.attach(model, never)
    reference.attach(model, never)  # Lightning configures more than once
    change(model)
    torch.testing.assert_close(reference(BATCHES[0], model).values, live(start, BATCHES[0]))
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert not reference.train().training


def test_a_model_that_is_not_there_is_named_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^model\.reference\.model: \./none does not exist"):
        FrozenReference("./none").attach(policy(), lambda spec: spec.build() if spec else never(spec))


def test_mixing_takes_alpha_of_the_policy_every_k_steps() -> None:
    model, start = policy(), dict(policy().named_parameters())
    reference = MixedReference(alpha=0.25, every_n_steps=2)
    reference.attach(model, never)
    change(model)
    reference.after_step(1, model)
    own = dict(reference.model.named_parameters())  # type: ignore[union-attr]
    assert all(torch.equal(own[name], value) for name, value in start.items())
    reference.after_step(2, model)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(own[name], 0.25 * parameter + 0.75 * start[name])


def test_a_refreshed_reference_becomes_the_policy_of_the_moment(tmp_path: Path) -> None:
    model, start = policy(), policy()
    reference = RefreshedReference(every_n_epochs=2, cache_dir=tmp_path)
    reference.attach(model, never)
    reference.precompute(BATCHES, model, Ranks(), "training")
    change(model)
    assert not reference.before_epoch(0, model)
    assert not reference.before_epoch(1, model)
    torch.testing.assert_close(reference(BATCHES[0], model).values, live(start, BATCHES[0]))
    assert reference.before_epoch(2, model)
    reference.precompute(BATCHES, model, Ranks(), "training")
    torch.testing.assert_close(reference(BATCHES[0], model).values, live(model, BATCHES[0]))


def test_no_reference_is_zero() -> None:
    zero = NoReference()(BATCHES[0], policy())
    assert zero.values.tolist() == [0.0] * 19  # answers of 4, 7, 6 and 2 tokens


def test_a_digest_sees_one_changed_weight_its_dtype_and_its_name() -> None:
    weight = torch.ones(3)
    same = hash_tensors([("a", weight)])
    assert hash_tensors([("a", weight.clone())]) == same
    changed = [{"b": weight}, {"a": weight.double()}, {"a": weight[None]}, {"a": torch.tensor([1.0, 1.0, 1.0001])}]
    assert same not in [hash_tensors(other.items()) for other in changed]


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: MixedReference(alpha=0.0), "alpha is 0.0"),
        (lambda: MixedReference(every_n_steps=0), "every_n_steps is 0"),
        (lambda: RefreshedReference(0), "every_n_epochs is 0"),
    ],
)
def test_arguments_out_of_range_are_named(make: Any, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        make()


def test_the_reference_pass_keeps_the_policys_training_mode_and_makes_no_graph(tmp_path: Path) -> None:
    model = PolicySpec(config=config()).build()
    assert model.training
    reference = attached(model, cache_dir=tmp_path)
    reference.precompute(BATCHES, model, Ranks(), "training")
    assert model.training
    assert not reference(BATCHES[0], model).values.requires_grad
