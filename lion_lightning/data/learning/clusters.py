"""Clusters of documents by embeddings of their texts, and shares of them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ROUNDS = 100
_BLOCK = 4096  # points whose distances are held at once


def k_means(points: Tensor, clusters: int, seed: int) -> npt.NDArray[np.int64]:
    """Cluster of each point, ``(points,)``, by Lloyd's algorithm from k-means++; the same in every run on a CPU.

    Args:
        points: ``(points, dimensions)``.
        clusters: How many; some may end without a point where many are equal.
        seed: Of the first centers.
    """
    points = points.double()
    centers = _first_centers(points, clusters, torch.Generator().manual_seed(seed))
    labels = _nearest(points, centers)[0]
    for _ in range(_ROUNDS):
        sums = torch.zeros_like(centers).index_add_(0, labels, points)
        sizes = labels.bincount(minlength=clusters)[:, None]
        centers = torch.where(sizes > 0, sums / sizes.clamp_min(1), centers)
        before, labels = labels, _nearest(points, centers)[0]
        if torch.equal(labels, before):
            break
    return labels.numpy()


def shared_out(sizes: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.int64]:
    """How many of each cluster: a share of all of them, to the document, by largest remainder.

    Args:
        sizes: ``(clusters,)`` documents of each.
        share: From 0 to 1.
    """
    exact = [Fraction(str(share)) * size for size in sizes.tolist()]  # as it is written: 0.29 of 100 are 29
    counts = np.array([int(number) for number in exact], np.int64)
    remainders = [float(number % 1) for number in exact]
    rest = round(sum(exact, Fraction(0))) - int(counts.sum())
    counts[np.argsort(-np.array(remainders), kind="stable")[:rest]] += 1
    return counts


def _first_centers(points: Tensor, clusters: int, random: torch.Generator) -> Tensor:
    """Points drawn one by one, each with a probability that grows with its squared distance from those before it."""
    chosen = [int(torch.randint(len(points), (), generator=random))]
    distances = points.new_full((len(points),), torch.inf)
    while len(chosen) < clusters:
        distances = torch.minimum(distances, _nearest(points, points[chosen[-1:]])[1])
        weights = distances if distances.sum() > 0 else torch.ones_like(distances)  # all points are chosen
        chosen.append(int(weights.multinomial(1, generator=random)))
    return points[chosen]


def _nearest(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest center of each point, and the squared distance from it."""
    found = [torch.cdist(block, centers).min(dim=1) for block in torch.split(points, _BLOCK)]
    return torch.cat([each.indices for each in found]), torch.cat([each.values for each in found]).square()
