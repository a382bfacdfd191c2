"""Part of docs/plugging_in.md: python -m examples.plugging_in.dpo.judge MODEL ROWS.jsonl."""

import sys

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoModelForCausalLM

from lion_lightning import CachedReference, OnPolicyDataModule, PolicyModel, Source, TokenizerSpec
from lion_lightning.callbacks import OnPolicySampling, PrecomputeReference
from lion_lightning.losses import SigmoidLoss
from lion_lightning.ops.logprobs import pair_logps
from lion_lightning.sampling import SamplingSettings, TransformersSampler


class Overlap:
    """The share of the row's right answer that an answer has, word by word."""

    def score(self, prompts, answers):
        right = [set(prompt.row["answer"].split()) for prompt in prompts]
        return [[len(words & {*text.split()}) / len(words) for text in texts] for words, texts in zip(right, answers)]


class LitDPO(LightningModule):
    def __init__(self, name, beta=0.1, lr=1e-6):
        super().__init__()
        self.save_hyperparameters()
        self.model = PolicyModel(AutoModelForCausalLM.from_pretrained(name, attn_implementation="lion"))
        self.reference, self.loss = CachedReference(), SigmoidLoss(beta)

    def training_step(self, batch, batch_idx):
        policy = pair_logps(self.model(batch), batch)
        reference = pair_logps(self.reference(batch, self.model), batch)
        loss = self.loss(policy, reference).mean()
        self.log("train_loss", loss, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


def main(name, path, max_epochs=1, **options):
    module = LitDPO(name)
    data = OnPolicyDataModule(prompts=[Source(path)], tokenizer=TokenizerSpec(name), max_length=512)
    sampler, judge = TransformersSampler(SamplingSettings(max_new_tokens=64)), Overlap()
    callbacks = [ModelCheckpoint(), OnPolicySampling(sampler, judge), PrecomputeReference()]
    trainer = Trainer(max_epochs=max_epochs, reload_dataloaders_every_n_epochs=1, callbacks=callbacks, **options)
    trainer.fit(module, data)
    return module, trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
