"""Selection of the documents that a recorded run has learnt last (arXiv 2402.10430)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import override

from lion_lightning.cache import hash_file, hash_json
from lion_lightning.data.document_filters.base import DocumentFilter, LeftOut
from lion_lightning.data.document_filters.candidates import Candidates, ReadExample
from lion_lightning.data.formats.pairing import PromptAnswers
from lion_lightning.data.formats.sft import Conversation
from lion_lightning.data.learning.clusters import k_means, shared_out
from lion_lightning.data.learning.percentage import learning_percentages
from lion_lightning.data.learning.record import Floats, RecordedLosses
from lion_lightning.data.selection.spans import Choice
from lion_lightning.data.sources.readers import Numbers
from lion_lightning.data.sources.transforming import code_of, imported
from lion_lightning.errors import first_line

Keep = Literal["latest", "earliest", "middle", "random"]

_CAUSES = {"latest": "learnt early", "earliest": "learnt late", "middle": "learnt early or late", "random": "not drawn"}
_SHOWN = 3  # of the documents that are learnt last, in the log


class LatestLearnt(DocumentFilter):
    r"""Train on the documents that a recorded run has learnt last, a share of each source.

    Of a source's N documents with a learning percentage
    (:func:`~lion_lightning.data.learning.percentage.learning_percentages`), exactly ``round(share * N)`` are kept:
    those of the lowest, which means learnt late. With clusters each gives its share, by largest remainder; equal
    percentages are ordered by content. The recorded model may be another, smaller one, with another tokenizer:
    documents are found by their text. Documents without a percentage are left out, and counted apart.

    What is learnt late may be hard, or wrong: look at the rows first (``python -m lion_lightning.data.learning FILE``).

    Args:
        record: File of :class:`~lion_lightning.callbacks.LearningRecord`.
        share: Share of the documents to keep, above 0 and at most 1.
        approximate: Take the percentage that needs the losses of one epoch only.
        clusters: Clusters that are chosen from apart, by k-means; the paper has 1,000 for 52,002 documents.
        embed: Import path of a function from a list of texts to an array, ``(texts, dimensions)``, for the clusters.
        seed: Of the clusters, and of what is drawn at random.
        keep: ``latest``; or, for comparisons, ``earliest``, those in the ``middle``, or as many drawn at ``random``.

    Raises:
        ValueError: An argument is out of range.
    """

    needs_all_examples = True

    def __init__(
        self,
        record: str,
        share: float,
        approximate: bool = False,
        clusters: int = 1,
        embed: str | None = None,
        seed: int = 42,
        keep: Keep = "latest",
    ) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"LatestLearnt: share is {share}; give a share of the documents, above 0 and at most 1")
        if clusters < 1 or not 0 <= seed < 2**63:
            raise ValueError(
                f"LatestLearnt: clusters is {clusters} and seed {seed}; give at least 1, and a seed from 0 to 2**63 - 1"
            )
        if (clusters > 1) != (embed is not None):
            raise ValueError(
                "LatestLearnt: clusters above 1 and embed, the import path of a function from texts to an array, go "
                "together; give both or neither"
            )
        if keep not in (known := get_args(Keep)):
            raise ValueError(f"LatestLearnt: keep {keep!r} is unknown; choose {', '.join(known)}")
        self.record, self.share, self.approximate, self.keep = str(record), share, approximate, keep
        self.clusters, self.embed, self.seed = clusters, embed, seed

    @override
    def identity(self) -> dict[str, Any]:
        path = Path(self.record)
        if not path.is_file():
            raise ValueError(f"LatestLearnt: there is no learning record {path}; the recorded run's log names it")
        found = {**super().identity(), "record": hash_file(path)}  # wherever it lies
        return found if self.embed is None else found | {"embed": hash_json(code_of(imported(self.embed, "embed")))}

    @override
    def leave_out(self, candidates: Candidates) -> LeftOut:
        losses = self._losses(candidates)
        percentages = learning_percentages(losses, self.approximate)
        known = ~np.isnan(percentages)
        kept = self._chosen(candidates, percentages, np.flatnonzero(known))
        causes = {
            "no supervised token when losses were recorded": losses.targets == 0,
            "no learning percentage": ~known,
            _CAUSES[self.keep]: ~kept,
        }
        report = {
            "documents": int(known.sum()),
            "kept": int(kept.sum()),
            "mean_learning_percentage": float(percentages[known].mean()),
            "mean_learning_percentage_kept": float(percentages[kept].mean()),
        }
        return LeftOut(causes, report, self._lines(losses, percentages, report), self._warnings(losses))

    def _losses(self, candidates: Candidates) -> RecordedLosses:
        """The recorded losses of the candidates, in their order.

        Raises:
            ValueError: A candidate is not in the record.
        """
        recorded = RecordedLosses.read(self.record)
        rows = {digest.tobytes(): row for row, digest in enumerate(recorded.digests)}
        found = np.array([rows.get(digest.tobytes(), -1) for digest in candidates.digests], np.int64)
        missing = np.flatnonzero(found < 0)
        if len(missing):
            (place,) = candidates.places(missing[:1].tolist())
            trees = isinstance(next(iter(candidates.read())), PromptAnswers)
            reason = "prompts with answers, which are not learnt one by one" if trees else "no part of that training"
            raise ValueError(
                f"LatestLearnt: {len(missing):,} of the {len(candidates):,} documents of source "
                f"{candidates.source.label} are not in {self.record}, the first of them {place}: they are {reason}; "
                "record the losses in a run of SFT on the same sources"
            )
        return recorded.take(found)

    def _chosen(self, candidates: Candidates, percentages: Floats, usable: Numbers) -> Choice:
        """Which candidates are kept of those that have a percentage."""
        usable = usable[np.lexsort(candidates.digests[usable].T)]  # by content: nothing rests on the rows' order
        if not len(usable):
            raise ValueError(
                f"LatestLearnt: no document of source {candidates.source.label} has a learning percentage: none had a "
                f"supervised token, or training changed no loss; look at {self.record}, and record another run"
            )
        labels = self._labels(candidates, usable)
        counts = shared_out(np.bincount(labels, minlength=self.clusters), self.share)
        if not counts.sum():
            raise ValueError(
                f"LatestLearnt: a share of {self.share:g} of the {len(usable):,} documents of source "
                f"{candidates.source.label} with a learning percentage is none; raise share"
            )
        order = np.argsort(self._keys(percentages[usable]), kind="stable")
        kept = np.zeros(len(candidates), np.bool_)
        for cluster, count in enumerate(counts.tolist()):
            members = usable[order[labels[order] == cluster]]
            first = (len(members) - count) // 2 if self.keep == "middle" else 0
            kept[members[first : first + count]] = True
        return kept

    def _keys(self, percentages: Floats) -> Floats:
        """Sort keys of documents that are in the order of their contents."""
        if self.keep == "random":
            return np.random.default_rng(self.seed).random(len(percentages))
        return -percentages if self.keep == "earliest" else percentages

    def _labels(self, candidates: Candidates, usable: Numbers) -> npt.NDArray[np.int64]:
        """Cluster of each of these candidates."""
        if self.embed is None:
            return np.zeros(len(usable), np.int64)
        if len(usable) < self.clusters:
            raise ValueError(
                f"LatestLearnt: source {candidates.source.label} has {len(usable):,} documents with a learning "
                f"percentage, too few for {self.clusters:,} clusters; lower clusters"
            )
        texts = [*map(_text, candidates.read())]
        points = self._points([texts[position] for position in usable.tolist()])
        return k_means(torch.from_numpy(points), self.clusters, self.seed)

    def _points(self, texts: list[str]) -> Floats:
        """Embeddings of texts, ``(texts, dimensions)``."""
        assert self.embed is not None
        embed = imported(self.embed, "embed")
        try:
            found = np.asarray(embed(texts))
            points: Floats = found.astype(np.float64, casting="same_kind")  # no text, object or complex number
        except Exception as error:
            cause = first_line(error, with_type=True)
            raise ValueError(
                f"LatestLearnt: embed {self.embed} gives no array of numbers for {len(texts)} texts ({cause}); return "
                "one row of numbers for each text"
            ) from error
        if points.ndim != 2 or len(points) != len(texts) or not points.size or not np.isfinite(points).all():
            raise ValueError(
                f"LatestLearnt: embed {self.embed} gives an array of shape {points.shape} for {len(texts)} texts; "
                "return finite numbers, one row for each text"
            )
        return points

    def _lines(self, losses: RecordedLosses, percentages: Floats, report: dict[str, Any]) -> list[str]:
        """Counts, and the few documents that were learnt last, for a person to look at."""
        lines = [
            f"{report['kept']:,} of {report['documents']:,} documents kept ({self.keep}); mean learning percentage of "
            f"these {report['mean_learning_percentage_kept']:.3f}, of all {report['mean_learning_percentage']:.3f}"
        ]
        for position in np.argsort(percentages)[: min(_SHOWN, report["documents"])].tolist():  # NaN comes last
            lines.append(f"learnt last: {losses.places[position]} (learning percentage {percentages[position]:.3f})")
        return lines

    def _warnings(self, losses: RecordedLosses) -> list[str]:
        """Epochs that are used and were cut short."""
        for epoch in (1,) if self.approximate else (1, losses.epochs):
            if (share := losses.moments[epoch].share) < 1:
                return [
                    f"the run of {self.record} trained {share:.0%} of epoch {epoch}, so that some documents look late "
                    "for want of training; record whole epochs"
                ]
        return []


def _text(example: ReadExample) -> str:
    """All that a document says."""
    assert not isinstance(example, PromptAnswers)
    texts = [turn.content for turn in example.messages] if isinstance(example, Conversation) else example
    return "\n".join(filter(None, texts))
