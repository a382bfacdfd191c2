"""How a process of this package starts: what it hides of Lightning's messages, and bars in a pipe."""

from __future__ import annotations

import logging
import os
import warnings

import pytest

from lion_lightning.processes.entry_point import run_guarded


def test_messages_that_nobody_can_act_on_are_hidden_and_others_are_not(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    def body() -> None:
        seed = logging.getLogger("lightning.fabric.utilities.seed")
        trainer = logging.getLogger("lightning.pytorch.utilities.rank_zero")
        for logger, text in (
            (seed, "Seed set to 3"),
            (trainer, "GPU available: False"),
            (trainer, "Else"),
        ):
            logger.warning(text)
        warnings.warn("Checkpoint directory /x exists and is not empty.", stacklevel=1)
        warnings.warn("the data has changed", stacklevel=1)

    assert run_guarded(body) == 0
    assert [record.message for record in caplog.records] == ["Else"]
    assert [str(each.message) for each in recwarn] == ["the data has changed"]


def test_in_a_pipe_bars_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TQDM_MININTERVAL", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")  # a user's own setting stays
    assert run_guarded(lambda: None) == 0
    assert (os.environ["TQDM_MININTERVAL"], os.environ["HF_HUB_DISABLE_PROGRESS_BARS"]) == ("2", "0")
