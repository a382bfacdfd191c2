"""A policy gradient: ratios weigh tokens and are not differentiated, so that a clipped token still learns."""

from typing import Any

from torch import Tensor

from lion_lightning.losses import DAPOLoss
from lion_lightning.types import AnswerLogps


class CISPOLoss(DAPOLoss):
    """CISPO (arXiv 2506.13585, eq. 4 and 5)."""

    def __init__(self, clip_low: float | None = 1.0, clip_high: float | None = 4.0, **kwargs: Any) -> None:
        super().__init__(clip_low=clip_low, clip_high=clip_high, **kwargs)  # of no ratio from below, of 5 from above

    def surrogate(self, ratios: Tensor, advantages: Tensor, policy: AnswerLogps) -> Tensor:
        return -self.clip(ratios).detach() * advantages * policy.tokens.values
