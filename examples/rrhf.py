"""A loss of groups: log-probs per token are to rank answers as their scores do."""

from torch import Tensor

from lion_lightning import GroupLoss
from lion_lightning.types import AnswerLogps


class RRHFLoss(GroupLoss):
    """RRHF (arXiv 2304.05302): a hinge for each pair in the wrong order, and the best answer's NLL."""

    needs_reference = False

    def forward(self, policy: AnswerLogps, reference: AnswerLogps, values: Tensor) -> Tensor:
        worse = values[:, :, None] < values[:, None, :]  # (groups, n, n)
        above = policy.means[:, :, None] - policy.means[:, None, :]  # by how much answer i is likelier than j
        best = policy.sums.gather(1, values.argmax(1, keepdim=True)).squeeze(1)
        return (worse * above.relu()).sum((1, 2)) - best
