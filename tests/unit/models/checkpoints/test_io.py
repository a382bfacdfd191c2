"""A Trainer's checkpoints: written in full or not at all, read as plain tensors and data."""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy, Strategy
from torch.distributed.checkpoint.state_dict_saver import save

from lion_lightning import SFTModule
from lion_lightning.cache import atomic_write
from lion_lightning.models.checkpoints.io import CheckedCheckpointIO, remove_stale_run_files, use_checked_checkpoints
from lion_lightning.strategies import FSDP2Strategy
from lion_lightning.tools.train.lightning_cli import LionCLI
from tests.unit.callbacks.conftest import Bench

pytestmark = pytest.mark.filterwarnings("ignore")


class Code:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def fitted(bench: Bench, **options: Any) -> Path:
    folder = bench.folder / "checkpoints"
    saving = ModelCheckpoint(folder, every_n_train_steps=1, save_last="link", save_top_k=-1)
    bench.fit(bench.trainer(saving, enable_checkpointing=True, max_steps=2), **options)
    return folder


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted(Bench(tmp_path_factory.mktemp("run"))) / "epoch=0-step=1.ckpt"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_what_torch_and_any_tool_reads_and_has_no_draft_left(bench: Bench) -> None:
    folder = fitted(bench)
    assert names(folder) == ["epoch=0-step=1.ckpt", "epoch=0-step=2.ckpt", "last.ckpt"]
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 2


def test_a_full_disk_leaves_the_checkpoints_before_and_names_the_one_that_could_not_be_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = torch.save

    def full(content: dict[str, Any], file: Any) -> None:
        if content["global_step"] == 2:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(content, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*checkpoints/epoch=0-step=2\.ckpt'"):
        fitted(bench)
    assert sorted(path.name for path in (bench.folder / "checkpoints").iterdir()) == [
        "epoch=0-step=1.ckpt",
        "last.ckpt",
    ]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a disk")
def test_a_disk_that_is_really_full_is_named(tmp_path: Path) -> None:
    if os.system(f"mount -t tmpfs -o size=100k tmpfs {tmp_path}"):
        pytest.skip("nothing can be mounted here")
    try:
        with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/x.ckpt'"):
            CheckedCheckpointIO().save_checkpoint({"state_dict": {"a": torch.ones(100_000)}}, tmp_path / "x.ckpt")
        assert list(tmp_path.iterdir()) == []
    finally:
        os.system(f"umount {tmp_path}")


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: os.truncate(path, 100_000), "not a readable checkpoint (it is cut short"),
        (lambda path: os.truncate(path, 0), "not a readable checkpoint (it is empty)"),
        (lambda path: path.write_text("no checkpoint"), "not a readable checkpoint (it is cut short or changed"),
        (
            lambda path: torch.save({"weight": torch.ones(2)}, path),
            "not a checkpoint of Lightning's, it holds no `state",
        ),
        (lambda path: torch.save([1], path), "not a checkpoint of Lightning's"),
        (lambda path: torch.save({"state_dict": [1]}, path), "not a checkpoint of Lightning's"),
        (lambda path: path.unlink(), "no such checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_one_line(bench: Bench, one_step: Path, make: Any, problem: str) -> None:
    path = Path(shutil.copy(one_step, bench.folder))
    make(path)
    with pytest.raises(ValueError, match=r"step=1\.ckpt: ") as caught:
        bench.fit(bench.trainer(max_steps=3), ckpt_path=path)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_in_a_file_does_not_run(bench: Bench) -> None:
    path = fitted(bench) / "last.ckpt"
    torch.save({**torch.load(path, weights_only=True), "callbacks": Code(bench.folder / "ran")}, path)
    with pytest.raises(ValueError, match=r"last\.ckpt: not a readable checkpoint \(it holds more than tensors"):
        bench.fit(bench.trainer(max_steps=3), ckpt_path=path)
    with pytest.raises(pickle.UnpicklingError):
        SFTModule.load_from_checkpoint(path)
    assert not (bench.folder / "ran").exists()


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/a.ckpt", "memory://a.ckpt", "simplecache::http://127.0.0.1:1/a"]
)
def test_nothing_is_fetched_from_an_address(bench: Bench, address: str) -> None:
    with pytest.raises(ValueError, match="an address, and checkpoints are read from disk only"):
        bench.fit(bench.trainer(max_steps=3), ckpt_path=address)
    with pytest.raises(ValueError, match="an address, and checkpoints are read from disk only"):
        SFTModule.load_from_checkpoint(address)


def test_a_run_removes_what_killed_ones_left_of_its_files(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lion_lightning.cache._GRACE", -1.0)
    root, saved = bench.folder / "run", bench.folder / "checkpoints"
    places = [root, root / "rounds", root / "lightning_logs" / "version_0", saved]
    with atomic_write(bench.folder / "x") as temporary:
        name = temporary.name  # as a killed run would have left it
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("half")
    (saved / f"{name}.ckpt").mkdir()  # a checkpoint of ranks, which may be all that there is
    trainer = bench.trainer(ModelCheckpoint(saved), enable_checkpointing=True)
    remove_stale_run_files(trainer)
    assert not any((place / name).exists() for place in places)
    assert (saved / f"{name}.ckpt").exists()
    bench.fit(trainer)
    assert names(saved) == ["epoch=0-step=6.ckpt"]


@pytest.mark.parametrize("place", ["dirpath", "version", "slurm"])
def test_last_means_the_newest_whole_checkpoint_wherever_lightning_writes_them(bench: Bench, place: str) -> None:
    """Lightning looks for ``last*.ckpt`` only, and without ``dirpath`` only in this start's own folder."""
    root = bench.folder / "run"
    folders = {"dirpath": bench.folder / "own", "version": bench.folder / "logs/lightning_logs/version_0/checkpoints"}
    saving = ModelCheckpoint(folders["dirpath"] if place == "dirpath" else None)
    trainer = bench.trainer(saving, enable_checkpointing=True)
    cli: Any = SimpleNamespace(subcommand="fit", trainer=trainer, config_init={"fit": {"ckpt_path": "last"}})
    LionCLI.before_fit(cli)
    assert cli.config_init["fit"]["ckpt_path"] is None  # nothing there: from the beginning
    path = folders.get(place, root) / ("hpc_ckpt_1.ckpt" if place == "slurm" else "epoch=0-step=6.ckpt")
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": {}}, path)
    cli.config_init["fit"]["ckpt_path"] = "last"
    LionCLI.before_fit(cli)
    assert cli.config_init["fit"]["ckpt_path"] == str(path)
    os.truncate(path, 100)
    cli.config_init["fit"]["ckpt_path"] = "last"
    with pytest.raises(ValueError, match=f"{path.name}: it is cut short .*bring one back, or remove them"):
        LionCLI.before_fit(cli)


def test_a_plugin_of_the_users_own_stays(bench: Bench) -> None:
    class Own(CheckedCheckpointIO):
        pass

    own = Own()
    strategy = SingleDeviceStrategy(checkpoint_io=own)
    use_checked_checkpoints(strategy)
    assert strategy.checkpoint_io is own
    plain = SingleDeviceStrategy()
    use_checked_checkpoints(plain)
    assert isinstance(plain.checkpoint_io, CheckedCheckpointIO)


def sharded(path: Path, more: dict[str, Any]) -> Path:
    save({"state_dict": {"weight": torch.ones(2)}, **more}, checkpoint_id=path, no_dist=True)
    torch.save({"lion": {}}, path / "meta.pt")
    return path


def strategies(monkeypatch: pytest.MonkeyPatch) -> list[Strategy]:
    made: list[FSDP2Strategy | FSDPStrategy] = [FSDP2Strategy(), FSDPStrategy()]
    for strategy in made:
        strategy.parallel_devices = [torch.device("cpu")]
        monkeypatch.setattr(strategy, "_lightning_module", None)
        use_checked_checkpoints(strategy)
        use_checked_checkpoints(strategy)  # no second time
    return [*made]


@pytest.mark.parametrize("where", ["optimizer", "meta.pt", ".metadata", "file", "outside"])
def test_code_in_a_sharded_checkpoint_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """torch and Lightning read bytes of a folder, and FSDPStrategy a whole file, by pickle."""
    ran, path = tmp_path / "ran", tmp_path / "some.ckpt"
    if where == "file":
        torch.save({"state_dict": {}, "odd": Code(ran)}, path)
    else:
        sharded(path, {"optimizer_0": {"groups": Code(ran) if where == "optimizer" else [1]}})
    if where == "meta.pt":
        torch.save({"lion": Code(ran)}, path / "meta.pt")
    if where == ".metadata":
        (path / ".metadata").write_bytes(pickle.dumps(Code(ran)))
    if where == "outside":
        metadata = pickle.loads((path / ".metadata").read_bytes())
        for place in metadata.storage_data.values():
            place.relative_path = "../other.distcp"
        (path / ".metadata").write_bytes(pickle.dumps(metadata))
    for strategy in strategies(monkeypatch):
        for weights_only in (None, True):
            with pytest.raises(ValueError, match=r"some\.ckpt: not a readable checkpoint") as caught:
                strategy.load_checkpoint(path, weights_only)
            assert "\n" not in str(caught.value)
    assert not ran.exists()


def test_a_folder_of_weights_alone_is_refused_before_torch_misses_the_optimizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sharded(tmp_path / "some.ckpt", {})
    for strategy in strategies(monkeypatch):
        strategy.optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])]
        with pytest.raises(ValueError, match=r"some\.ckpt holds only weights"):
            strategy.load_checkpoint(path)


def test_the_hostile_folder_of_the_test_above_does_run_in_torch_itself(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict_loader import load

    path = sharded(tmp_path / "some.ckpt", {"optimizer_0": {"groups": Code(tmp_path / "ran")}})
    load({"optimizer_0": {"groups": None}}, checkpoint_id=path, no_dist=True)
    assert (tmp_path / "ran").exists()
    buffer = io.BytesIO()
    torch.save({"x": Code(tmp_path / "ran")}, buffer)  # pickling itself does not run it
