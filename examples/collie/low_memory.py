"""Fine-tuning without ever holding all gradients: LOMO (plain SGD) and AdaLomo against AdamW, on the demo task.

python -m examples.collie.low_memory runs/low_memory    # under three minutes on two cores

First SGD after the backward pass and within it: the same curve, and the bytes of gradients that were alive at once.
Then AdamW, and AdaLomo within the backward pass, from several seeds: the validation loss, and the bytes of the
optimizer's state.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from random import Random

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch.optim import SGD, AdamW

from lion_lightning import PolicySpec, SFTDataModule, SFTModule, Source
from lion_lightning.callbacks import FusedBackward
from lion_lightning.modules import CosineWithWarmup
from lion_lightning.optim import AdaLomo
from lion_lightning.tools.demo import make_config, make_rows, make_tokenizer
from lion_lightning.tools.evaluate.intervals import mean_interval

# AdamW's rate is the best of four for another seed; the others were not searched.
ADAMW = partial(AdamW, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.01)
ADALOMO = partial(AdaLomo, lr=2e-2)
LOMO = partial(SGD, lr=0.3)
CLIP = 1.0  # of SGD and AdamW


class Watch(Callback):
    """Losses of the steps, and the most bytes of gradients that were there when one arrived."""

    def __init__(self):
        self.losses = []
        self.most = 0

    def on_train_start(self, trainer, module):
        for parameter in module.parameters():
            parameter.register_post_accumulate_grad_hook(partial(self.count, [*module.parameters()]))

    def count(self, parameters, arrived):
        alive = (p.grad.nbytes for p in parameters if p.grad is not None)
        self.most = max(self.most, sum(alive))

    def on_train_batch_end(self, trainer, *_):
        self.losses.append(trainer.callback_metrics["train/loss"].item())


def write_task(folder, rows):
    """Write questions of the demo task with their right answers, of those to train on a quarter with mistakes."""
    tokenizer, random, taken = make_tokenizer(), Random(0), set[str]()
    tokenizer.save_pretrained(folder / "model")
    make_config(tokenizer).save_pretrained(folder / "model")
    for name, count, slips in (("validation", 110, 0.0), ("train", rows, 0.25)):
        lines = [json.dumps(row) + "\n" for row in make_rows(count, random, taken, slips)]
        (folder / f"{name}.jsonl").write_text("".join(lines))


def train(folder, optimizer, seed, fused, clip=CLIP):
    """An epoch of SFT from random weights: what was watched, the validation loss, bytes of the optimizer's state."""
    seed_everything(seed, verbose=False)
    module = SFTModule(
        PolicySpec(config=str(folder / "model")),
        optimizer=optimizer,
        lr_scheduler=partial(CosineWithWarmup, warmup=0.05),
    )
    data = SFTDataModule(
        [Source(str(folder / "train.jsonl"))],
        module.tokenizer_spec,
        validation=[Source(str(folder / "validation.jsonl"))],
        max_length=192,
        batch_size=2,
        cache_dir=folder / "cache",
    )
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=None if fused else clip,
        callbacks=[watch, FusedBackward(clip_norm=clip)] if fused else [watch],
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    size = 0
    for entries in trainer.optimizers[0].state.values():
        size += sum(value.nbytes for value in entries.values() if isinstance(value, torch.Tensor))
    return watch, trainer.callback_metrics["val/loss"].item(), size


def compare(folder, seeds):
    """Print the validation loss of each optimizer from each seed, and the mean difference with its interval."""
    print(f"{'optimizer':10} {'bytes of state':>16} {'gradients at once':>18}   validation loss, by seed")
    found = {}
    for name, optimizer, fused, clip in (("AdamW", ADAMW, False, CLIP), ("AdaLomo", ADALOMO, True, None)):
        runs = [train(folder, optimizer, seed, fused, clip) for seed in range(seeds)]
        found[name] = [loss for _, loss, _ in runs]
        watch, _, state = runs[0]
        losses = "  ".join(f"{loss:.3f}" for loss in found[name])
        print(f"{name:10} {state:16,} {watch.most:18,}   {losses}")
    mean, low, high = mean_interval([other - one for one, other in zip(*found.values(), strict=True)])
    interval = f" [{low:+.3f}, {high:+.3f}] (95%)" if seeds > 1 else ", of one seed"
    print(f"AdaLomo less AdamW: {mean:+.3f}{interval}")
    return found


def main(argv=None):
    """Write the task, and run both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1500, help="to train on (1500)")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(argv)
    write_task(options.folder, options.rows)
    after, _, _ = train(options.folder, LOMO, 0, fused=False)
    within, _, _ = train(options.folder, LOMO, 0, fused=True)
    apart = max(abs(one - other) for one, other in zip(after.losses, within.losses, strict=True))
    first, *_, last = after.losses
    print(f"SGD, {len(after.losses)} steps: loss {first:.3f} to {last:.3f}; the two curves {apart:.1e} apart")
    print(f"bytes of gradients at once: {after.most:,} after the backward pass, {within.most:,} within it")
    return after, within, compare(options.folder, options.seeds)


if __name__ == "__main__":
    main()
