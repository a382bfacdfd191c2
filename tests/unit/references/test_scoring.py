"""Each answer to a prompt is scored once: in whatever tree, row or pass it comes again, and whatever the objective."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lion_lightning.data.packing.collate import collate
from lion_lightning.distributed.ranks import Ranks
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.references.base import FrozenReference, NoReference, Reference
from lion_lightning.references.cached import CachedReference
from lion_lightning.types import PackedBatch, Sample, SampleSegment
from tests.tiny import config, policy

PROMPTS = ((5, 6, 7), (8, 9))
ANSWERS = ((10, 11, 12), (13,), (14, 15), (16, 17, 18, 19))


def tree(prompt: Sequence[int], *answers: Sequence[int]) -> Sample:
    def segment(tokens: Sequence[int], parent: int) -> SampleSegment:
        return SampleSegment(np.array(tokens, np.int32), np.full(len(tokens), parent >= 0), parent)

    values = tuple(float(number) for number in range(len(answers)))
    return Sample((segment(prompt, -1), *(segment(tokens, 0) for tokens in answers)), 0, values=values)


def batch(*samples: Sample) -> PackedBatch:
    return collate(samples, 64)


class Forwards:
    """Tokens of each forward of a model, while its references are computed."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.tokens: list[int] = []
        model.register_forward_pre_hook(lambda _, inputs: self.tokens.append(len(inputs[0].input_ids)))

    def precompute(self, *batches: PackedBatch) -> CachedReference:
        self.tokens.clear()
        reference = CachedReference(cache_dir=self.folder)
        reference.attach(self.model, lambda spec: self.model)
        reference.precompute(batches, self.model, Ranks(), "training")
        return reference


@pytest.fixture
def forwards(tmp_path: Path) -> Forwards:
    return Forwards(policy(), tmp_path)


RANKED = batch(tree(PROMPTS[0], *ANSWERS), tree(PROMPTS[1], ANSWERS[0], ANSWERS[1]))


def assert_live(reference: Reference, model: Any, *batches: PackedBatch) -> None:
    for each in batches:
        with torch.no_grad():
            torch.testing.assert_close(reference(each, model).values, model(each).values, rtol=0, atol=1e-6)


def test_an_answer_in_another_tree_row_or_order_is_not_scored_again(forwards: Forwards) -> None:
    forwards.precompute(RANKED)
    assert forwards.tokens == [3 + 10 + 2 + 4]
    others = [
        batch(tree(PROMPTS[0], ANSWERS[3], ANSWERS[1])),  # a pair of it
        batch(tree(PROMPTS[1], ANSWERS[1])),  # one answer with a label
        batch(tree(PROMPTS[1], ANSWERS[1], ANSWERS[0]), tree(PROMPTS[0], *ANSWERS[:2]), tree(PROMPTS[0], *ANSWERS[2:])),
    ]
    reference = forwards.precompute(*others)
    assert forwards.tokens == []
    assert_live(reference, forwards.model, RANKED, *others)


def test_of_a_batch_the_uncached_answers_are_computed_with_their_prompts_alone(forwards: Forwards) -> None:
    forwards.precompute(batch(tree(PROMPTS[0], *ANSWERS[:2])))
    reference = forwards.precompute(RANKED)
    assert forwards.tokens == [(3 + 2 + 4) + (2 + 3 + 1)]
    assert_live(reference, forwards.model, RANKED)


def test_the_same_answer_to_another_prompt_is_another(forwards: Forwards) -> None:
    batches = [batch(tree(prompt, ANSWERS[0])) for prompt in PROMPTS]
    reference = forwards.precompute(*batches)
    assert forwards.tokens == [6, 5]
    assert_live(reference, forwards.model, *batches)


def test_an_answer_twice_in_a_batch_or_a_pass_is_computed_once(forwards: Forwards) -> None:
    twice = batch(tree(PROMPTS[0], ANSWERS[0], ANSWERS[0]), tree(PROMPTS[0], ANSWERS[0], ANSWERS[2]))
    later = batch(tree(PROMPTS[0], ANSWERS[2], ANSWERS[3]))
    reference = forwards.precompute(twice, later)
    assert forwards.tokens == [(3 + 3) + (3 + 2), 3 + 4]
    assert_live(reference, forwards.model, twice, later)


def test_models_that_pad_score_some_answers_of_a_batch_as_well(tmp_path: Path) -> None:
    forwards = Forwards(policy(attention="eager"), tmp_path)
    assert not forwards.model.packed
    forwards.precompute(batch(tree(PROMPTS[0], *ANSWERS[:2])))
    reference = forwards.precompute(RANKED)
    assert_live(reference, forwards.model, RANKED)


def test_log_probs_of_a_bf16_model_are_kept_in_fp32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    forwards = Forwards(PolicySpec(config=config(), dtype="bfloat16").build(), tmp_path)
    reference = forwards.precompute(RANKED)
    cached = reference(RANKED, forwards.model).values
    assert cached.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(cached, forwards.model(RANKED).values)
    assert not torch.equal(cached, cached.bfloat16().float())


@pytest.mark.parametrize("kind", [NoReference, FrozenReference, CachedReference])
def test_every_reference_gives_a_number_for_each_target(kind: type[Reference], forwards: Forwards) -> None:
    reference = kind() if kind is not CachedReference else forwards.precompute(RANKED)
    reference.attach(forwards.model, lambda spec: forwards.model)
    assert reference(RANKED, forwards.model).values.shape == RANKED.targets.shape


def test_a_batch_with_targets_outside_of_answers_is_refused(forwards: Forwards) -> None:
    tokens = np.array(PROMPTS[0], np.int32)
    document = Sample((SampleSegment(tokens, np.ones(3, np.bool_)),), 1)
    mixed = batch(tree(PROMPTS[1], ANSWERS[0]), document)
    reference = forwards.precompute(mixed)
    with pytest.raises(ValueError, match="other targets as well"):
        reference(mixed, forwards.model)


def test_adapters_are_off_while_answers_are_scored_and_their_training_asks_for_nothing_new(tmp_path: Path) -> None:
    torch.manual_seed(0)
    forwards = Forwards(PolicySpec(config=config(), lora=LoRASpec(r=2)).build(), tmp_path)
    adapters = [parameter for name, parameter in forwards.model.named_parameters() if "lora_B" in name]
    for adapter in adapters:
        torch.nn.init.normal_(adapter)
    reference = forwards.precompute(RANKED)
    with torch.no_grad():
        trained = forwards.model(RANKED).values
        with forwards.model.adapters_off():
            base = forwards.model(RANKED).values
    torch.testing.assert_close(reference(RANKED, forwards.model).values, base, rtol=0, atol=1e-6)
    assert not torch.allclose(trained, base)
    for adapter in adapters:
        torch.nn.init.zeros_(adapter)
    forwards.precompute(RANKED)
    assert forwards.tokens == []
