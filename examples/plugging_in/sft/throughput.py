"""Part of docs/plugging_in.md: python -m examples.plugging_in.sft.throughput MODEL ROWS.jsonl."""

import json
import sys
from functools import partial

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from lion_lightning.callbacks import TokenThroughput


class Conversations(Dataset):
    """Token ids and labels of each row; the labels of all turns but the last are -100."""

    def __init__(self, path, tokenizer, max_length):
        self.rows = [json.loads(line)["messages"] for line in open(path)]
        self.tokenizer, self.max_length = tokenizer, max_length

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        messages, render = self.rows[index], partial(self.tokenizer.apply_chat_template, return_dict=False)
        ids = torch.tensor(render(messages)[: self.max_length])
        prompt = len(render(messages[:-1], add_generation_prompt=True))
        return ids, torch.where(torch.arange(len(ids)) < prompt, -100, ids)


def collate(examples):
    ids, labels = zip(*examples)
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


class LitCausalLM(LightningModule):
    def __init__(self, name, lr=2e-5):
        super().__init__()
        self.save_hyperparameters()
        self.model = AutoModelForCausalLM.from_pretrained(name)

    def training_step(self, batch, batch_idx):
        loss = self.model(**batch).loss
        self.log("train_loss", loss, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


def main(name, path, max_epochs=1, **options):
    module = LitCausalLM(name)
    dataset = Conversations(path, AutoTokenizer.from_pretrained(name), max_length=512)
    data = DataLoader(dataset, batch_size=8, shuffle=True, collate_fn=collate)
    callbacks = [ModelCheckpoint(), TokenThroughput()]
    trainer = Trainer(max_epochs=max_epochs, accumulate_grad_batches=2, callbacks=callbacks, **options)
    trainer.fit(module, data)
    return module, trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
