"""Part of docs/plugging_in.md: python -m examples.plugging_in.sft.export MODEL ROWS.jsonl."""

import sys

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoModelForCausalLM

from lion_lightning import PolicyModel, SFTDataModule, Source, TokenizerSpec
from lion_lightning.callbacks import HuggingFaceExport, StepMean, TokenThroughput


class LitCausalLM(LightningModule):
    def __init__(self, name, lr=2e-5):
        super().__init__()
        self.save_hyperparameters()
        self.model = PolicyModel(AutoModelForCausalLM.from_pretrained(name, attn_implementation="lion"))

    def training_step(self, batch, batch_idx):
        loss = -self.model(batch).values.sum()
        self.log("train_loss", loss / len(batch.targets), on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


def main(name, path, max_epochs=1, **options):
    module = LitCausalLM(name)
    data = SFTDataModule([Source(path)], TokenizerSpec(name), max_length=512)
    callbacks = [ModelCheckpoint(), TokenThroughput(), StepMean(), HuggingFaceExport()]
    trainer = Trainer(max_epochs=max_epochs, accumulate_grad_batches=2, callbacks=callbacks, **options)
    trainer.fit(module, data)
    return module, trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
