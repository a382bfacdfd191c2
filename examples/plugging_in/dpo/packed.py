"""Part of docs/plugging_in.md: python -m examples.plugging_in.dpo.packed MODEL ROWS.jsonl."""

import sys
from copy import deepcopy

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from lion_lightning import PolicyModel, PreferenceDataModule, Source, TokenizerSpec
from lion_lightning.ops.logprobs import pair_logps


class LitDPO(LightningModule):
    def __init__(self, name, beta=0.1, lr=1e-6):
        super().__init__()
        self.save_hyperparameters()
        self.model = PolicyModel(AutoModelForCausalLM.from_pretrained(name, attn_implementation="lion"))
        self.reference = deepcopy(self.model).requires_grad_(False).eval()

    def logps(self, model, batch):
        """Log-probs of the chosen and of the rejected answers, ``(pairs,)`` each."""
        return [side.sums for side in pair_logps(model(batch), batch)]

    def training_step(self, batch, batch_idx):
        chosen, rejected = self.logps(self.model, batch)
        with torch.no_grad():
            reference_chosen, reference_rejected = self.logps(self.reference, batch)
        margin = (chosen - reference_chosen) - (rejected - reference_rejected)
        loss = -logsigmoid(self.hparams.beta * margin).mean()
        self.log("train_loss", loss, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


def main(name, path, max_epochs=1, **options):
    module = LitDPO(name)
    data = PreferenceDataModule([Source(path)], TokenizerSpec(name), max_length=512)
    callbacks = [ModelCheckpoint()]
    trainer = Trainer(max_epochs=max_epochs, callbacks=callbacks, **options)
    trainer.fit(module, data)
    return module, trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
