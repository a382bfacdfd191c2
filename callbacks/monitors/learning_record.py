"""Losses of every training document before training and after each epoch, in a file (arXiv 2402.10430)."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from tqdm import tqdm
from typing_extensions import override

from lion_lightning.callbacks.folders import require_writable_root, writes_files
from lion_lightning.data.base import PackedDataModule
from lion_lightning.data.document_filters.base import DocumentFilter
from lion_lightning.data.learning import LatestLearnt
from lion_lightning.data.learning.record import Moment, RecordedLosses
from lion_lightning.data.selection.documents import Documents
from lion_lightning.data.selection.mixture import Mixture
from lion_lightning.distributed.ranks import Ranks
from lion_lightning.distributed.replicas import sum_over_replicas
from lion_lightning.models.generation.greedy import evaluating
from lion_lightning.models.weights.dtensor import full_parameters
from lion_lightning.models.weights.hash import hash_tensors
from lion_lightning.modules.base import AlignmentModule
from lion_lightning.one_lightning import LionCallback

log = logging.getLogger(__name__)


class LearningRecord(LionCallback):
    """Writes ``learning.arrow`` under ``default_root_dir``: how early each training document is learnt.

    Before training and after each epoch, one pass without gradients over all training documents takes the sum of the
    negative log-probs of each one's targets, all of which count alike, whatever their weights in the loss. Documents
    are found by a hash of their text, so that a run with another model and tokenizer can use the file
    (:class:`~lion_lightning.data.learning.LatestLearnt`). ``python -m lion_lightning.data.learning FILE`` lists the
    rows that were learnt least, wrong answers among them. A document that is split counts as one, one that is repeated
    counts once, and one that was truncated up to there. Limits of the trainer do not limit the passes.

    A pass costs about a third of an epoch's time. Training is the same with it as without. A resumed run goes on with
    its file, and ends with the same one as a run that was never stopped. Under ``fast_dev_run`` nothing is recorded.

    Source: "Smaller Language Models are capable of selecting Instruction-Tuning Training Data for Larger Language
    Models" (arXiv 2402.10430), section 3.

    Raises:
        MisconfigurationException: Before training, if the data streams, has answers that share a prompt or other
            documents in each epoch, the file cannot be written, or the run was begun without this callback.
    """

    filename = "learning.arrow"

    def __init__(self) -> None:
        self._losses: RecordedLosses | None = None
        self._resumed: list[str] = []  # what the losses of a checkpoint's run are found by

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if trainer.global_step == 0:  # another run than the one that this object may have seen
            self._losses, self._resumed = None, []
        _require_documents(trainer, pl_module, self._path(trainer))
        require_writable_root(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: AlignmentModule) -> None:  # type: ignore[override]
        if not writes_files(trainer):
            return
        if self._resumed:
            self._losses, self._resumed = self._earlier(trainer), []
        if self._losses is None and trainer.global_step == 0:
            self._take(trainer, pl_module, Moment(0, 0.0))
        if self._losses is None or self._losses.epochs < trainer.current_epoch:
            raise MisconfigurationException(
                "LearningRecord: a part of the run was trained without it, so that losses of earlier epochs are not "
                "known; begin the run anew, or take the callback out of trainer.callbacks"
            )

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: AlignmentModule) -> None:  # type: ignore[override]
        if self._losses is None:  # under fast_dev_run
            return
        # Of an epoch that was cut short and goes on, the losses are those at its end.
        self._losses = self._losses.first(trainer.current_epoch + 1)
        batches: Any = trainer.train_dataloader
        share = trainer.fit_loop.epoch_loop.batch_progress.current.completed / len(batches)
        if share < 1:
            rank_zero_warn(
                f"LearningRecord: epoch {trainer.current_epoch + 1} ended after {share:.0%} of its batches, and a "
                "document that was not trained looks like one that is learnt late: train whole epochs, without "
                "trainer.limit_train_batches, and with max_epochs in place of max_steps"
            )
        self._take(trainer, pl_module, Moment(trainer.global_step, share))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._losses is not None and trainer.is_global_zero:
            path = self._path(trainer)
            log.info(
                "LearningRecord: losses of %s documents before training and after %d epochs are in %s; `python -m "
                "lion_lightning.data.learning %s` lists the rows that were learnt least, wrong answers among them, and "
                "lion_lightning.data.learning.LatestLearnt in data.document_filters trains on those learnt last",
                *(f"{len(self._losses.places):,}", self._losses.epochs, path, shlex.quote(str(path))),
            )

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"content": self._losses.content() if self._losses else self._resumed}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        content = state_dict.get("content")
        if not isinstance(content, list):
            raise ValueError(f"the checkpoint's state of LearningRecord is odd (content: {content!r}); take another")
        self._resumed = content

    def _path(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / self.filename

    def _take(self, trainer: Trainer, module: AlignmentModule, moment: Moment) -> None:
        """Take the losses of this moment, and write the file."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        nll, targets = document_losses(trainer, module, data.train_mixture.documents.once())
        if self._losses is None:
            weights = hash_tensors(full_parameters(module.policy_model))
            digests, places = _documents(data.train_mixture)
            none = np.empty((0, len(places)))
            self._losses = RecordedLosses(weights, (), digests, places, _padded(targets, len(places)), none)
        self._losses = self._losses.taken(moment, _padded(nll, len(self._losses.places)))
        with Ranks.of(trainer.strategy).together():
            if trainer.is_global_zero:
                self._losses.write(self._path(trainer))

    def _earlier(self, trainer: Trainer) -> RecordedLosses:
        """The losses up to the checkpoint, from the file of the run that is resumed; all ranks call this."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        found: RecordedLosses | str = ""
        if trainer.is_global_zero:
            found = _read_again(self._path(trainer), self._resumed, _documents(data.train_mixture)[0])
        found = trainer.strategy.broadcast(found)
        if isinstance(found, str):
            raise MisconfigurationException(f"LearningRecord: {found}")
        return found


@torch.no_grad()
def document_losses(
    trainer: Trainer, module: AlignmentModule, documents: Documents
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Sum of the negative log-probs of each document's targets, and their number, on all ranks.

    Args:
        trainer: Its ranks share the work; all of them call this.
        module: Whose policy is asked, in evaluation mode.
        documents: Each once; parts of one add up.

    Returns:
        Both in the order of the documents' numbers.
    """
    ranks, policy = Ranks.of(trainer.strategy), module.policy_model
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    loader = data.loader(Mixture(documents, []), shuffle=False)
    numbers = np.unique(documents.numbers)
    sums = torch.zeros(2, len(numbers), dtype=torch.float64)  # of NLL, and of targets
    with evaluating(policy):
        for batch in tqdm(loader, "losses of all documents", delay=2, disable=not ranks.is_first):
            with ranks.autocast():
                logps = policy(batch.to(ranks.device)).values
            samples = torch.tensor(batch.segment_samples)[batch.target_segments]
            places = torch.from_numpy(np.searchsorted(numbers, batch.sample_indices))[samples]  # (targets,)
            nll = -logps.double().cpu()
            sums.index_add_(1, places, torch.stack([nll, torch.ones_like(nll)]))
    total = sum_over_replicas(sums.to(ranks.device), trainer.strategy).cpu().numpy()
    return total[0], total[1].round().astype(np.int64)


def _documents(mixture: Mixture) -> tuple[npt.NDArray[np.uint64], list[str]]:
    """Hash and place of each document, in the order of their numbers, then of what is not trained."""
    digests: list[npt.NDArray[np.uint64]] = []
    places: list[str] = []
    for documents in (mixture.documents, Documents(mixture.untrained)):
        first = np.unique(documents.numbers, return_index=True)[1]  # of the parts of each
        digests.append(documents.groups[first])
        places += map(documents.where, first.tolist())
    return np.concatenate(digests), places


def _padded(values: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    """Values of what is trained, and zeros for what is not."""
    return np.pad(values, (0, length - len(values)))


def _read_again(path: Path, content: list[str], digests: npt.NDArray[np.uint64]) -> RecordedLosses | str:
    """The moments of a file that have this content, or what is wrong."""
    try:
        losses = RecordedLosses.read(path).first(len(content))
    except ValueError as error:
        return str(error)
    if losses.content() != content:
        return f"{path} is not of the run that is resumed; bring back its file, or begin the run anew"
    if not np.array_equal(losses.digests, digests):
        return f"{path} is of other training data than there is now; bring back the data, or begin the run anew"
    return losses


def _require_documents(trainer: Trainer, module: LightningModule, path: Path) -> None:
    """Refuse modules without a policy, data without documents that are all there and stay, and a file that is read."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    given = type(data).__name__
    mixture = data.train_mixture if isinstance(data, PackedDataModule) else None
    if not isinstance(module, AlignmentModule):
        wrong = f"{type(module).__name__} is not an AlignmentModule and has no policy to take losses of; use SFTModule"
    elif getattr(data, "stream", None):
        wrong = "data.sources stream, and the losses of all documents are taken each time; leave `streaming` out"
    elif mixture is None or mixture.documents[0].num_answers:
        wrong = f"{given} gives no documents, and answers that are compared are not learnt alone; use SFTDataModule"
    elif hasattr(mixture.documents, "set_epoch"):
        wrong = f"{given} gives other documents in each epoch, so that nothing is compared; use SFTDataModule"
    elif any(_reads(rule, path) for rule in data.document_filters.rules):
        wrong = f"{path} would be written over, which data.document_filters choose by; name another default_root_dir"
    else:
        return
    raise MisconfigurationException(f"LearningRecord: {wrong}, or take the callback out of trainer.callbacks")


def _reads(rule: DocumentFilter, path: Path) -> bool:
    """True if a filter chooses by the losses of this file."""
    return isinstance(rule, LatestLearnt) and Path(rule.record).resolve() == path.resolve()
