"""What policy gradients refuse, each in one line, before anything is sampled or trained."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lion_lightning import GroupDataModule, NoReference, OnPolicyDataModule, PolicyGradientModule, Source, TokenizerSpec
from lion_lightning.losses import GRPOLoss, PlackettLuceLoss, SigmoidLoss
from lion_lightning.references.base import Reference
from lion_lightning.sampling import SamplingSettings, ServerSampler, TransformersSampler, VLLMSampler
from lion_lightning.sampling.base import ChecksDistribution
from lion_lightning.types import Answer, PackedBatch, TokenLogps
from tests.integration.online import Judge, PolicyGradientOnline, Sampler
from tests.marks import slow

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> PolicyGradientOnline:
    return PolicyGradientOnline(tmp_path_factory.mktemp("policy gradient"))


def refused(online: PolicyGradientOnline, message: str, **parts: Any) -> None:
    """Assert that a run ends with this message in one line, without a round."""
    data, module, sampling = parts.get("data"), parts.get("module"), parts.get("sampling")
    trainer = online.trainer("refused", [sampling or online.sampling()])
    with pytest.raises((ValueError, MisconfigurationException), match=message) as caught:
        trainer.fit(module or online.module(), datamodule=data or online.data())
    assert "\n" not in str(caught.value)
    assert not list((online.folder / "refused").rglob("round-*.arrow"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.8}, "^sampling.temperature is 0.8, and what is trained.*set sampling.temperature: 1.0"),
        ({"top_p": 0.9}, "^sampling.top_p is 0.9, and"),
        ({"top_k": 5}, "^sampling.top_k is 5, and"),
        ({"stop": ("END",)}, r"^sampling.stop is \('END',\), and"),
        ({"temperature": 0.5, "top_k": 2}, "^sampling.temperature is 0.5, sampling.top_k is 2, and"),
    ],
)
def test_settings_that_change_the_distribution(settings: dict[str, Any], message: str) -> None:
    sampling = SamplingSettings(**{"temperature": 1.0, **settings})
    samplers = TransformersSampler(sampling), VLLMSampler(sampling), ServerSampler("http://x", sampling=sampling)
    for sampler in samplers:
        assert isinstance(sampler, ChecksDistribution)
        with pytest.raises(ValueError, match=message):
            sampler.check_distribution()


def test_engines_that_answer_otherwise_than_the_policy() -> None:
    plain = SamplingSettings(temperature=1.0)
    TransformersSampler(plain).check_distribution()
    VLLMSampler(plain, engine={"max_num_seqs": 8}).check_distribution()
    with pytest.raises(ValueError, match="VLLMSampler: engine has logits_processors"):
        VLLMSampler(plain, engine={"logits_processors": ["my.Bans"]}).check_distribution()
    with pytest.raises(ValueError, match="ServerSampler: weight_sync is not set"):
        ServerSampler("http://x", sampling=plain).check_distribution()


def test_before_anything_is_sampled(online: PolicyGradientOnline) -> None:
    sampler = Sampler()
    sampler.sampling = SamplingSettings(temperature=0.8, max_new_tokens=5)
    refused(online, r"^sampling.temperature is 0.8", sampling=online.sampling(sampler))
    refused(online, "original_chosen is 0.3, and PolicyGradientModule", sampling=online.sampling(original_chosen=0.3))
    assert sampler.asked == []
    with pytest.raises(ValueError, match="num_samples is 1; give at least 2 answers"):
        online.sampling(num_samples=1)


class Texts:
    """Gives strings, which anybody may have written."""

    def __init__(self) -> None:
        self.calls = 0

    def sample(self, prompts: Any, n: int, seed: int) -> list[list[str]]:
        self.calls += 1
        return [["w1 w2"] * n for _ in prompts]


class SomeTokens(Texts):
    """Forgets the tokens of the last answer."""

    def sample(self, prompts: Any, n: int, seed: int) -> Any:
        texts = super().sample(prompts, n, seed)
        return [[*(Answer(text, "stop", (4, 5)) for text in row[:-1]), Answer(row[-1])] for row in texts]


@pytest.mark.parametrize("make", [Texts, *slow(SomeTokens)])
def test_answers_without_their_tokens_are_found_in_the_first_chunk(online: PolicyGradientOnline, make: Any) -> None:
    sampler = make()
    message = rf"prompts.jsonl.*{make.__name__} gave an answer without `token_ids`, and the tokens that were drawn"
    refused(online, message, sampling=online.sampling(sampler))
    assert sampler.calls == 1


def ranked(online: PolicyGradientOnline) -> GroupDataModule:
    """Answers of others."""
    row = {"question": "w3 w4", "answers": ["w5", "w6"], "scores": [1.0, 0.0]}
    (online.folder / "ranked.jsonl").write_text(json.dumps(row) + "\n")
    sources = [Source(str(online.folder / "ranked.jsonl"))]
    return GroupDataModule(sources, TokenizerSpec(str(online.start)), max_length=32, row_length=40, batch_size=2)


def test_data_of_another_kind(online: PolicyGradientOnline) -> None:
    prompts, tokenizer = [Source(str(online.folder / "prompts.jsonl"))], TokenizerSpec(str(online.start))
    message = "the data is GroupDataModule, which trains on answers from disk; use .*GroupDataModule"
    refused(online, message, data=ranked(online))
    pairs = OnPolicyDataModule(prompts, tokenizer, max_length=32, row_length=40, batch_size=2)
    refused(online, "trains on groups, and OnPolicyDataModule takes pairs of a round; use.*GroupDataModule", data=pairs)
    for name in ("validation", "sources"):
        more = online.data(**{name: ranked(online).sources})
        refused(online, rf"has no loss of others: remove data\.{name};", data=more)
    trainer = online.trainer("refused", [])
    with pytest.raises(MisconfigurationException, match=r"nothing samples: give the data .*OnPolicyGroupDataModule"):
        trainer.fit(online.module(), train_dataloaders=[])


@pytest.mark.parametrize("run", ["validate", "test"])
def test_there_is_nothing_to_validate_on(online: PolicyGradientOnline, run: str) -> None:
    trainer = online.trainer("refused", [])
    with pytest.raises(MisconfigurationException, match="learns from answers that its policy has just sampled"):
        getattr(trainer, run)(online.module(), datamodule=ranked(online))


class Sums(Reference):
    """A log-prob per answer, where one per token is needed."""

    def forward(self, batch: PackedBatch, policy: Any) -> TokenLogps:
        return TokenLogps(torch.zeros(len(batch.values)))


class Plain(Reference):
    """Forgets what a reference returns."""

    def forward(self, batch: PackedBatch, policy: Any) -> Any:
        return torch.zeros(len(batch.targets))


@pytest.mark.parametrize(("reference", "found"), [(Sums, r"\d+ log-probs"), (Plain, "a Tensor")])
def test_references_without_a_log_prob_per_token(online: PolicyGradientOnline, reference: Any, found: str) -> None:
    trainer = online.trainer(reference.__name__, [online.sampling()])
    message = rf"^model.reference: {reference.__name__} gave {found} for a batch of \d+ targets; return TokenLogps"
    with pytest.raises(ValueError, match=message):
        trainer.fit(online.module(reference=reference()), datamodule=online.data())


def test_losses_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"PlackettLuceLoss is not a policy gradient; use OnlineGroupModule"):
        PolicyGradientModule("policy", loss=PlackettLuceLoss())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"SigmoidLoss is not a policy gradient"):
        PolicyGradientModule("policy", loss=SigmoidLoss())  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"GRPOLoss compares the policy with a reference, and model.reference is NoRef"
    ):
        PolicyGradientModule("policy", loss=GRPOLoss(beta=0.1), reference=NoReference())
    with pytest.raises(ValueError, match=r"GRPOLoss: beta is -0.1; give a number of at least 0"):
        GRPOLoss(beta=-0.1)


class Undecided(Judge):
    """Has no number for some."""

    def score(self, prompts: Any, answers: Any) -> Any:
        return [[math.nan] * len(row) for row in answers]


class Alike(Judge):
    """Likes all the same."""

    def score(self, prompts: Any, answers: Any) -> Any:
        return [[1.0] * len(row) for row in answers]


def test_rewards_that_say_nothing(online: PolicyGradientOnline, tmp_path: Path) -> None:
    refused(online, "Undecided returned the score nan for an answer to", sampling=online.sampling(judge=Undecided()))
    trainer = online.trainer("alike", [online.sampling(judge=Alike())])
    # Three in a row are too many.
    with pytest.raises(ValueError, match=r"round 2 .* gives no group to train on: .* answers: scores all eq") as caught:
        trainer.fit(online.module(), datamodule=online.data())
    assert "\n" not in str(caught.value)
