"""The example of a user's own loss in docs/losses.md is short, runs, and is picked by its class path."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from lion_lightning.losses import PreferenceLoss
from tests.unit.losses.chosen_logps import HALF_NAT, LN3, with_ratios

PAGE = Path(__file__).parents[4] / "docs" / "losses.md"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    [text] = [block for block in blocks if "class FocalDPOLoss" in block]
    (tmp_path / "my_losses.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return str(text)


def test_a_users_loss_from_the_users_file_has_the_value_that_it_says(example: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=PreferenceLoss)
    chosen = {"class_path": "my_losses.FocalDPOLoss", "init_args": {"beta": 0.5, "power": 2.0}}
    loss = parser.instantiate(parser.parse_object({"loss": chosen})).loss
    policy, reference = with_ratios([2 * LN3], [0.0])
    # beta * 2 ln 3 = ln 3: (1 - 3/4)^2 * -log(3/4)
    assert loss(policy, reference).item() == pytest.approx(HALF_NAT / 16)
    assert loss.rewards(policy, reference).chosen.item() == pytest.approx(LN3)


def test_it_takes_under_twenty_lines(example: str) -> None:
    assert len(example.splitlines()) < 20
