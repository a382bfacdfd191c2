"""Part of docs/plugging_in.md: python -m examples.plugging_in.dpo.start MODEL ROWS.jsonl."""

import json
import sys
from copy import deepcopy
from functools import partial

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer


class Preferences(Dataset):
    """Token ids and labels of the chosen and the rejected conversation of each row; labels of the prompt are -100."""

    def __init__(self, path, tokenizer, max_length):
        self.rows = [json.loads(line) for line in open(path)]
        self.tokenizer, self.max_length = tokenizer, max_length

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row, render = self.rows[index], partial(self.tokenizer.apply_chat_template, return_dict=False)
        prompt = len(render(row["prompt"], add_generation_prompt=True))
        sides = [torch.tensor(render(row["prompt"] + row[key])[: self.max_length]) for key in ("chosen", "rejected")]
        return [(ids, torch.where(torch.arange(len(ids)) < prompt, -100, ids)) for ids in sides]


def collate(rows):
    """A padded batch: all chosen conversations, then all rejected ones."""
    ids, labels = zip(*[side for sides in zip(*rows) for side in sides])
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


class LitDPO(LightningModule):
    def __init__(self, name, beta=0.1, lr=1e-6):
        super().__init__()
        self.save_hyperparameters()
        self.model = AutoModelForCausalLM.from_pretrained(name)
        self.reference = deepcopy(self.model).requires_grad_(False).eval()

    def logps(self, model, batch):
        """Log-probs of the chosen and of the rejected answers, ``(pairs,)`` each."""
        labels = batch["labels"][:, 1:]
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        picked = logits.log_softmax(-1).gather(2, labels.clamp_min(0)[..., None])[..., 0]
        return (picked * (labels != -100)).sum(1).chunk(2)

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
    dataset = Preferences(path, AutoTokenizer.from_pretrained(name), max_length=512)
    data = DataLoader(dataset, batch_size=8, shuffle=True, collate_fn=collate)
    callbacks = [ModelCheckpoint()]
    trainer = Trainer(max_epochs=max_epochs, callbacks=callbacks, **options)
    trainer.fit(module, data)
    return module, trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
