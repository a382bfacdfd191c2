"""Online stages: every epoch trains on answers that the policy itself has just given."""

from __future__ import annotations

from abc import ABC
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from lion_lightning.distributed.ranks import Ranks
from lion_lightning.distributed.replicas import sum_over_replicas
from lion_lightning.losses.groups.group import GroupLoss
from lion_lightning.losses.pairs.preference import PreferenceLoss
from lion_lightning.models.generation.greedy import evaluating
from lion_lightning.models.spec import PolicySpec
from lion_lightning.modules.dpo import DPOModule
from lion_lightning.modules.group import GroupModule
from lion_lightning.modules.policy_reference import LossT, PolicyReferenceModule
from lion_lightning.modules.trainer.batches import epoch_batches
from lion_lightning.modules.trainer.reference_passes import precompute_epoch
from lion_lightning.ops.logprobs import answer_view
from lion_lightning.references.base import AdapterOffReference, FrozenReference, Reference
from lion_lightning.references.cached import CachedReference, RefreshedReference


class OnlineModule(PolicyReferenceModule[LossT], ABC):
    """Mixin that makes a stage online, for any objective: name it before the module that trains the objective.

    ``class OnlineDPOModule(OnlineModule[PreferenceLoss], DPOModule)`` is all of online DPO.

    The reference is the model that the stage starts from, its log-probs computed once a round; ``RefreshedReference``
    makes it the policy of the round's beginning instead (iterated DPO). A schedule without ``total_steps`` ends with
    the last epoch; its length is updated each epoch, since rounds have different numbers of answers.

    Also logs ``on_policy/kl``, once per epoch before it trains: the mean log-ratio of the policy to the model that the
    stage starts from, over the answers that the epoch trains on, each of them once, in nats per answer. The answers
    are the policy's own, so that this estimates the KL divergence; where pairs are the best and worst answers alone,
    take it as a gauge.

    Args:
        policy: How to build the policy; a string is short for ``PolicySpec(path=...)``.
        kl_batches: Batches of each rank that ``on_policy/kl`` is estimated on; 0 leaves it out. Where the reference is
            another than the starting model, they cost two passes, else one.
        **kwargs: Further arguments of the module that trains the objective.

    Raises:
        ValueError: If the loss needs a reference and gets none, or ``kl_batches`` is negative.
    """

    takes: ClassVar[Literal["pairs", "groups"]] = "pairs"
    """Items of a round, as the data module has to give them."""

    def __init__(self, policy: PolicySpec | str | dict[str, Any], *, kl_batches: int = 8, **kwargs: Any) -> None:
        super().__init__(policy=policy, **kwargs)
        if kl_batches < 0:
            raise ValueError(f"model.kl_batches is {kl_batches}; give 0 or more")
        self.kl_batches = kl_batches
        self._epoch_kl: float | None = None
        # on_policy/kl compares with the model that the stage starts from: the reference itself if it stays that model.
        fixed = type(self.reference) in (CachedReference, FrozenReference)
        own_start = fixed and getattr(self.reference, "spec", None) is None
        starts = own_start or isinstance(self.reference, AdapterOffReference)
        self.start: Reference = self.reference if starts else CachedReference()

    @override
    def require_data(self, data: Any) -> None:
        """Refuse to train on answers that are not sampled."""
        if self.trainer.state.fn != TrainerFn.FITTING:
            return
        wanted = {"pairs": "OnPolicyDataModule", "groups": "OnPolicyGroupDataModule"}[self.takes]
        if getattr(data, "rounds", None) is None:
            raise MisconfigurationException(
                f"{type(self).__name__} trains on answers that are sampled between epochs, and nothing samples: give "
                f"the data lion_lightning.{wanted}, and add under `trainer.callbacks` the line "
                "`- class_path: lion_lightning.callbacks.OnPolicySampling` with a sampler and a judge"
            )
        if getattr(data, "items", self.takes) != self.takes:
            raise MisconfigurationException(
                f"{type(self).__name__} trains on {self.takes}, and {type(data).__name__} takes {data.items} of a "
                f"round; use lion_lightning.{wanted}"
            )
        if self.trainer.reload_dataloaders_every_n_epochs != 1:  # type: ignore[attr-defined]
            raise MisconfigurationException(
                f"{type(self).__name__}: each epoch has new answers; add the line "
                "`reload_dataloaders_every_n_epochs: 1` under `trainer:`"
            )
        self._require_known_reference(data)

    def _require_known_reference(self, data: Any) -> None:
        """Refuse a reference that is gone when new answers need it: the policy as it was some epochs ago."""
        every = self.reference.every_n_epochs if isinstance(self.reference, RefreshedReference) else 1
        last = self.trainer.max_epochs if self.trainer.max_epochs not in (None, -1) else 2 * every
        # It is refreshed at the beginning of epoch `every` for the first time; before, it is the model that starts.
        later = range(every, min(2 * every, last or 0) - 1)
        if not all(data.is_used_again(epoch) for epoch in later):
            raise MisconfigurationException(
                f"model.reference: RefreshedReference keeps the policy of up to {every} epochs ago as log-probs of the "
                "answers of that time, and each epoch has new answers; set every_n_epochs: 1"
            )

    @property
    def is_skipped(self) -> bool:
        """True in an epoch whose round has nothing to train on."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        return bool(getattr(data, "skipped", 0))

    @override
    def configure_model(self) -> None:
        """Build the policy, and the references as the stage starts from it."""
        super().configure_model()
        if self.start is not self.reference and self.kl_batches:
            self.start.attach(self.policy_model, self.build)

    @override
    def on_train_start(self) -> None:
        """Precompute the epoch that a checkpoint was saved in: its start is not called again."""
        loop = self.trainer.fit_loop
        if loop.restarted_mid_epoch and self._epoch_kl is not None:  # an epoch that starts no more
            self.log("on_policy/kl", self._epoch_kl, on_step=False, on_epoch=True, batch_size=1)
        super().on_train_start()
        if loop.restarted_mid_epoch or loop.restarted_on_epoch_end:
            self._precompute_epoch()

    @override
    def on_train_epoch_start(self) -> None:
        """Precompute the epoch's answers, by a new reference where it changes."""
        if self.is_skipped:
            return
        self.begin_schedules()  # as if all epochs to come were as long as this one
        if self.reference.before_epoch(self.current_epoch, self.policy_model):
            self._precompute_evaluation()
        self._precompute_epoch()
        if self.kl_batches:
            kl = self._kl()
            self._epoch_kl = float(kl)
            self.log("on_policy/kl", kl, on_step=False, on_epoch=True, batch_size=1)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was logged when the epoch began: its policy is gone by now."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lion"]["epoch_kl"] = self._epoch_kl

    @override
    def provenance(self) -> dict[str, Any]:
        return {**super().provenance(), "start": self.start.identity()}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._epoch_kl = checkpoint.get("lion", {}).get("epoch_kl")
        if self.start is not self.reference:
            self.start.restore(checkpoint.get("lion", {}).get("start", {}))

    @override
    def _precompute_all(self) -> None:
        self._precompute_evaluation()  # answers to train on come with each epoch

    def _precompute_epoch(self) -> None:
        precompute_epoch(self.reference, self.policy_model, self.trainer, f"round {self.current_epoch}")

    @torch.no_grad()
    def _kl(self) -> torch.Tensor:
        """Mean log-ratio of the policy to the start; the policy is the start in the first epoch."""
        total = torch.zeros(2, dtype=torch.float32, device=self.device)  # sum of log-ratios, number of answers
        if self.current_epoch == 0:
            return total[0]
        batches = list(islice(iter(epoch_batches(self.trainer)), self.kl_batches))
        ranks = Ranks.of(self.trainer.strategy)
        if self.start is not self.reference:
            self.start.precompute(batches, self.policy_model, ranks, "the starting model, for on_policy/kl")
        with evaluating(self.policy_model):
            for batch in batches:
                batch = batch.to(self.device)
                view = answer_view(batch, range(len(batch.values)))  # an answer of several pairs counts once
                with ranks.autocast():
                    own = view.logps(self.policy_model(batch)).sums
                    start = view.logps(self.start(batch, self.policy_model)).sums
                total += torch.stack([(own - start).sum(), own.new_tensor(len(own))])
        log_ratios, answers = sum_over_replicas(total, self.trainer.strategy)
        mean: torch.Tensor = log_ratios / answers.clamp_min(1.0)
        return mean


class OnlineDPOModule(OnlineModule[PreferenceLoss], DPOModule):
    """Trains a policy on pairs of answers that it samples itself (stage 3 of LIONs, arXiv 2407.06542).

    Everything but where the pairs come from is :class:`DPOModule`'s, any preference loss and any reference, and
    everything online is :class:`OnlineModule`'s.

    Args:
        policy: How to build the policy; a string is short for ``PolicySpec(path=...)``.
        **kwargs: Further arguments of :class:`OnlineModule` and :class:`DPOModule`.

    Raises:
        ValueError: If the loss needs a reference and gets none, or ``kl_batches`` is negative.
    """


class OnlineGroupModule(OnlineModule[GroupLoss], GroupModule):
    """Trains a policy on all of its own answers to each prompt, by a loss over the group.

    Everything but where the groups come from is :class:`GroupModule`'s, any group loss and any reference, and
    everything online is :class:`OnlineModule`'s.

    Args:
        policy: How to build the policy; a string is short for ``PolicySpec(path=...)``.
        **kwargs: Further arguments of :class:`OnlineModule` and :class:`GroupModule`.

    Raises:
        ValueError: If the loss needs a reference and gets none, or ``kl_batches`` is negative.
    """

    takes = "groups"
