"""Losses of a margin between two log-ratios: DPO and its relatives."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from lion_lightning.losses.preference import PreferenceLoss
from lion_lightning.types import PairLogps


class SigmoidLoss(PreferenceLoss):
    r"""DPO: :math:`-\log \sigma(\beta \Delta)`, :math:`\Delta` the margin of the log-ratios (arXiv 2305.18290, eq. 7).

    Args:
        beta: Strength of the pull towards the reference, above 0.
    """

    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        """See the class."""
        return -logsigmoid(self.rewards(policy, reference).margin)
