"""How a process of this package starts: what it hides of Lightning's messages, and bars in a pipe."""

from __future__ import annotations

import logging
import os
import warnings

import pytest

from lion_lightning.processes.entry_point import format_own_warnings, run_guarded


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


def test_warnings_of_this_package_are_one_line_without_file_and_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back after the test
    format_own_warnings()
    format_own_warnings()  # the second time changes nothing
    own, other = run_guarded.__code__.co_filename, os.__file__
    assert warnings.formatwarning("two\nlines", UserWarning, own, 3) == "warning: two lines\n"
    assert warnings.formatwarning("x", UserWarning, other, 3, "").startswith(f"{other}:3: UserWarning: x")
    monkeypatch.setenv("LION_DEBUG", "1")
    assert own in warnings.formatwarning("x", UserWarning, own, 3)


def test_warnings_of_the_log_say_that_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        logger = logging.getLogger("lion_lightning.some.part")
        logger.info("read 3 rows")
        logger.warning("one is empty")

    assert run_guarded(body) == 0
    assert capfd.readouterr().err.splitlines() == ["read 3 rows", "warning: one is empty"]
