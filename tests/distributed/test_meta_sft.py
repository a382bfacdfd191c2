"""Meta-learned training over two ranks: each runs an episode of its own; sharded weights are refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import SGD

from lion_lightning import PolicySpec, TokenizerSpec
from lion_lightning.experimental.meta_sft import MetaSFTModule
from lion_lightning.strategies import FSDP2Strategy
from tests.distributed.ranks import run_ranks
from tests.tiny import Rows, row, shallow, tokenizer_folder, trainer

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

ROWS = [row(seed=seed, supervised=range(25 - 2 * seed, 25) if seed else None) for seed in range(12)]
INNER, OUTER, WINDOW = 0.1, 0.3, 3


def module(folder: Path) -> MetaSFTModule:
    torch.manual_seed(0)
    spec = PolicySpec(config=shallow())
    made = MetaSFTModule(spec, inner_lr=INNER, tokenizer=TokenizerSpec(str(folder)), optimizer=partial(SGD, lr=OUTER))
    made.configure_model()
    return made


def weights(made: MetaSFTModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in made.policy_model.named_parameters()}


def fit(rank: int, world: int, folder: Path) -> dict[str, Any]:
    with pytest.raises(MisconfigurationException, match="FSDP2Strategy averages gradients over ranks in every micro-"):
        trainer(strategy=FSDP2Strategy(), devices=world, accumulate_grad_batches=WINDOW).fit(module(folder), Rows(ROWS))
    made = module(folder)
    run = trainer(max_epochs=1, strategy="ddp", devices=world, accumulate_grad_batches=WINDOW)
    run.fit(made, Rows(ROWS, rank, world))
    return weights(made)


def by_hand(made: MetaSFTModule) -> None:
    """Rank r has rows r, r + 2, ...: from one start, two episodes, and the mean over the tokens of their last rows."""
    parameters = [*made.policy_model.parameters()]

    def gradients(number: int) -> Any:
        return torch.autograd.grad(-made.policy_model(ROWS[number]).values.sum(), parameters)

    @torch.no_grad()
    def move(rate: float, found: Any) -> None:
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.sub_(rate * gradient)

    for first in range(0, len(ROWS), 2 * WINDOW):
        start, total, tokens = [p.detach().clone() for p in parameters], [torch.zeros_like(p) for p in parameters], 0
        for rank in range(2):
            *inner, last = range(first + rank, first + 2 * WINDOW, 2)
            for number in inner:
                move(INNER / len(ROWS[number].targets), gradients(number))
            total = [a + b for a, b in zip(total, gradients(last), strict=True)]
            tokens += len(ROWS[last].targets)
            with torch.no_grad():
                for parameter, value in zip(parameters, start, strict=True):
                    parameter.copy_(value)
        move(OUTER / tokens, total)


def test_two_ranks_average_the_gradients_of_their_own_episodes(tmp_path: Path) -> None:
    tokenizer_folder(tmp_path)
    expected = module(tmp_path)
    by_hand(expected)
    first, second = run_ranks(fit, tmp_path, tmp_path)
    for name, weight in weights(expected).items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], weight, rtol=1e-5, atol=2e-6, msg=name)
