"""Files of AlpacaEval 2, Arena-Hard and MT-Bench: read, answered and resumed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from lion_lightning.models.generation.rollout_policy import RolloutPolicy
from lion_lightning.sampling import SamplingSettings, TransformersSampler
from lion_lightning.tools.answers import FORMATS
from lion_lightning.tools.answers.main import main
from lion_lightning.types import Answer
from tests.unit.tools.answers.benchmark_files import (
    ALPACA,
    ARENA,
    ARENA_OLD,
    MT,
    Echo,
    lines,
    listed,
    read,
    served_policy,
    write,
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> RolloutPolicy:
    return served_policy(tmp_path_factory.mktemp("model"))


def test_alpaca_eval_gets_a_list_of_rows(tmp_path: Path, served: RolloutPolicy) -> None:
    out = tmp_path / "made" / "my-model.json"
    assert write("alpaca_eval", listed(tmp_path / "q.json", ALPACA), out, served, Echo()) == 3
    assert read(out) == [
        {"instruction": "w3 w4", "output": "to w3 w4", "generator": "my-model", "dataset": "koala"},
        {"instruction": "w5", "output": "to w5", "generator": "my-model", "dataset": "vicuna"},
        {"instruction": "w6 é\u2028w7", "output": "to w6 é\u2028w7", "generator": "my-model", "dataset": "vicuna"},
    ]


def test_mt_bench_gets_an_answer_to_each_turn(tmp_path: Path, served: RolloutPolicy) -> None:
    out = tmp_path / "model_answer" / "my-model.jsonl"
    write("mt_bench", lines(tmp_path / "question.jsonl", MT), out, served, Echo())
    rows = read(out)
    assert [row["question_id"] for row in rows] == [81, 101, 82, 999]
    assert {row["model_id"] for row in rows} == {"my-model"}
    assert len({row["answer_id"] for row in rows}) == 4
    assert rows[0]["choices"] == [{"index": 0, "turns": ["to w3", "to w4"]}]
    assert rows[3]["choices"] == [{"index": 0, "turns": ["to w9"]}]
    assert rows[0].keys() == {"question_id", "answer_id", "model_id", "choices", "tstamp"}


def test_the_second_turn_of_mt_bench_sees_the_first_answer(tmp_path: Path, served: RolloutPolicy) -> None:
    sampler = Echo()
    write("mt_bench", lines(tmp_path / "question.jsonl", MT[:1]), tmp_path / "m.jsonl", served, sampler)
    user, own = "<|im_start|>user\n{}<|im_end|>\n".format, "<|im_start|>assistant\n{}<|im_end|>\n".format
    start = "<|im_start|>assistant\n"
    assert sampler.asked == [user("w3") + start, user("w3") + own("to w3") + user("w4") + start]


def test_mt_bench_is_asked_at_the_temperature_of_the_category(tmp_path: Path, served: RolloutPolicy) -> None:
    sampler = Echo()
    write("mt_bench", lines(tmp_path / "question.jsonl", MT), tmp_path / "m.jsonl", served, sampler)
    temperatures = {text.split("<|im_end|>")[0][-2:]: temperature for text, temperature, _ in flat(sampler)}
    assert temperatures == {"w3": 0.7, "w5": 0.1, "w9": 0.7}  # the writing and the roleplay prompt both end with w3
    assert [len(texts) for texts, _, _ in sampler.calls] == [3, 1, 2, 1]  # those alike share a call; one has one turn
    assert sampler.sampling.temperature == 0.9
    assert len({seed for _, _, seed in sampler.calls}) == 4
    own = Echo()
    write("mt_bench", tmp_path / "question.jsonl", tmp_path / "own.jsonl", served, own, temperature=0.3)
    assert {temperature for _, temperature, _ in own.calls} == {0.3}


def flat(sampler: Echo) -> list[tuple[str, float, int]]:
    return [(text, temperature, seed) for texts, temperature, seed in sampler.calls for text in texts]


def test_math_is_greedy_in_mt_bench(tmp_path: Path) -> None:
    rows = [{"question_id": 1, "category": category, "turns": ["w3"]} for category in ("math", "humanities", "xyz")]
    for row, expected in zip(rows, (0.0, 0.1, 0.7), strict=True):
        (question,) = FORMATS["mt_bench"].questions(lines(tmp_path / "question.jsonl", [row]))
        assert question.temperature == expected


def test_greedy_and_drawn_questions_of_one_file_are_told_apart(tmp_path: Path, served: RolloutPolicy) -> None:
    rows = [{**MT[0], "category": category, "question_id": category} for category in ("math", "writing")]
    prompts, said = lines(tmp_path / "question.jsonl", rows), []
    for seed in (1, 2):
        out = tmp_path / f"seed{seed}.jsonl"
        sampler = TransformersSampler(SamplingSettings(max_new_tokens=10))
        write("mt_bench", prompts, out, served, sampler, seed=seed)
        said.append({row["question_id"]: row["choices"][0]["turns"] for row in read(out)})
    assert said[0]["math"] == said[1]["math"]  # no draw, so the seed says nothing
    assert said[0]["writing"] != said[1]["writing"]


def test_arena_hard_gets_the_layout_of_its_questions(tmp_path: Path, served: RolloutPolicy) -> None:
    out = tmp_path / "new" / "my-model.jsonl"
    write("arena_hard", lines(tmp_path / "q.jsonl", ARENA), out, served, Echo())
    row = read(out)[0]
    assert row.keys() == {"uid", "ans_id", "model", "messages", "tstamp"}
    assert (row["uid"], row["model"]) == ("2ed", "my-model")
    assert row["messages"] == [
        {"role": "user", "content": "w3"},
        {"role": "assistant", "content": {"answer": "to w3"}},
    ]
    old = tmp_path / "old" / "my-model.jsonl"
    write("arena_hard", lines(tmp_path / "q.jsonl", ARENA_OLD), old, served, Echo(), temperature=0.5)
    row = read(old)[1]
    assert row.keys() == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert (row["question_id"], row["model_id"]) == ("b43", "my-model")
    assert row["choices"] == [{"index": 0, "turns": [{"content": "to w4"}]}]


BENCHMARKS = [
    ("alpaca_eval", ALPACA, listed, ".json"),
    ("mt_bench", MT, lines, ".jsonl"),
    ("arena_hard", ARENA, lines, ".jsonl"),
]


@pytest.mark.parametrize(("name", "rows", "save", "ending"), BENCHMARKS, ids=[each[0] for each in BENCHMARKS])
def test_a_killed_run_goes_on_and_asks_nothing_twice(
    name: str, rows: Any, save: Any, ending: str, tmp_path: Path, served: RolloutPolicy
) -> None:
    prompts, out = save(tmp_path / f"q{ending}", rows), tmp_path / f"m{ending}"
    killed = Echo(dies_at=2 if name == "mt_bench" else 1)  # of MT-Bench, one question takes two calls
    with pytest.raises(KeyboardInterrupt):
        write(name, prompts, out, served, killed, save_every=1)
    assert killed.closed == len(killed.opened) == 1
    assert len(read(out)) == 1
    first = out.read_bytes()
    rest = Echo()
    assert write(name, prompts, out, served, rest, save_every=2) == len(rows) - 1
    assert not set(rest.asked) & set(killed.asked)
    assert read(out)[0] == json.loads(first.splitlines()[0]) if ending == ".jsonl" else first[:40] in out.read_bytes()
    assert len(read(out)) == len(rows)
    idle = Echo()
    assert write(name, prompts, out, served, idle) == 0
    assert not idle.opened  # no engine is started for nothing


def test_a_resumed_run_draws_what_the_whole_run_would_have_drawn(tmp_path: Path, served: RolloutPolicy) -> None:
    prompts = lines(tmp_path / "q.jsonl", ARENA)
    whole, rest = Echo(), Echo()
    write("arena_hard", prompts, tmp_path / "whole.jsonl", served, whole, save_every=1, seed=5)
    lines(tmp_path / "rest.jsonl", [{"uid": "2ed", "model": "rest"}])
    write("arena_hard", prompts, tmp_path / "rest.jsonl", served, rest, save_every=1, seed=5)
    assert rest.calls == whole.calls[1:]
    other = Echo()
    write("arena_hard", prompts, tmp_path / "other.jsonl", served, other, save_every=1, seed=6)
    assert [seed for _, _, seed in other.calls] != [seed for _, _, seed in whole.calls]


def test_a_line_that_a_kill_cut_off_is_answered_again(tmp_path: Path, served: RolloutPolicy, caplog: Any) -> None:
    prompts, out = lines(tmp_path / "q.jsonl", ARENA), tmp_path / "m.jsonl"
    write("arena_hard", prompts, out, served, Echo())
    out.write_bytes(out.read_bytes()[:-20])
    sampler = Echo()
    with caplog.at_level(logging.WARNING):
        assert write("arena_hard", prompts, out, served, sampler) == 1
    assert "the last line is incomplete" in caplog.text
    assert [row["uid"] for row in read(out)] == ["2ed", "0af"]


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("mt_bench", [MT[0], {"category": "math", "turns": ["w3"]}], r"q.jsonl:2: question_id is missing"),
        ("mt_bench", [MT[0], MT[1], MT[0]], r"q.jsonl:3: duplicate of .*q.jsonl:1 \(81\)"),
        ("mt_bench", ARENA_OLD, r"q.jsonl:1: `turns` is not a list of strings"),
        ("mt_bench", [{"question_id": 1, "turns": []}], r"q.jsonl:1: `turns` is not a list"),
        ("arena_hard", [{"category": "x", "prompt": "w3"}], r"q.jsonl:1: uid or question_id is missing"),
        ("arena_hard", [{"uid": "a", "prompt": " "}], r"q.jsonl:1: `turns` is not a list of strings"),
        ("arena_hard", MT, r"q.jsonl:1: `turns` is not a list of strings"),
        ("arena_hard", [], r"the question file is empty"),
        ("arena_hard", [[1]], r"q.jsonl:1: a list; each line must be an object"),
        ("mt_bench", [{**MT[0], "images": ["a.png"]}], r"q.jsonl:1: the column 'images' .* has no place for it"),
        ("arena_hard", [{"uid": "a", "prompt": "w3", "system": "s"}], r"q.jsonl:1: the column 'system'"),
    ],
)
def test_a_wrong_row_is_named(name: str, rows: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        FORMATS[name].questions(lines(tmp_path / "q.jsonl", rows))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"instruction": "w3"}, {"instruction": ""}], r"q.json\[1\]: `instruction` is missing or empty"),
        ([{"instruction": "w3"}, {"instruction": "w3"}], r"q.json\[1\]: duplicate of .*q.json\[0\]"),
        ({"instruction": "w3"}, r"q.json: not a list of objects"),
        ([{"instruction": "w3", "input": "w4"}], r"q.json\[0\]: the column 'input' holds a part of the prompt"),
    ],
)
def test_a_wrong_row_of_alpaca_eval_is_named(rows: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        FORMATS["alpaca_eval"].questions(listed(tmp_path / "q.json", rows))


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_none_or_not_json_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.jsonl: no such file"):
        FORMATS[name].questions(tmp_path / "nowhere.jsonl")
    (tmp_path / "q.jsonl").write_text('{"a": 1}\nnot json\n')
    with pytest.raises(ValueError, match=r"q.jsonl:[12]: (broken JSON|question_id|uid)"):
        FORMATS[name].questions(tmp_path / "q.jsonl")
    (tmp_path / "q.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"q.jsonl: not a text file"):
        FORMATS[name].questions(tmp_path / "q.jsonl")


def test_answers_of_another_model_are_not_added_to(tmp_path: Path, served: RolloutPolicy) -> None:
    lines(tmp_path / "m.jsonl", [{"uid": "2ed", "model": "gpt"}])
    with pytest.raises(ValueError, match=r"m.jsonl:1: an answer of model 'gpt' in the file of model 'm'"):
        FORMATS["arena_hard"].answered(tmp_path / "m.jsonl")
    listed(tmp_path / "m.json", [{**ALPACA[0]}])
    with pytest.raises(ValueError, match=r"m.json\[0\]: an answer of model 'text_davinci_003'"):
        FORMATS["alpaca_eval"].answered(tmp_path / "m.json")


def test_answers_cut_off_and_settings_that_cannot_be_set_are_told(
    tmp_path: Path, served: RolloutPolicy, caplog: Any
) -> None:
    class Bare:
        def sample(self, prompts: Any, n: Any, seed: Any) -> Any:
            return [[Answer("w3", "length")] for _ in prompts]

    with caplog.at_level(logging.WARNING):
        write("mt_bench", lines(tmp_path / "q.jsonl", MT), tmp_path / "m.jsonl", served, Bare())
    assert "Bare has no attribute `sampling`, so temperature [0.1, 0.7] cannot be set" in caplog.text
    assert "7 answers were truncated" in caplog.text  # three of two turns, one of one


def test_the_command_answers_by_any_sampler(tmp_path: Path, served: RolloutPolicy, capsys: Any) -> None:
    folder = served.tokenizer.name_or_path
    prompts, out = listed(tmp_path / "q.json", ALPACA[:2]), tmp_path / "m.json"
    common = ["--format", "alpaca_eval", "--model", folder, "--prompts", str(prompts)]
    sampler = ["--sampler", "lion_lightning.sampling.TransformersSampler", "--sampler.sampling.max_new_tokens", "3"]
    main([*common, "--out", str(out), *sampler])
    assert capsys.readouterr().out == f"wrote {out} (2 new answers)\n"
    assert [row["instruction"] for row in read(out)] == ["w3 w4", "w5"]
    assert all(row["output"] for row in read(out))
    main([*common, "--out", str(out), *sampler])
    assert "0 new answers" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'mtbench' is unknown; the formats are alpaca_eval, arena_hard, mt_bench"):
        main(["--format", "mtbench", *common[2:], "--out", str(out)])
