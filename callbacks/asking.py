"""Greedy answers of a module in training, and texts for the loggers that take some."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lion_lightning.models.generation.greedy import generate_answers
from lion_lightning.modules.base import AlignmentModule


def greedy_answers(
    trainer: Trainer, module: AlignmentModule, prompts: Sequence[str], max_new_tokens: int
) -> dict[str, str]:
    """The policy's greedy answer to each prompt; nothing where another rank answers. Every rank calls this.

    On one device or under DDP, rank 0 alone generates; under any other strategy all ranks do, since each holds only a
    piece of the weights.

    Args:
        trainer: The trainer.
        module: Whose policy answers; random state and training mode stay as they were.
        prompts: What a user says, one turn each.
        max_new_tokens: Length limit of an answer.
    """
    # Subclasses may shard (DeepSpeed's does); that all ranks generate is right for every strategy, if wasteful.
    whole = type(trainer.strategy) in (SingleDeviceStrategy, DDPStrategy)
    if whole and not trainer.is_global_zero:
        return {}
    return dict(zip(prompts, generate_answers(module, prompts, max_new_tokens), strict=True))


def log_text(trainer: Trainer, tag: str, text: str) -> None:
    """Give a text to the loggers that take one: those whose experiment is TensorBoard's writer, or like it.

    Args:
        trainer: Whose loggers.
        tag: The text's name.
        text: Markdown; nothing is logged if it is empty.
    """
    for logger in trainer.loggers if text else ():
        add_text = getattr(getattr(logger, "experiment", None), "add_text", None)
        if callable(add_text):
            add_text(tag, text, trainer.global_step)
