"""A module refuses batches of another kind before it trains on them, whoever made them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule

from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules import AlignmentModule, DPOModule, GroupModule, KTOModule, RewardModule, SFTModule
from lion_lightning.references.base import FrozenReference
from lion_lightning.references.cached import CachedReference
from lion_lightning.types import LossOutput, PackedBatch
from tests.marks import exhaustive
from tests.tiny import TREE, Rows, pairs, row, shallow, trainer, trees

PAIRS, DOCUMENTS = pairs((4, 3, 5), (2, 6, 4)), row()
WEIGHTED = replace(PAIRS, target_weights=torch.full((len(PAIRS.targets),), 0.5))
LABELED = trees((4, (3, 5), (1.0, float("nan"))), (2, (6,), (0.0,)))
SCORED = trees((4, (3, 2), (0.7, 0.2)))
PLAIN = {"input_ids": torch.arange(5), "labels": torch.arange(5)}


class OwnData(LightningDataModule):
    """Somebody's data module, which says nothing of what its batches are."""

    def __init__(self, train: Any, held: Any) -> None:
        super().__init__()
        self.train, self.held = train, held

    def train_dataloader(self) -> Any:
        return Rows([self.train])

    def val_dataloader(self) -> Any:
        return Rows([self.held])

    def test_dataloader(self) -> Any:
        return Rows([self.held])


SFT, DPO = {"kind": SFTModule}, {"kind": DPOModule, "reference": FrozenReference()}
KTO, GROUP = ({"kind": kind, "reference": FrozenReference()} for kind in (KTOModule, GroupModule))
PREFIXED = row((4, 3, 5), (-1, 0, -1), bidirectional=(True,))  # a document whose beginning is seen whole, and another
TWO_AFTER = row((4, 3, 5), (-1, 0, 0), bidirectional=(True,))
WRONG: dict[str, tuple[Any, Any, Any, str]] = {
    "pairs as documents": (
        SFT,
        PAIRS,
        DOCUMENTS,
        r"trains on documents, .* use SFTDataModule, or DPOModule for pref",
    ),
    "pairs among documents": (SFT, row(*TREE), DOCUMENTS, r"use SFTDataModule, or KTOModule for labeled answers"),
    "answers to a prefix": (SFT, TWO_AFTER, DOCUMENTS, r"use SFTDataModule, or KTOModule for labeled answers"),
    "prefixes as labeled answers": (KTO, PREFIXED, LABELED, r"holds documents; use UnpairedDataModule, or SFTModule"),
    "documents as pairs": (
        DPO,
        DOCUMENTS,
        PAIRS,
        r"holds documents; use PreferenceDataModule, or SFTModule for doc",
    ),
    "pairs with weights": (DPO, WEIGHTED, PAIRS, r"target_weights are for documents"),
    "documents as labeled answers": (KTO, DOCUMENTS, LABELED, r"holds documents; use UnpairedDataModule, or SFTModule"),
    "pairs as labeled answers": (KTO, PAIRS, LABELED, r"holds preference pairs; use UnpairedDataModule, or DPOModule"),
    "groups as labeled answers": (KTO, SCORED, LABELED, r"scored answers; use UnpairedDataModule, or GroupModule"),
    "labeled answers as pairs": (DPO, LABELED, PAIRS, r"holds labeled answers; use PreferenceDataModule, or KTOModule"),
    "groups as pairs": (DPO, SCORED, PAIRS, r"holds groups of scored .*; use PreferenceDataModule, or GroupModule"),
    "groups as documents": (SFT, SCORED, DOCUMENTS, r"use SFTDataModule, or GroupModule for groups"),
    "documents as groups": (GROUP, DOCUMENTS, SCORED, r"holds documents; use GroupDataModule, or SFTModule"),
    "pairs as groups": (GROUP, PAIRS, SCORED, r"holds preference pairs; use GroupDataModule, or DPOModule"),
    "labeled answers as groups": (GROUP, LABELED, SCORED, r"single answer or answers without a value; use GroupData"),
    "groups with weights": (GROUP, replace(SCORED, target_weights=torch.ones(5)), SCORED, r"weights are for documents"),
    "no packed groups": (GROUP, PLAIN, SCORED, r"gives batches of type dict, .* PackedBatch"),
    "no packed rows": (SFT, PLAIN, DOCUMENTS, r"gives batches of type dict, .* PackedBatch"),
    "no packed pairs": (DPO, PLAIN, PAIRS, r"gives batches of type dict, .* PackedBatch"),
}


def made(kind: Any, tokenizer: TokenizerSpec, **options: Any) -> Any:
    torch.manual_seed(0)
    module = kind(PolicySpec(config=shallow()), tokenizer=tokenizer, **options)
    module.configure_model()
    return module


FIRST, *OTHERS = WRONG


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("where", "case"),
    [
        *(("training", case) for case in WRONG),
        *((where, FIRST) for where in ("validation", "sanity", "validate", "test")),
        *exhaustive(*product(("validation", "sanity", "validate", "test"), OTHERS)),
    ],
)
def test_the_first_batch_of_another_kind_is_refused(tokenizer: TokenizerSpec, where: str, case: str) -> None:
    module, wrong, right, said = WRONG[case]
    own = made(**module, tokenizer=tokenizer)
    before = {name: p.detach().clone() for name, p in own.named_parameters()}
    run = trainer(max_epochs=1, num_sanity_val_steps=1 if where == "sanity" else 0)
    data = OwnData(wrong, right) if where == "training" else OwnData(right, wrong)
    act = run.fit if where in ("training", "validation", "sanity") else getattr(run, where)
    with pytest.raises(ValueError, match=said) as error:
        act(own, datamodule=data)
    assert "\n" not in str(error.value)
    if where in ("training", "sanity"):
        assert all(torch.equal(p, before[name]) for name, p in own.named_parameters())


ROUNDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "documents": (SFT, "pairs", "preference pairs .* use OnlineDPOModule"),
    "a cached reference": ({"kind": DPOModule}, "pairs", "preference pairs .* use OnlineDPOModule"),
    "a reward model": ({"kind": RewardModule}, "pairs", "preference pairs .* use OnlineDPOModule"),
    "a reward model, groups": ({"kind": RewardModule}, "groups", "groups .* use OnlineGroupModule"),
    "labeled answers": (KTO, "pairs", "preference pairs .* use OnlineDPOModule"),
    "pairs of a group": (DPO, "groups", "groups .* use OnlineGroupModule"),
    "groups of a pair": (GROUP, "pairs", "preference pairs .* use OnlineDPOModule"),
}


@pytest.mark.parametrize("case", ROUNDS)
def test_answers_that_would_be_sampled_are_refused_before_anybody_is_asked(tokenizer: TokenizerSpec, case: str) -> None:
    module, kind, said = ROUNDS[case]

    class Sampled(OwnData):
        rounds = None
        items = kind

        def train_dataloader(self) -> Any:
            raise AssertionError("asked")

    with pytest.raises(MisconfigurationException, match=f"Sampled gives {said}"):
        trainer(max_epochs=1).fit(made(**module, tokenizer=tokenizer), Sampled(PAIRS, PAIRS))


def test_a_round_of_its_kind_is_taken_with_a_live_reference(tokenizer: TokenizerSpec) -> None:
    for module, batch, kind in ((DPO, PAIRS, "pairs"), (GROUP, SCORED, "groups")):
        data = OwnData(batch, batch)
        data.rounds, data.items = None, kind  # type: ignore[attr-defined]
        run = trainer(max_epochs=1)
        run.fit(made(**module, tokenizer=tokenizer), data)
        assert run.global_step == 1


def test_documents_whose_beginning_is_seen_whole_are_documents(tokenizer: TokenizerSpec) -> None:
    run = trainer(max_epochs=1)
    run.fit(made(SFTModule, tokenizer), OwnData(PREFIXED, DOCUMENTS))
    assert run.global_step == 1


def test_an_objective_of_ones_own_takes_any_packed_rows(tokenizer: TokenizerSpec) -> None:
    class Own(AlignmentModule):
        def compute_loss(self, batch: PackedBatch) -> LossOutput:
            logps = self.policy_model(batch).values
            return LossOutput(-logps.sum(), torch.tensor(len(logps)))

    for batch in (PAIRS, DOCUMENTS, LABELED, SCORED):
        trainer(max_epochs=1).fit(made(Own, tokenizer), OwnData(batch, batch))
    with pytest.raises(ValueError, match="of type dict"):
        trainer(max_epochs=1).fit(made(Own, tokenizer), OwnData(PLAIN, PLAIN))


def test_a_batch_of_another_kind_is_refused_before_a_reference_is_computed(
    tmp_path: Path, tokenizer: TokenizerSpec
) -> None:
    reference = CachedReference(cache_dir=tmp_path / "cache")
    module = KTOModule(PolicySpec(config=shallow()), tokenizer=tokenizer, reference=reference)
    with pytest.raises(ValueError, match="KTOModule trains on labeled answers, and the batch holds preference pairs"):
        trainer(max_epochs=1).fit(module, datamodule=OwnData(PAIRS, PAIRS))
    assert not (tmp_path / "cache").exists()
