"""Trajectories from files to packed batches: rewards, turns, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pytest

from lion_lightning import Source
from lion_lightning.experimental.q_sft import TrajectoryDataModule
from lion_lightning.tools.inspect.inspection import inspect
from lion_lightning.types import PackedBatch
from tests.unit.data.letters import byte_tokenizer

TOKENIZER = byte_tokenizer()
GAME = [
    {"role": "user", "content": "go"},
    {"role": "assistant", "content": "L"},
    {"role": "user", "content": "x"},
    {"role": "assistant", "content": "ab"},
]


def data(folder: Path, rows: Iterable[Any], columns: dict[str, str] | None = None, **options: Any) -> Any:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"max_length": 64, "cache_dir": folder / "cache"} | options
    made = TrajectoryDataModule([Source(str(path), name="rows", columns=columns or {})], TOKENIZER, **settings)
    made.prepare_data()
    made.setup()
    return made


def learned(made: Any) -> list[tuple[str, float]]:
    """What is trained of each trajectory, and its reward."""
    found = []
    for batch in cast(Iterable[PackedBatch], made.train_dataloader()):
        for segment, reward in zip(batch.answers, batch.values, strict=True):
            found.append((str(TOKENIZER.decode(batch.targets[batch.target_segments == segment].tolist())), reward))
    return sorted(found)


def test_all_turns_behind_the_prompt_are_actions_and_the_reward_is_the_trajectorys(tmp_path: Path) -> None:
    other = [*GAME[:3], {"role": "assistant", "content": "c"}]
    rows = [{"messages": GAME, "reward": 0.25}, {"messages": other, "reward": 1}, {"messages": GAME, "reward": 0.25}]
    made = data(tmp_path, rows)
    assert learned(made) == [("L<|im_end|>ab<|im_end|>", 0.25), ("L<|im_end|>c<|im_end|>", 1.0)]
    (batch,) = made.train_dataloader()
    assert [segment.parent for segment in batch.segments] == [-1, 0, 0]  # one prompt, computed once
    (report,) = made.reports
    assert "2 trajectories (2 with a reward) from 1 prompts" in str(report)
    assert report.left_out["duplicate"].documents == 1


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": GAME[:1], "completion": GAME[1:]},
        {
            "conversations": [
                {"from": "human" if turn["role"] == "user" else "gpt", "value": turn["content"]} for turn in GAME
            ]
        },
        {"instruction": "x", "history": [["go", "L"]], "output": "ab"},
    ],
    ids=["prompt and completion", "ShareGPT", "history"],
)
def test_rows_are_those_of_fine_tuning_with_a_reward_under_any_name(tmp_path: Path, row: dict[str, Any]) -> None:
    made = data(tmp_path, [row | {"score": 0.5}], {"reward": "score"})
    assert learned(made) == [("L<|im_end|>ab<|im_end|>", 0.5)]


def test_a_trajectory_that_is_too_long_is_left_out_with_its_reward(tmp_path: Path) -> None:
    long = [*GAME[:3], {"role": "assistant", "content": "y" * 99}]
    made = data(tmp_path, [{"messages": GAME, "reward": 0.5}, {"messages": long, "reward": 1.0}])
    assert [reward for _, reward in learned(made)] == [0.5]
    assert made.reports[0].left_out["longer than 64 tokens"].documents == 1
    cut = data(tmp_path, [{"prompt": "p" * 99, "completion": "c", "reward": 1}], max_length=64, max_prompt_length=40)
    assert cut.reports[0].truncated["prompts truncated"].documents == 1


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"messages": GAME}, r"rows.jsonl:1: the row has no 'reward', .* say with `columns` which column `reward` is"),
        (
            {"messages": GAME, "reward": 3},
            r"rows.jsonl:1: reward is 3; give a number from 0 to 1.*\(reward - a\) / \(b - a\)",
        ),
        ({"messages": GAME, "reward": -0.5}, r"rows.jsonl:1: reward is -0.5; give a number from 0 to 1"),
        ({"messages": GAME, "reward": "high"}, r"rows.jsonl:1: reward is 'high'; give a number from 0 to 1"),
        ({"text": "once", "reward": 1}, r"rows.jsonl:1: a text has no actions; give the row a prompt"),
        ({"messages": GAME, "reward": 0}, r"data.sources \(rows\): all rewards are 0, so there is nothing to learn"),
    ],
)
def test_rows_that_say_nothing_to_learn_are_one_line(tmp_path: Path, row: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        data(tmp_path, [row])


def test_inspect_shows_the_form_and_the_reward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": "ab", "completion": "cd", "reward": 0.5}
    inspect(data(tmp_path, [row]), 1)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  form: prompt + completion (1 rows)") for line in lines)
    assert any(line.startswith("--- answer 1, score 0.5, ") for line in lines)
