"""Answers kept on disk: what is asked again after a stop, and what starts anew."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lion_lightning.sampling import SamplingSettings, ServerSampler
from lion_lightning.tools.evaluate.answers import answer
from lion_lightning.types import Answer, Prompt
from tests.unit.chat_server import serving

PROMPTS = [Prompt(f"q{number}", (number, 7), where=f"f:{number}") for number in range(10)]
LM = SimpleNamespace(config=SimpleNamespace(vocab_size=1000))
MODEL: Any = SimpleNamespace(digest=lambda: "a model", model=LM, tokenizer=range(1000))


class KilledError(BaseException):
    """Stands for SIGKILL."""


class Drawing:
    """Answers that the seed and the prompts decide; remembers what it was asked, and dies at the call of a number."""

    def __init__(self, setting: int = 0, dies_at: int | None = None) -> None:
        self.setting, self.dies_at = setting, dies_at
        self.asked: list[str] = []
        self.calls: list[str] = []

    def identity(self) -> dict[str, int]:
        return {"setting": self.setting}

    def open(self, policy: Any) -> None:
        self.calls.append("open")

    def close(self) -> None:
        self.calls.append("close")

    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Answer]]:
        if self.calls.count("sample") == self.dies_at:
            raise KilledError
        self.calls.append("sample")
        self.asked += [prompt.text for prompt in prompts]
        draws = np.random.default_rng(seed).integers(1000, size=len(prompts)).tolist()
        # A line separator is no end of a row, and a letter may be several bytes. One answer has no known tokens.
        return [[Answer(f"é\u2028{d}", "stop", (d,) if d % 2 else None)] for d in draws]


def asked(keep: Path | None, sampler: Any = None, model: Any = MODEL, **changes: Any) -> list[Answer]:
    settings = {"prompts": PROMPTS, "seed": 0, "chunk_size": 4, **changes}
    return answer(model, sampler=sampler or Drawing(), keep=keep, **settings)


def test_a_call_that_was_cut_anywhere_goes_on_with_the_missing_chunks_and_gives_the_same(tmp_path: Path) -> None:
    path = tmp_path / "out" / "answers.jsonl"
    whole = asked(path)
    content = path.read_bytes()
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        there = max(content[:length].count(b"\n") - 1, 0)  # whole answers, under the line of the file's identity
        sampler = Drawing()
        assert asked(path, sampler) == whole
        assert sampler.asked == [prompt.text for prompt in PROMPTS[there // 4 * 4 :]]
        assert path.read_bytes() == content


def test_what_was_answered_before_a_kill_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    killed, sampler = Drawing(dies_at=1), Drawing()
    with pytest.raises(KilledError):
        asked(path, killed)
    assert killed.calls == ["open", "sample", "close"]
    assert asked(path, sampler) == asked(None)
    assert sampler.asked == [prompt.text for prompt in PROMPTS[4:]]


def test_a_finished_call_asks_and_opens_nothing(tmp_path: Path) -> None:
    path, sampler = tmp_path / "answers.jsonl", Drawing()
    assert asked(path) == asked(path, sampler)
    assert sampler.calls == []


@pytest.mark.parametrize(
    "other",
    [
        {"model": SimpleNamespace(**{**vars(MODEL), "digest": lambda: "another"})},
        {"sampler": Drawing(setting=1)},
        {"seed": 1},
        {"prompts": PROMPTS[::-1]},
        {"prompts": [prompt.__class__(prompt.text, (1,)) for prompt in PROMPTS]},  # the same texts in other tokens
    ],
    ids=["model", "sampler", "seed", "prompts", "tokens"],
)
def test_answers_of_something_else_are_made_anew(other: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    asked(path)
    sampler = other.get("sampler") or Drawing()
    found = asked(path, **{**other, "sampler": sampler})
    assert len(sampler.asked) == len(PROMPTS)
    again = asked(path, **{**other, "sampler": Drawing(sampler.setting)})
    assert found == again == asked(None, **{**other, "sampler": Drawing(sampler.setting)})


def test_chunks_and_seeds_draw_differently() -> None:
    first, second = asked(None), asked(None, seed=4)  # a chunk starts at 4 as well: sums would meet
    assert first[4:8] != second[:4]
    assert first[:4] != first[4:8]


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"question": "mine"}\n')
    with pytest.raises(
        ValueError, match=r"answers\.jsonl is not a file of answers of an evaluation; give another `out`"
    ):
        asked(path)
    assert path.read_text() == '{"question": "mine"}\n'


@pytest.mark.parametrize("line", ["{", "[" * 100_000, "3", "{}", '{"answer": 1, "finish_reason": "stop"}'])
def test_a_line_that_is_no_answer_is_named(line: str, tmp_path: Path) -> None:
    keep = tmp_path / "answers.jsonl"
    asked(keep)
    head, _, rest = keep.read_text().partition("\n")
    keep.write_text(f"{head}\n{line}\n{rest.partition(chr(10))[2]}")
    with pytest.raises(ValueError, match=r"answers\.jsonl:2: "):
        asked(keep)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ValueError, match=r"cannot write answers .*give the evaluation another `out`"):
        asked(tmp_path / "out" / "answers.jsonl")


class Bare:
    """A sampler of texts that follows nothing."""

    def __init__(self, answers: int) -> None:
        self.answers = answers

    def sample(self, prompts: Any, n: Any, seed: Any) -> Any:
        return [["yes"] * self.answers for _ in prompts]


def test_a_sampler_may_give_bare_texts() -> None:
    assert asked(None, Bare(1)) == [Answer("yes")] * 10


def test_a_sampler_that_gives_two_answers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^Bare.sample\(\) returned 4 lists of \[2\] answers"):
        asked(None, Bare(2))


def test_a_server_is_asked_for_greedy_answers_by_number() -> None:
    """A temperature of 0 must be sent: a server that is not told one draws at its own."""
    bodies: list[Any] = []

    def reply(path: str, body: Any) -> tuple[int, Any]:
        if body is None:
            return 200, {"data": [{"id": "served"}]}
        bodies.append(body)
        return 200, {"choices": [{"text": f"to {body['prompt'][0]}", "finish_reason": "length"}]}

    with serving(reply) as url:
        sampler = ServerSampler(url, sampling=SamplingSettings(temperature=0.0, max_new_tokens=9))
        found = asked(None, sampler, prompts=PROMPTS[:2])
    assert found == [Answer("to 0", "length"), Answer("to 1", "length")]
    (body,) = (body for body in bodies if body["prompt"] == [0, 7])
    expected = {"model": "served", "n": 1, "temperature": 0.0, "top_p": 1.0, "top_k": -1, "max_tokens": 9}
    assert {name: body[name] for name in expected} == expected


def test_the_file_shows_questions_beside_answers(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    found = asked(path)
    rows = [json.loads(line) for line in path.read_text("utf-8").split("\n")[1:-1]]
    assert [row["question"] for row in rows] == [prompt.text for prompt in PROMPTS]
    assert [row["answer"] for row in rows] == [one.text for one in found]
