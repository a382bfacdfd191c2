"""Load balance of a mixture of experts."""

from __future__ import annotations

from torch import Tensor


def load_balancing_loss(probabilities: Tensor, fractions: Tensor) -> Tensor:
    """Auxiliary loss of a router (Switch Transformer, arXiv 2101.03961, equations 4 to 6), without its weight.

    With ``k`` experts per token, an even load gives ``k``, and one on the same ``k`` up to the number of experts.

    Args:
        probabilities: ``(experts,)`` mean of the router's softmax over tokens; differentiable.
        fractions: ``(experts,)`` share of tokens that went to each expert, which sum to ``k``; no gradient.
    """
    return len(fractions) * (fractions * probabilities).sum()
