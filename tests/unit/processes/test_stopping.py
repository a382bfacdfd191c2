"""What a process does when it is told to stop: true exit codes, no half step, nothing goes on as if it were done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lion_lightning import PolicySpec, SFTModule, TokenizerSpec, cli
from lion_lightning.data.packing.loader import PackedLoader
from lion_lightning.models.checkpoints.io import CheckedCheckpointIO
from lion_lightning.modules.optimization.schedules import CosineWithWarmup
from lion_lightning.processes.entry_point import run_guarded
from lion_lightning.processes.folder_lock import NAME, FolderLock
from lion_lightning.processes.stopping import STOP, Stopped, delayed_signals, stop_code
from lion_lightning.tools.train.stopping import LockRootDir, StopBetweenSteps
from lion_lightning.types import Sample, SampleSegment
from tests import tiny
from tests.marks import slow

pytestmark = pytest.mark.filterwarnings("ignore")

BATCHES = 4
SIGNALS = [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    STOP.__init__()  # type: ignore[misc]


# --- exit codes


def command(monkeypatch: pytest.MonkeyPatch, body: Callable[..., Any]) -> int:
    """Exit code of a command that does this."""
    monkeypatch.setattr(cli, "_run", lambda arguments: body())
    return cli.main(["report"])


@pytest.mark.parametrize(("signum", "code"), SIGNALS)
def test_a_command_that_a_signal_stops_exits_with_128_and_its_number(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], signum: signal.Signals, code: int
) -> None:
    assert command(monkeypatch, lambda: signal.raise_signal(signum)) == code
    assert capfd.readouterr().err == f"lion: stopped by {signum.name}\n"


def test_lightnings_exception_for_sigterm_which_has_no_code_is_143(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises() -> None:
        raise SIGTERMException

    assert command(monkeypatch, raises) == 143


def test_lightnings_exit_1_after_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def exits() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    assert command(monkeypatch, exits) == 130


def test_an_error_that_the_signal_has_caused_is_not_told_as_an_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A DataLoader whose worker has got the same signal raises RuntimeError."""

    def fails() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Stopped as error:
            raise RuntimeError("worker killed by signal") from error

    assert command(monkeypatch, fails) == 143
    assert "worker" not in capfd.readouterr().err


def test_an_exit_that_no_signal_has_caused_keeps_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, lambda: sys.exit(0))
    assert stop.value.code == 0


def test_signals_that_are_ignored_stay_ignored_as_nohup_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert command(monkeypatch, lambda: signal.raise_signal(signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [signal.getsignal(signum) for signum, _ in SIGNALS]
    command(monkeypatch, lambda: None)
    assert [signal.getsignal(signum) for signum, _ in SIGNALS] == before


def test_the_same_stop_told_twice_does_not_cut_the_cleaning_up_short() -> None:
    """Ctrl-C reaches a stage from the terminal, and again from `lion run`."""
    cleaned = []

    def stopped_twice() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(True)

    with STOP.handle_signals(), pytest.raises(Stopped) as stop:
        stopped_twice()
    assert cleaned
    assert stop.value.code == 143


def test_output_into_a_program_that_reads_no_more_ends_without_a_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from lion_lightning.cli import main; sys.exit(main(['--help']) or main(['report', '--help']))"
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert done.returncode == 141


# --- where an exception aborts, or is lost


@pytest.mark.parametrize(("signum", "code"), SIGNALS)
@pytest.mark.parametrize("moment", ["__enter__", "__exit__"])
def test_a_signal_within_torchs_writer_ends_with_its_code_when_the_file_is_written_and_not_by_an_abort(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, signum: signal.Signals, code: int
) -> None:
    """Cut off between making its C++ writer and ending it, torch ends the file in a destructor: after it was closed."""
    path, writer = tmp_path / "a.ckpt", torch.serialization._open_zipfile_writer_buffer
    before = getattr(writer, moment)

    def interrupted(self: Any, *arguments: Any) -> Any:
        signal.raise_signal(signum)
        return before(self, *arguments)

    monkeypatch.setattr(writer, moment, interrupted)
    monkeypatch.setattr(cli, "_run", lambda *_: CheckedCheckpointIO().save_checkpoint({"state_dict": {}}, path))
    if not (child := os.fork()):  # it would take the tests with it
        os._exit(cli.main(["report"]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
    assert torch.load(path, weights_only=True) == {"state_dict": {}}
    assert [each.name for each in tmp_path.iterdir()] == ["a.ckpt"]


def test_handlers_are_given_back_after_a_block_that_signals_wait_for_even_if_it_fails() -> None:
    before = [signal.getsignal(signum) for signum, _ in SIGNALS]

    def interrupted_and_failing() -> None:
        with delayed_signals():
            signal.raise_signal(signal.SIGINT)
            raise OSError("full")

    with pytest.raises(KeyboardInterrupt) as stop:
        interrupted_and_failing()
    assert isinstance(stop.value.__context__, OSError)
    assert [signal.getsignal(signum) for signum, _ in SIGNALS] == before


def test_a_thread_can_write_checkpoints_too() -> None:
    done = []

    def write() -> None:
        with delayed_signals():
            done.append(True)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert done


class Swallows:
    """Python drops every exception of a ``__del__``."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_a_stop_that_was_lost_on_its_way_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, lambda: Swallows() and None) == 143
    assert capfd.readouterr().err == "lion: stopped by SIGTERM\n"


@pytest.mark.parametrize(
    ("start", "within", "end"),
    [
        (signal.default_int_handler, signal.default_int_handler, signal.SIG_DFL),
        (signal.SIG_IGN, signal.SIG_IGN, signal.SIG_IGN),
    ],
)
def test_ctrl_c_before_and_after_a_command_ends_the_process_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, start: Any, within: Any, end: Any
) -> None:
    """The interpreter prints one for a KeyboardInterrupt in its last second."""
    found = []
    monkeypatch.setattr(cli, "_run", lambda *_: found.append(signal.getsignal(signal.SIGINT)))
    monkeypatch.setattr(sys, "argv", ["lion", "report"])
    before = signal.signal(signal.SIGINT, start)
    try:
        assert cli.main() == 0
        assert signal.getsignal(signal.SIGINT) == end
    finally:
        signal.signal(signal.SIGINT, before)
    assert found == [within]


# --- a fit


class Signal(Callback):
    """Sends the process a signal in a hook of one step."""

    def __init__(self, hook: str, step: int, signum: int) -> None:
        self.step, self.signum = step, signum
        setattr(self, hook, self.send)

    def send(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step:
            self.step = -1
            signal.raise_signal(self.signum)


class Sender(SFTModule):
    """Sends the signal when the weights have changed, and the trainer's counters have not."""

    sends: int | None = None

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        step = self.global_step
        super().optimizer_step(*arguments, **named)
        if step == self.sends:
            signal.raise_signal(signal.SIGTERM)


def fit(folder: Path, *callbacks: Callback, sends: int | None = None, **options: Any) -> Trainer:
    rng = np.random.default_rng(1)
    samples = [
        Sample((SampleSegment(rng.integers(3, 99, 7).astype(np.int32), np.ones(7, bool)),), n) for n in range(BATCHES)
    ]
    loader = partial(PackedLoader, samples, np.full(BATCHES, 7), capacity=8, batch_size=1, seed=5)
    torch.manual_seed(0)
    tokenizer = TokenizerSpec(str(tiny.tokenizer_folder(folder / "tokenizer")))
    module = Sender(
        PolicySpec(config=tiny.shallow()),
        tokenizer=tokenizer,
        optimizer=partial(torch.optim.AdamW, lr=0.1),
        lr_scheduler=CosineWithWarmup,
    )
    module.sends = sends
    saving = ModelCheckpoint(folder, save_last=True, save_on_exception=True, save_on_train_epoch_end=True)
    settings = {"max_epochs": 2, "num_sanity_val_steps": 0, "val_check_interval": 2, "default_root_dir": str(folder)}
    trainer = tiny.trainer(
        callbacks=[StopBetweenSteps(), saving, *callbacks], enable_checkpointing=True, **settings | options
    )
    with STOP.handle_signals(), STOP.handle_interrupts():
        trainer.fit(module, loader(shuffle=True), loader(shuffle=False), ckpt_path="last")
    return trainer


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return dict(trainer.lightning_module.state_dict())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return weights(fit(tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("step", [3, *slow(0, 2, 6)])
def test_a_signal_within_an_optimizer_step_waits_for_its_end_and_the_resumed_run_is_the_undisturbed_one(
    tmp_path: Path, undisturbed: dict[str, torch.Tensor], step: int
) -> None:
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, sends=step)
    assert stop_code(stop.value) == 143
    STOP.__init__()  # type: ignore[misc]
    ended = fit(tmp_path)
    assert ended.global_step == 2 * BATCHES
    assert [name for name, tensor in weights(ended).items() if not torch.equal(tensor, undisturbed[name])] == []


@pytest.mark.parametrize(
    ("hook", "step", "signum", "code"),
    [
        ("on_train_batch_end", 3, *SIGNALS[1]),
        *slow(
            ("on_validation_batch_end", 2, *SIGNALS[2]),
            ("on_train_epoch_start", 4, *SIGNALS[0]),
            ("on_train_batch_start", 1, *SIGNALS[0]),
            ("on_before_zero_grad", 3, *SIGNALS[2]),
            ("on_validation_end", 4, *SIGNALS[0]),
            ("on_train_epoch_end", 4, *SIGNALS[0]),
        ),
    ],
)
def test_a_signal_at_any_moment_of_a_fit_is_resumed_exactly(
    tmp_path: Path, undisturbed: dict[str, torch.Tensor], hook: str, step: int, signum: int, code: int
) -> None:
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, Signal(hook, step, signum))
    assert stop_code(stop.value) == code
    STOP.__init__()  # type: ignore[misc]
    ended = fit(tmp_path)
    assert ended.global_step == 2 * BATCHES
    assert [name for name, tensor in weights(ended).items() if not torch.equal(tensor, undisturbed[name])] == []


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_epoch_end"])
def test_a_signal_at_the_very_end_keeps_on_train_end_from_exporting(tmp_path: Path, hook: str) -> None:
    ends: list[bool] = []

    class Export(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            ends.append(True)

    with pytest.raises(SystemExit):
        fit(tmp_path, Export(), Signal(hook, 2 * BATCHES, signal.SIGTERM))
    assert not ends


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_epoch_start"])
def test_a_stop_that_was_lost_stops_the_fit_at_its_next_step(tmp_path: Path, hook: str) -> None:
    steps = []

    class Loses(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
            steps.append(trainer.global_step)

    loses = Loses()
    setattr(loses, hook, lambda *_: Swallows() and None)
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, loses)
    assert stop_code(stop.value) == 143
    assert steps == []


def test_lightnings_note_of_a_sigterm_is_where_it_was_seen() -> None:
    """In Lightning 2.6; its own broadcasts from within the handler."""
    connector = tiny.trainer()._signal_connector
    assert callable(connector._sigterm_notifier_fn)
    assert connector.received_sigterm is False


# --- one at a time in a folder


def test_a_second_run_in_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    first, second = (FolderLock(tmp_path, "`lion run`", "`out`") for _ in range(2))
    first.acquire()
    with pytest.raises(
        ValueError, match=rf"`lion run` is using this folder \(process {os.getpid()} on .*another `out`"
    ):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_a_lock_is_free_when_its_holder_has_died_whatever_it_left(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from lion_lightning.processes.folder_lock import FolderLock\n"
        "FolderLock(Path(sys.argv[1]), 'a', 'b').acquire(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    lock = FolderLock(tmp_path, "`lion run`", "`out`")
    lock.acquire()
    assert f'"pid": {os.getpid()}' in (tmp_path / NAME).read_text()
    lock.release()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"pid": "x"}', "\x00\xff"])
def test_a_lock_file_that_holds_anything_else_does_no_harm(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    held = FolderLock(tmp_path, "`lion run`", "`out`")
    held.acquire()
    (tmp_path / NAME).write_text(content)
    with pytest.raises(ValueError, match="is using this folder"):
        FolderLock(tmp_path, "`lion run`", "`out`").acquire()
    held.release()


def test_two_fits_do_not_train_in_one_folder(tmp_path: Path) -> None:
    held = FolderLock(tmp_path, "`lion fit`", "`out`")
    held.acquire()
    with pytest.raises(MisconfigurationException, match="is using this folder"):
        fit(tmp_path, LockRootDir())
    held.release()
    fit(tmp_path, LockRootDir(), max_epochs=1)
    fit(tmp_path, LockRootDir(), max_epochs=1)  # the first has given it back


def test_a_stage_whose_folder_holds_nothing_to_run_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from lion_lightning.tools.pipeline.__main__ import run

    assert run_guarded(lambda: run([str(tmp_path)])) == 2
    error = capfd.readouterr().err.strip()
    assert error.startswith("lion: error: ")
    assert "stage.yaml: no such file" in error
    assert len(error.splitlines()) == 1
