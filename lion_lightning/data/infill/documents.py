"""Documents of an epoch, some of them with holes, other ones in each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lion_lightning.cache import hash_json
from lion_lightning.data.infill.corruption import Corruption, SpecialTokens
from lion_lightning.data.packing.best_fit import small
from lion_lightning.data.selection.documents import Documents, Selection
from lion_lightning.data.store.tokenized import TokenBatches
from lion_lightning.types import Sample

_LOOKED_AT = 512  # documents by which the length of an infill is estimated


class Infilled(Documents):
    """Documents of which a share, drawn anew in each epoch, is corrupted: the causal mixture of CodeGen2.

    What becomes of a document follows from the seed, the epoch, its number and its position: it is the same for any
    number of ranks and workers, and in a resumed run. Documents with fewer than 2 tokens besides BOS and EOS stay as
    they are.

    Args:
        selections: The sources' final selections.
        corruption: How holes are made.
        tokenizer: Tokenizer of the documents.
        share: Probability that a document is corrupted, from 0 to 1.
        seed: Seed of all draws.

    Attributes:
        lengths: ``(documents,)`` most tokens that each may have in any epoch, so that the number of rows does not
            depend on chance.

    Raises:
        ValueError: A special token is missing, or a document holds one.
    """

    def __init__(
        self,
        selections: Sequence[Selection],
        corruption: Corruption,
        tokenizer: PreTrainedTokenizerBase,
        share: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__(selections)
        self.corruption, self.share, self.epoch = corruption, share, 0
        self._special, self._seed = SpecialTokens.of(corruption.tokens, tokenizer), seed
        self._sizes = self.lengths
        if share:
            for selection in selections:
                _refuse_special_tokens(selection, self._special, corruption)
            self.lengths = small(self.lengths.astype(np.int64) + corruption.extra)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose documents are read next."""
        self.epoch = epoch

    @override
    def __getitem__(self, position: int) -> Sample:
        """Read one document of the present epoch."""
        sample = super().__getitem__(position)
        rng = np.random.default_rng([self._seed, self.epoch, sample.index, position])
        file = self._special.file(sample.segments[0].input_ids)
        if rng.random() >= self.share or len(file.body) < 2:
            return sample
        made = self.corruption.apply(file, self._special, rng)
        return replace(sample, segments=self.corruption.segments(made))

    @cached_property
    @override
    def digest(self) -> str:
        """Hash of all documents and of what they become in every epoch."""
        made = {"documents": super().digest, "share": self.share, "seed": self._seed}
        return hash_json(made | self.corruption.settings()) if self.share else super().digest

    @property
    def too_short(self) -> int:
        """Documents that stay as they are because they have fewer than 2 tokens besides BOS and EOS."""
        short = np.flatnonzero(self._sizes < 4).tolist()
        ids = [super(Infilled, self).__getitem__(position).segments[0].input_ids for position in short]
        return sum(len(self._special.file(tokens).body) < 2 for tokens in ids)

    @override
    def notes(self) -> list[str]:
        if not (self.share and len(self)):
            return []
        name, extra = type(self.corruption).__name__, self.corruption.extra
        lines = [f"infills by {name}: {self.share:.0%} of the documents, others in each epoch; counted without them"]
        if extra:
            positions = np.unique(np.linspace(0, len(self) - 1, _LOOKED_AT, dtype=np.int64))
            added = np.mean([self[position].length - self._sizes[position] for position in positions.tolist()])
            free = (extra - added) / self.lengths.mean()
            lines.append(
                f"room for {extra} more tokens a document, of which {added:.1f} are used on average; about {free:.1%} "
                "of the rows' tokens stay free"
            )
        if count := self.too_short:
            lines.append(f"never infilled, fewer than 2 tokens: {count:,}")
        return lines


def _refuse_special_tokens(selection: Selection, special: SpecialTokens, corruption: Corruption) -> None:
    """Refuse documents that hold a token which only an infill may have."""
    table = selection.table
    row = table.find(special.own) if isinstance(table, TokenBatches) else None
    if row is not None:
        raise ValueError(
            f"{table.where(row)}: the row holds a special token of {type(corruption).__name__} "
            f"({', '.join(corruption.tokens[:3])}, ...), which would be taken for an infill's; take it out of the rows"
        )
