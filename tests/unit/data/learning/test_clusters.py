"""Clusters and shares of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lion_lightning.data.learning.clusters import k_means, shared_out


def test_clusters_that_lie_apart_are_found_and_are_the_same_each_time() -> None:
    centers = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    owners = torch.arange(300) % 3
    points = centers[owners] + torch.randn(300, 2, generator=torch.Generator().manual_seed(1))
    labels = k_means(points, 3, seed=42)
    assert len({(int(owner), int(label)) for owner, label in zip(owners, labels, strict=True)}) == 3
    np.testing.assert_array_equal(k_means(points, 3, seed=42), labels)
    # at the end each point is nearest to the mean of its own cluster
    means = torch.stack([points[labels == label].mean(0) for label in range(3)])
    np.testing.assert_array_equal(torch.cdist(points, means).argmin(1), labels)


def test_equal_points_and_as_many_clusters_as_points_are_no_trouble() -> None:
    assert k_means(torch.ones(5, 2), 3, seed=0).max() <= 2
    assert sorted(k_means(torch.tensor([[0.0], [10.0], [30.0]]), 3, seed=0).tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("sizes", "share", "counts"),
    [
        ((3, 3, 4), 0.5, (2, 1, 2)),  # 1.5, 1.5 and 2 of 5: the first of the equal remainders
        ((10, 1, 1), 0.25, (3, 0, 0)),  # 2.5, 0.25, 0.25 of 3
        ((100,), 0.29, (29,)),  # where 0.29 * 100 is 28.999999999999996
        ((7, 5), 1.0, (7, 5)),
        ((1, 1, 1), 0.1, (0, 0, 0)),
        ((6, 0, 3), 1 / 3, (2, 0, 1)),
    ],
)
def test_a_share_is_given_by_largest_remainder(sizes: tuple[int, ...], share: float, counts: tuple[int, ...]) -> None:
    assert shared_out(np.array(sizes), share).tolist() == [*counts]
    assert sum(counts) == round(share * sum(sizes))
