"""A rule that leaves out training examples by their prompt, for ``data.document_filters``."""

import numpy as np

from lion_lightning.data.document_filters.base import DocumentFilter, LeftOut
from lion_lightning.data.document_filters.candidates import Candidates


class WithoutWords(DocumentFilter):
    """Leave out examples whose user wrote one of the words; reports count them."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def leave_out(self, candidates: Candidates) -> LeftOut:
        """Decide about all examples of a source."""
        found = [any(word in text for text in texts for word in self.words) for texts in candidates.user_texts()]
        return LeftOut({"a word of the list": np.array(found, bool)})
