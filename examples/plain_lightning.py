"""A foreign Lightning project: a plain LightningModule that trains on this package's packed data.

python -m examples.plain_lightning    # after: lion demo runs/demo
"""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from lion_lightning import SFTDataModule, Source, TokenizerSpec
from lion_lightning.types import PackedBatch


class PlainModule(LightningModule):
    """Next-token training of a transformers model, with nothing of this package but the batch.

    Args:
        model: Folder of a model's config.
    """

    def __init__(self, model: str) -> None:
        super().__init__()
        self.model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))

    def loss(self, batch: PackedBatch) -> Tensor:
        # transformers finds where documents begin by position_ids, which restart there, and keeps them apart
        logits = self.model(batch.input_ids[None], position_ids=batch.position_ids[None], use_cache=False).logits[0]
        # Targets are explicit: no shift by one, and no padding or prompt to ignore.
        return cross_entropy(logits[batch.logit_positions], batch.targets)

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, batch_size=1, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    data = SFTDataModule([Source("runs/demo/train.jsonl")], TokenizerSpec("runs/demo/model"), max_length=512)
    Trainer(max_steps=20, logger=False, enable_checkpointing=False).fit(PlainModule("runs/demo/model"), data)


if __name__ == "__main__":
    main()
