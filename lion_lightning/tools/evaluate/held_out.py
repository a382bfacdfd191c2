"""Loss on held-out conversations, and rewards on held-out pairs, computed by the training modules."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from typing_extensions import override

from lion_lightning.data.base import PackedDataModule
from lion_lightning.data.formats.pairing import Pairing
from lion_lightning.data.preference import PreferenceDataModule
from lion_lightning.data.sft import SFTDataModule
from lion_lightning.data.sources.source import Source
from lion_lightning.losses.pairs.dpo import SigmoidLoss
from lion_lightning.models.model_configs import is_classifier, stored_config
from lion_lightning.models.rewards.spec import RewardModelSpec
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.modules.dpo import DPOModule
from lion_lightning.modules.reward import RewardModule
from lion_lightning.modules.sft import SFTModule
from lion_lightning.references.base import FrozenReference
from lion_lightning.tools.evaluate.scores import summary
from lion_lightning.types import PackedBatch, PairLogps

logger = logging.getLogger(__name__)


def conversation_loss(
    model: str,
    sources: Sequence[Source],
    max_length: int = 2048,
    batch_size: int = 1,
    template_kwargs: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Compute the negative log-likelihood per supervised token, perplexity and token accuracy.

    Args:
        model: A Hugging Face folder or hub id.
        sources: Conversations.
        max_length: Tokens per row; longer conversations are truncated and counted.
        batch_size: Rows per micro-batch.
        template_kwargs: Variables of the chat template, over those that an export has in it.

    Returns:
        ``loss``, ``perplexity``, ``accuracy``; the numbers of ``conversations``, of truncated ones among them (``cut``)
        and of those ``left_out``, e.g. duplicates.

    Raises:
        ValueError: The model or a source cannot be used, or the model has fewer positions than ``max_length``.
    """
    tokenizer = TokenizerSpec(model, template_kwargs=template_kwargs)
    data = SFTDataModule(list(sources), tokenizer, max_length=max_length, batch_size=batch_size)
    return {**_validated(SFTModule(PolicySpec(model)), data), **_counts(data, "conversations")}


def preference_rewards(
    model: str,
    sources: Sequence[Source],
    reference: str,
    beta: float = 0.1,
    max_length: int = 2048,
    batch_size: int = 1,
    template_kwargs: dict[str, Any] | None = None,
    pairing: Pairing | None = None,
) -> dict[str, Any]:
    """Compute reward accuracy, reward margins and the DPO loss on preference pairs.

    A reward is ``beta`` times the log-ratio of model to reference, summed over the tokens of an answer.

    Args:
        model: A Hugging Face folder or hub id.
        sources: Preference pairs, or ranked answers.
        reference: The reference model, with the same tokenizer.
        beta: Scale of the rewards.
        max_length: Tokens of a prompt and one answer; longer answers are truncated and counted.
        batch_size: Rows per micro-batch.
        template_kwargs: Variables of the chat template, over those that an export has in it.
        pairing: How ranked answers become pairs; None for the best against the worst.

    Returns:
        ``accuracy`` and ``margin`` with bootstrap intervals over the prompts; all metrics of
        :class:`~lion_lightning.modules.dpo.DPOModule`; the numbers of ``pairs``, truncated (``cut``) and ``left_out``.

    Raises:
        ValueError: A model or a source cannot be used, the model has fewer positions than ``max_length``, or the
            reference has another tokenizer.
    """
    if TokenizerSpec(model).load().get_vocab() != TokenizerSpec(reference).load().get_vocab():
        raise ValueError(
            f"reference: {reference} has another tokenizer than {model}; give the model that training started from"
        )
    tokenizer = TokenizerSpec(model, template_kwargs=template_kwargs)
    options: dict[str, Any] = {"max_length": max_length, "batch_size": batch_size, "pairing": pairing}
    data = PreferenceDataModule(list(sources), tokenizer, **options)
    reference_model = FrozenReference(PolicySpec(reference))
    return _rewards(_PolicyDifferences(PolicySpec(model), loss=SigmoidLoss(beta), reference=reference_model), data)


def reward_model_accuracy(
    model: str,
    sources: Sequence[Source],
    max_length: int = 2048,
    batch_size: int = 1,
    template_kwargs: dict[str, Any] | None = None,
    pairing: Pairing | None = None,
) -> dict[str, Any]:
    """Compute the share of preference pairs that a reward model ranks right, and by how much.

    Args:
        model: A folder or hub id of a sequence classifier with one output, e.g. the export of a ``RewardModule``.
        sources: Preference pairs, or ranked answers.
        max_length: Tokens of a prompt and one answer; longer answers are truncated and counted.
        batch_size: Rows per micro-batch.
        template_kwargs: Variables of the chat template, over those that an export has in it.
        pairing: How ranked answers become pairs; None for the best against the worst.

    Returns:
        ``accuracy`` and ``margin`` with bootstrap intervals over the prompts; all metrics of
        :class:`~lion_lightning.modules.reward.RewardModule`; the numbers of ``pairs``, truncated (``cut``) and
        ``left_out``.

    Raises:
        ValueError: The model or a source cannot be used, or the model has fewer positions than ``max_length``.
    """
    tokenizer = TokenizerSpec(model, template_kwargs=template_kwargs)
    options: dict[str, Any] = {"max_length": max_length, "batch_size": batch_size, "pairing": pairing}
    data = PreferenceDataModule(list(sources), tokenizer, **options)
    return _rewards(_RewardDifferences(RewardModelSpec(model)), data)


def is_reward_model(model: str) -> bool:
    """True if a folder or hub id has a sequence classifier; False if its config cannot be read."""
    try:
        return is_classifier(stored_config(model, None, False).architectures)
    except (OSError, ValueError):  # what else is wrong is found when it is loaded
        return False


class _PairDifferences(AlignmentModule):
    """Keeps the difference of rewards and the prompt of every pair, for intervals.

    Attributes:
        differences: Reward of the chosen answer minus that of the rejected one, of each pair so far.
        prompts: The tokens of each pair's prompt.
    """

    differences: list[float]
    prompts: list[bytes]

    @override
    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        host, answers = batch.on_cpu(), batch.answers
        for chosen, _ in batch.pairs:
            prompt = batch.segments[batch.segments[answers[chosen]].parent]
            self.prompts.append(host.input_ids[prompt.start : prompt.stop].numpy().tobytes())

    @override
    def on_validation_start(self) -> None:
        super().on_validation_start()
        self.differences, self.prompts = [], []


class _PolicyDifferences(_PairDifferences, DPOModule):
    @override
    def pair_metrics(self, policy: PairLogps, reference: PairLogps) -> dict[str, Tensor]:
        self.differences += self.loss.rewards(policy, reference).margin.tolist()
        return super().pair_metrics(policy, reference)


class _RewardDifferences(_PairDifferences, RewardModule):
    @override
    def pair_losses(self, chosen: Tensor, rejected: Tensor, margins: Tensor) -> Tensor:
        self.differences += (chosen - rejected).tolist()
        return super().pair_losses(chosen, rejected, margins)


def _rewards(module: _PairDifferences, data: PackedDataModule) -> dict[str, Any]:
    """Metrics of a module on pairs; accuracy and margin with intervals over the prompts, whose pairs are alike."""
    means = {name.removeprefix("rewards/"): value for name, value in _validated(module, data).items()}
    margins, prompts = module.differences, module.prompts
    won = [(margin > 0) + (margin == 0) / 2 for margin in margins]  # a tie counts half
    found = {"accuracy": summary(won, prompts), "margin": summary(margins, prompts)}
    return {**means, **found, **_counts(data, "pairs"), "prompts": len(set(prompts))}


def _validated(module: AlignmentModule, data: PackedDataModule) -> dict[str, float]:
    """Validate on all rows of the sources; nothing is written but the cache of tokens."""
    if data.stream:
        data.sources[0].open()  # says that a stream cannot be evaluated on
    positions = module.max_positions
    if positions is not None and data.max_length > positions:
        raise ValueError(
            f"max_length is {data.max_length}, but {module.policy_spec.path} has {positions} positions; set "
            f"max_length to {positions} or less"
        )
    on_gpu = torch.cuda.is_available()
    with _hushed("lightning.pytorch", "lion_lightning.data.base"), tempfile.TemporaryDirectory() as folder:
        # All rows are rows for training to a data module without a validation share.
        data.prepare_data()
        data.setup()
        assert data.train_mixture is not None
        trainer = Trainer(
            accelerator="cuda" if on_gpu else "cpu",
            devices=1,
            precision="bf16-mixed" if on_gpu else "32-true",
            logger=False,
            enable_checkpointing=False,
            default_root_dir=folder,
        )
        found: list[Any] = trainer.validate(module, data.loader(data.train_mixture, shuffle=False), verbose=False)
    for report in data.train_mixture.reports:
        logger.info("evaluated on %s", report)
    return {name.removeprefix("val/"): float(value) for name, value in found[0].items()}


def _counts(data: PackedDataModule, noun: str) -> dict[str, int]:
    counts = {noun: 0, "cut": 0, "left_out": 0}
    for report in data.train_mixture.reports if data.train_mixture else []:
        counts[noun] += report.kept.documents
        counts["cut"] += sum(found.documents for found in report.truncated.values())
        counts["left_out"] += sum(found.documents for found in report.left_out.values())
    return counts


@contextmanager
def _hushed(*names: str) -> Iterator[None]:
    """Hide messages below warnings of these loggers, which are about training."""
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.WARNING)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
