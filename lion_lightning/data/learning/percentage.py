"""Learning percentages: the share of a document's learning that the first epoch makes (arXiv 2402.10430)."""

from __future__ import annotations

import numpy as np

from lion_lightning.data.learning.record import Floats, RecordedLosses


def learning_percentages(losses: RecordedLosses, approximate: bool = False) -> Floats:
    r"""Learning percentage of each document, ``(documents,)``; low for what is learnt late, NaN where there is none.

    With the perplexity :math:`P_k`, the exponential of the mean over **all** targets after epoch k of n,
    :math:`LP(1) = (P_0 - P_1) / (P_0 - P_n)`. There is none without targets, or where :math:`P_0 = P_n`. It may be
    below 0 or above 1. A ratio of ``expm1`` in float64, so that no large perplexity overflows on its own.

    Args:
        losses: Of one epoch at least, of two for the exact formula.
        approximate: Take :math:`(P_0 - P_1) / P_0`, which needs one epoch.

    Raises:
        ValueError: There are too few epochs, or a document's losses give no finite number.
    """
    needed = 1 if approximate else 2
    if losses.epochs < needed:
        raise ValueError(
            f"the learning percentage needs losses after {needed} epochs at least, and the record has {losses.epochs}; "
            "train longer with LearningRecord" + ("" if approximate else ", or set approximate: true for one epoch")
        )
    trained = losses.targets > 0
    with np.errstate(all="ignore"):
        means = losses.nll / losses.targets  # (moments, documents), ln P
        found: Floats = -np.expm1(means[1] - means[0])  # (P_0 - P_1) / P_0
        if not approximate:
            learned = -np.expm1(means[-1] - means[0])  # (P_0 - P_n) / P_0
            trained &= learned != 0
            found = found / learned
    wrong = np.flatnonzero(trained & ~np.isfinite(found))
    if len(wrong):
        raise ValueError(
            f"the losses of {len(wrong)} documents are no numbers, or too large for one, the first of them "
            f"{losses.places[wrong[0]]}: the recorded run has diverged; lower its learning rate"
        )
    return np.where(trained, found, np.nan)
