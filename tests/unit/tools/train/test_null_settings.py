"""A null where a setting has to have a value is named before anything is made of the config."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from lion_lightning.cli import main
from lion_lightning.tools.train.null_settings import refuse_nulls

SOURCES = [{"path": "x.jsonl"}]
MODULE = "lion_lightning.SFTModule"
ADAM = {"class_path": "torch.optim.AdamW", "init_args": {"lr": None}}
CHECKPOINT = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_top_k": None}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"data": {"max_length": None}},
            "data.max_length is null; give a whole number, or remove it for the default 2048",
        ),
        ({"data": {"mask": None}}, "data.mask is null; give assistant, completion, last_turn, none, or remove it for"),
        ({"data": {"sources": [*SOURCES, {"path": None}]}}, "data.sources"),
        ({"model": {"reduction": None}}, "model.reduction is null; give token_mean, sum, or remove"),
        ({"model": {"policy": {"path": "m", "dtype": None}}}, "model.policy.dtype is null; give float32"),
        ({"model": {"optimizer": ADAM}}, "model.optimizer.lr is null; give a number or a Tensor, or remove it for"),
        (
            {"trainer": {"accumulate_grad_batches": None}},
            "trainer.accumulate_grad_batches is null; give a whole number",
        ),
        ({"trainer": {"callbacks": [CHECKPOINT]}}, "trainer.callbacks[0].save_top_k is null; give a whole number"),
    ],
)
def test_a_null_for_a_value_is_refused_by_its_key(
    change: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"policy": "m", **change.get("model", {})}
    data = {"sources": SOURCES, **change.get("data", {})}
    config = {
        "model": {"class_path": MODULE, "init_args": model},
        "data": {"class_path": "lion_lightning.SFTDataModule", "init_args": data},
        "trainer": {"default_root_dir": str(tmp_path / "run"), **change.get("trainer", {})},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "-c", str(tmp_path / "c.yaml")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lion: error: ")]
    assert line.startswith(f"lion: error: {said}")
    assert not (tmp_path / "run").exists()


def test_an_evaluation_is_looked_at_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "e.yaml").write_text(yaml.safe_dump({"model": "m", "conversations": SOURCES, "max_length": None}))
    assert main(["evaluate", "-c", str(tmp_path / "e.yaml")]) == 2
    assert "max_length is null; give a whole number" in capsys.readouterr().err


@dataclass
class Part:
    """Settings of a class's setting."""

    size: int = 3
    names: dict[str, str] = field(default_factory=dict)


class Base:
    """Has a setting that a subclass hands on."""

    def __init__(self, *, depth: int = 2, unknown=None) -> None:  # type: ignore[no-untyped-def]
        self.depth, self.unknown = depth, unknown


class Owner(Base):
    """Settings of several kinds."""

    def __init__(
        self,
        linked: int,
        may: int | None = 4,
        either: Literal["a", None] = "a",
        wrongly: int = None,  # type: ignore[assignment]  # noqa: RUF013  # as torch and Lightning have some
        parts: list[Part] | None = None,
        free: Any = 1,
        **more: Any,
    ) -> None:
        super().__init__(**more)


def test_what_takes_null_and_what_is_null_by_default_may_be() -> None:
    given = dict.fromkeys(("may", "either", "wrongly", "parts", "free", "unknown", "of_nobody"))
    refuse_nulls({"linked": None, **given, "depth": 1}, Owner)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"depth": None}, "depth is null; give a whole number, or remove it for the default 2$"),
        ({"parts": [{"size": 1}, {"size": None}]}, r"parts\[1\]\.size is null"),
        ({"parts": [{"names": None}]}, r"parts\[0\]\.names is null; give a mapping$"),
        ({"free": {"class_path": f"{__name__}.Owner", "init_args": {"depth": None}}}, r"free\.depth is null"),
    ],
)
def test_a_null_is_found_wherever_its_type_is_known(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        refuse_nulls(given, Owner)
