"""A preference loss: DPO whose rewards are also pulled to the values that the optimal policy has."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from lion_lightning import PreferenceLoss
from lion_lightning.types import PairLogps


class CalDPOLoss(PreferenceLoss):
    """Cal-DPO (arXiv 2412.14516): DPO's loss plus a squared error of each answer's log-ratio.

    Args:
        beta: Log-ratios are pulled to ``1/(2 beta)`` (chosen answer) and ``-1/(2 beta)`` (rejected answer).
    """

    def forward(self, policy: PairLogps, reference: PairLogps) -> Tensor:
        ratios = self.log_ratios(policy, reference)  # (pairs,) each
        target = 1 / (2 * self.beta)
        return -logsigmoid(ratios.margin) + (ratios.chosen - target) ** 2 + (ratios.rejected + target) ** 2
