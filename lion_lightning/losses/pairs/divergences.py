"""f-divergences: how far a policy may go from its reference, and in which sense (f-DPO, arXiv 2309.16240).

Constants in f' cancel in a margin; here each f' is 0 at a ratio of 1, so that a policy equal to its reference earns 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor
from torch.nn.functional import logsigmoid
from typing_extensions import override

from lion_lightning.losses.base import out_of_range

_LARGEST_EXPONENT = 80.0  # its exponential is still a finite fp32 number


class Divergence(ABC):
    """Derivative of the function f that defines a divergence; under it, beta times that derivative is the reward."""

    @abstractmethod
    def derivative(self, log_ratios: Tensor) -> Tensor:
        """``f'(u)``, rising in u, and 0 at u = 1.

        Args:
            log_ratios: ``log u``, the log-ratio of policy to reference; any shape.
        """


class ReverseKL(Divergence):
    r""":math:`f'(u) = \log u`: plain DPO."""

    @override
    def derivative(self, log_ratios: Tensor) -> Tensor:
        return log_ratios


class ForwardKL(Divergence):
    r""":math:`f'(u) = 1 - 1/u`: covers what the reference says rather than seeking its modes."""

    @override
    def derivative(self, log_ratios: Tensor) -> Tensor:
        return -_expm1(-log_ratios)


class JensenShannon(Divergence):
    r""":math:`f'(u) = \log \frac{2u}{1 + u}`."""

    @override
    def derivative(self, log_ratios: Tensor) -> Tensor:
        return math.log(2.0) + logsigmoid(log_ratios)


class AlphaDivergence(Divergence):
    r""":math:`f'(u) = (1 - u^{-\alpha}) / \alpha`, between reverse KL (alpha to 0) and forward KL (alpha to 1).

    Args:
        alpha: Above 0 and below 1 (TRL's ``f_alpha_divergence_coef`` is ``1 - alpha``).
    """

    def __init__(self, alpha: float = 0.5) -> None:
        if not 0 < alpha < 1:
            raise out_of_range(self, "alpha", alpha, "above 0 and below 1")
        self.alpha = alpha

    @override
    def derivative(self, log_ratios: Tensor) -> Tensor:
        return -_expm1(-self.alpha * log_ratios) / self.alpha


def _expm1(exponents: Tensor) -> Tensor:
    return exponents.clamp(max=_LARGEST_EXPONENT).expm1()
