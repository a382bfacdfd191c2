"""A reference: what the policy is compared with."""

from collections.abc import Callable

import torch
from torch import nn

from lion_lightning import PolicyModel, PolicySpec, Reference
from lion_lightning.types import PackedBatch, TokenLogps


class EnsembleReference(Reference):
    """Mean log-probs of several models, such as the exports of one stage with different seeds.

    Args:
        models: Folders or hub ids; they must have the policy's tokenizer.
    """

    def __init__(self, models: list[str]) -> None:
        super().__init__()
        self.paths, self.models = models, nn.ModuleList()

    def attach(self, policy: PolicyModel, build: Callable[[PolicySpec | None], PolicyModel]) -> None:
        if not self.models:  # may be called again
            self.models.extend(build(PolicySpec(path)).requires_grad_(False).eval() for path in self.paths)

    @torch.no_grad()
    def forward(self, batch: PackedBatch, policy: PolicyModel) -> TokenLogps:
        logps = [model(batch).values for model in self.models]  # (targets,) of each model
        return TokenLogps(torch.stack(logps).mean(0))
