"""Embeddings of texts without a model, for the clusters of ``LatestLearnt``: texts with the same words lie together."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

DIMENSIONS = 64


def hashed_words(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """Counts of words, each hashed to one of a few dimensions, at length 1: ``(texts, DIMENSIONS)``.

    With a model of your own: ``SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2").encode(texts)``.
    """
    points = np.zeros((len(texts), DIMENSIONS))
    for number, text in enumerate(texts):
        for word in text.lower().split():
            points[number, blake2b(word.encode(), digest_size=1).digest()[0] % DIMENSIONS] += 1
    lengths: npt.NDArray[np.float64] = np.linalg.norm(points, axis=1, keepdims=True).clip(min=1e-9)
    return points / lengths
