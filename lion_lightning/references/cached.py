"""A reference whose log-probs are computed once, before training: no second model in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

from typing_extensions import override

from lion_lightning.cache import cache_folder, hash_json
from lion_lightning.distributed.ranks import Ranks
from lion_lightning.models.generation.greedy import evaluating
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.quantization import product_dtype
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.weights.dtensor import full_parameters, is_sharded, unwrapped
from lion_lightning.models.weights.hash import hash_tensors
from lion_lightning.references.base import Build, Reference
from lion_lightning.references.scoring import score, uncached
from lion_lightning.references.store import STORE_VERSION, AnswerStore, answer_keys
from lion_lightning.types import PackedBatch, TokenLogps

log = logging.getLogger(__name__)


class CachedReference(Reference):
    """Log-probs of the model that the stage starts from, computed before training and kept on disk.

    All training and validation answers are scored, over all ranks; those that a killed or earlier run has scored are
    skipped. Values are found by content (tokens, targets, weights, precision, attention), so those of a changed answer
    or model can only be uncached, never wrong. A number is kept for each target, so that one cache serves every loss.

    Args:
        model: Another model to compare with; None for the policy as it is before training.
        cache_dir: Folder of the caches, the same for all ranks; None for ``$LION_CACHE``, else the user's cache folder.
    """

    noun = "reference log-probs"

    def __init__(self, model: PolicySpec | str | None = None, cache_dir: str | Path | None = None) -> None:
        super().__init__()
        self.spec = None if model is None else PolicySpec.of(model)
        self.cache_dir = cache_dir
        self.weights: str | None = None
        self._build: Build | None = None
        self._store: AnswerStore | None = None
        self._announced: Path | None = None

    @property
    def folder(self) -> Path:
        """Folder of the stores, one for each model."""
        return cache_folder("references", self.cache_dir)

    @override
    def attach(self, policy: PolicyModel, build: Build) -> None:
        self._build = build
        if self.weights is None:
            self.weights = self._digest(policy if self.spec is None else build(self.spec))

    @override
    def forward(self, batch: PackedBatch, policy: PolicyModel) -> TokenLogps:
        if self._store is None:
            raise ValueError("the cached reference is empty; call precompute(batches, ...) with all batches first")
        logps = self._store.get(answer_keys(batch), batch.input_ids.device)
        if len(logps.values) != len(batch.targets):
            raise ValueError("the cached reference knows log-probs of answers, and the batch has other targets as well")
        return logps

    @override
    def precompute(self, batches: Iterable[PackedBatch], policy: PolicyModel, ranks: Ranks, title: str) -> None:
        """Score the answers that the store lacks.

        Raises:
            ValueError: That needs the starting model, which cannot be rebuilt.
        """
        store = self._open(policy, ranks)
        todo = uncached(store, batches, ranks, f"{self.noun}: {title}")
        first = next(todo, None)
        if first is not None:  # otherwise no model is needed
            self._announce(store.folder.parent)
            with self._model(policy, ranks) as model:
                score(store, model, chain([first], todo), ranks)

    @override
    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "weights": self.weights}

    @override
    def restore(self, identity: Mapping[str, Any]) -> None:
        if identity.get("weights") not in (None, self.weights):  # another model's store is opened when needed
            self.weights, self._store = identity["weights"], None

    @override
    def __getstate__(self) -> dict[str, Any]:
        """Without the builder of models and the store: hyperparameters are pickled."""
        return self.__dict__ | {"_build": None, "_store": None}

    def _open(self, policy: PolicyModel, ranks: Ranks) -> AnswerStore:
        if self._store is None:
            config = policy.causal_lm.config
            # Everything that changes a value is part of the store's name.
            identity = {
                "version": STORE_VERSION,
                "weights": self.weights,
                "precision": ranks.precision,
                "attention": str(config._attn_implementation) if policy.packed else "padded",
            }
            if products := product_dtype(config):
                identity["products"] = str(products)
            self._store = AnswerStore(self.folder / hash_json(identity), identity, ranks.rank)
        return self._store

    def _announce(self, folder: Path) -> None:
        if folder != self._announced:  # said once, not in every round
            log.info("%s: computed once, and kept in %s", self.noun, folder)
        self._announced = folder

    def _digest(self, policy: PolicyModel) -> str:
        """Hash of the weights that score: those of the base model, if there are adapters."""
        trained = {unwrapped(name) for name, p in policy.named_parameters() if p.requires_grad and policy.has_adapters}
        return hash_tensors((name, tensor) for name, tensor in full_parameters(policy) if name not in trained)

    @contextmanager
    def _model(self, policy: PolicyModel, ranks: Ranks) -> Iterator[PolicyModel]:
        """The reference model: the policy while it has the same weights, otherwise a rebuilt model."""
        with evaluating(policy):
            if self.spec is not None or self._digest(policy) != self.weights:
                yield self._rebuilt(ranks)
            else:
                with policy.adapters_off() if policy.has_adapters else nullcontext():
                    yield policy

    def _rebuilt(self, ranks: Ranks) -> PolicyModel:
        assert self._build is not None, "call attach() first"
        model = self._build(self.spec).eval()
        model = model if is_sharded(model) else model.to(ranks.device)
        if self._digest(model) != self.weights:
            raise self._gone()
        return model

    def _gone(self) -> ValueError:
        return ValueError(
            "the reference log-probs of some answers are missing, and the model that they come from is gone: the "
            f"policy has been trained, and what it was built from has changed; bring back the cache ({self.folder}) "
            "or the original model, or start the stage again"
        )


class RefreshedReference(CachedReference):
    """A cached reference that becomes the current policy every k epochs; all answers are then scored again.

    Args:
        every_n_epochs: Epochs between refreshes.
        cache_dir: Folder of the caches, the same for all ranks; None for ``$LION_CACHE``, else the user's cache folder.
    """

    def __init__(self, every_n_epochs: int = 1, cache_dir: str | Path | None = None) -> None:
        super().__init__(cache_dir=cache_dir)
        if every_n_epochs < 1:
            raise ValueError(f"RefreshedReference: every_n_epochs is {every_n_epochs}; give at least 1")
        self.every_n_epochs = every_n_epochs

    @override
    def before_epoch(self, epoch: int, policy: PolicyModel) -> bool:
        due = epoch > 0 and epoch % self.every_n_epochs == 0
        if due:
            self.restore({"weights": self._digest(policy)})
        return due

    @override
    def _digest(self, policy: PolicyModel) -> str:
        return hash_tensors(full_parameters(policy))

    @contextmanager
    @override
    def _model(self, policy: PolicyModel, ranks: Ranks) -> Iterator[PolicyModel]:
        with evaluating(policy):  # adapters stay on: they hold what was trained
            yield policy if self._digest(policy) == self.weights else self._rebuilt(ranks)


class OldPolicy(RefreshedReference):
    """The policy that sampled the answers of a round, which the ratios of a policy gradient are of.

    It is a model only while the round's first optimizer step has not been made; after that, it is what was kept of it.

    Attributes:
        rounds_dir: Folder of the rounds, where the log-probs are kept too: a folder per round, about half its size.
    """

    noun = "old log-probs"

    def __init__(self) -> None:
        super().__init__()
        self.rounds_dir = Path("rounds")

    @property
    @override
    def folder(self) -> Path:
        return self.rounds_dir / "old_logps"

    @override
    def attach(self, policy: PolicyModel, build: Build) -> None:
        self._build = build

    def begin(self, policy: PolicyModel | None) -> None:
        """Begin a round.

        Args:
            policy: The policy, which has just sampled it; None where its log-probs are not needed.
        """
        self.weights, self._store = None if policy is None else self._digest(policy), None

    @override
    def _announce(self, folder: Path) -> None:
        super()._announce(self.folder)

    @override
    def _gone(self) -> ValueError:
        return ValueError(
            "log-probs of the policy that sampled the round are missing, and it has been trained since: bring back "
            f"{self.folder}, or resume from a checkpoint of the end of the epoch before; a round that is used for "
            "more than one optimizer step has to be known as such when it begins"
        )
