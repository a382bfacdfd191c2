"""`lion report`: what the files on disk say, and nothing else; one page that runs and loads nothing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from lion_lightning.cli import main
from lion_lightning.tools import report
from lion_lightning.tools.report import write_report
from lion_lightning.tools.report.logs import read_run, read_stage
from lion_lightning.tools.report.page.html import Cell, Html, table, tag
from lion_lightning.tools.report.page.style import DARK, LIGHT
from lion_lightning.tools.report.plots.overview import overview
from tests.unit.tools.report.runs import STARTUP, curve, evaluate, export, finish, interval, log, write

PNG = b"\x89PNG\r\n"
HOSTILE = "<script>alert(1)</script>\x1b[2J\u202eabc & \"' <img src=http://x.test/y onerror=alert(1)> " + "w" * 5000


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide terminal, and no picture, which takes a second to draw."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(report, "overview", lambda *_: None)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two stages of one seed, of which the second is better at one kind of prompt and worse at the other."""
    kinds = ["spell"] * 20 + ["sort"] * 10
    evaluate(tmp_path / "sft", [0.0] * 20 + [1.0] * 10, kinds, answers=["toka"] * 30)
    evaluate(tmp_path / "dpo", [1.0] * 20 + [0.0, 1.0] * 5, kinds, answers=["tako"] * 30)
    for name in ("sft", "dpo"):
        curve(tmp_path / name, train__loss=[2.0, 1.0, 0.9], train__rewards__margin=[0.0, 0.5, 0.75])
        write(tmp_path / name / "startup.json", STARTUP)
        export(tmp_path / name)
        finish(tmp_path / name)
    return tmp_path


class Outline(HTMLParser):
    """Elements of a page, and the texts of those that are named by a text alone."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def of(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name in names]


def assert_sound(text: str) -> None:
    """Nothing runs or loads; headings go down by one level; pictures have words; rows and columns have titles."""
    page = Outline(text)
    names = {name for name, _ in page.tags}
    assert not names & {"script", "img", "link", "iframe", "object", "embed", "form", "base", "image", "use", "a"}
    for _, attributes in page.tags:
        assert not {"src", "href", "style", "srcset"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in text
    assert "@import" not in text
    levels = [int(name[1]) for name, _ in page.tags if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for drawn in page.of("svg"):
        assert drawn.get("aria-label") if drawn.get("role") == "img" else drawn.get("aria-hidden") == "true"
    assert all("scope" in title for title in page.of("th"))
    (policy,) = (one["content"] for one in page.of("meta") if "http-equiv" in one)
    assert str(policy).startswith("default-src 'none'; style-src 'sha256-")
    assert page.of("html") == [{"lang": "en"}]


def shown(folder: Path) -> str:
    text = write_report(folder).read_text("utf-8")
    assert_sound(text)
    return text


def test_the_page_says_whether_it_got_better_where_worse_and_what_to_do(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "overview", overview)
    assert main(["report", str(run)]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(f"wrote {run / 'report.html'}\n")
    text = (run / "report.html").read_text()
    assert_sound(text)
    # 10 of 30, then 25 of 30
    assert re.search(r"Yes: DPO against SFT: better by 0\.500 \[0\.[23]\d\d, 0\.[67]\d\d\]", text)
    assert "Held-out accuracy 0.333 → 0.833; 95% interval over the prompts of one seed." in text
    assert "<b>prompts of the kind sort</b>, DPO against SFT: worse by 0.500 [" in text
    assert "5 answers got worse, 20 better, 5 scored the same." in text
    assert "worse: prompts of the kind sort, dpo against sft: worse by 0.500" in printed
    assert f"lion chat {run}/dpo/export" in text
    assert "got better: 3 of 20 prompts" in text
    assert "got worse: 3 of 5 prompts" in text
    assert '<div class="low"><dt>SFT, score 0</dt><dd dir="auto">toka</dd></div>' in text
    assert "3 rows left out: empty" in text
    assert (run / "report.png").read_bytes()[:6] == PNG


def test_of_several_seeds_each_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, right in ((0, 4), (1, 5), (2, 6)):
        for name, more in (("sft", 0), ("dpo", 2)):
            folder = tmp_path / f"seed-{seed}" / name
            evaluate(folder, [1.0] * (right + more) + [0.0] * (10 - right - more))
            finish(folder)
    text = shown(tmp_path)
    # each seed has gained two of ten, an interval of no width; over all prompts it is that of 6 of 30: 2 to 10
    assert "Yes: DPO against SFT: better by 0.200 [0.067, 0.333]" in text
    assert "sft, each seed: 0.400 0.500 0.600\n" in capsys.readouterr().out
    assert "95% interval over 3 seeds." in text
    assert '<td data-label="each seed">0.400 0.500 0.600</td>' in text
    assert "3 seeds." in text


def test_a_single_fit_without_evaluation_says_what_it_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve(tmp_path / "small", train__loss=[2.0, 1.0])
    out = tmp_path / "out"
    assert main(["report", str(tmp_path / "small"), "--out", str(out)]) == 0
    text = (out / "report.html").read_text()
    assert_sound(text)
    assert "Not measured: no answers were scored." in text
    assert "small: training loss from 2 to 1" in text
    assert "goes on" not in text  # nobody knows of more steps
    assert "lion evaluate -c evaluate.yaml" in text
    assert "commit" not in text  # none is known
    assert "Held-out" not in capsys.readouterr().out


def test_a_held_out_loss_of_before_training_alone_is_not_what_it_came_to(tmp_path: Path) -> None:
    curve(tmp_path / "sft", train__loss=[2.0, 1.0])
    write(tmp_path / "sft" / "before_after.json", {"before": {"metrics": {"val/loss": 6.26}}})
    assert "SFT: training loss from 2 to 1" in shown(tmp_path)


def test_answers_of_before_after_stand_in_for_an_evaluation(tmp_path: Path) -> None:
    curve(tmp_path, train__loss=[2.0])
    asked = [{"prompt": "Spell tako.", "before": None, "after": "t a k o"}]
    write(tmp_path / "before_after.json", {"before": {"metrics": {}}, "answers": asked})
    text = shown(tmp_path)
    assert "Spell tako." in text
    assert '<dd dir="auto">(empty)</dd>' in text
    assert '<dd dir="auto">t a k o</dd>' in text


def test_a_stopped_run_says_so_above_all(run: Path) -> None:
    (run / "dpo" / "done.json").unlink()
    (run / "dpo" / "export" / "lion_export.json").unlink()
    write(run / "dpo" / "startup.json", {**STARTUP, "run": {**STARTUP["run"], "steps": 90}})  # type: ignore[dict-item]
    write(run / "run.json", {"command": ["lion", "run", "x.yaml"], "stages": ["sft", "dpo", "online_dpo"]})
    text = shown(run)
    assert text.index("This run is not finished.") < text.index("Did it get better?")
    assert "DPO: at step 30 of 90" in text
    assert "online DPO: has not begun" in text
    assert "<code>lion run x.yaml</code>" in text


def test_what_the_monitor_found_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "sft" / "health.jsonl").write_text("")
    assert "HealthMonitor watched 1 stage and found nothing." in shown(run)
    finding = {
        "symptom": "length drift",
        "step": 40,
        "value": 3.0,
        "limit": 2.0,
        "seen": "answers are three times as long",
    }
    finding |= {"advice": "look at them", "severity": 1.5, "rows": ["f.jsonl:3"]}
    (run / "dpo" / "health.jsonl").write_text(json.dumps(finding) + "\n")
    line = "length drift at step 40: answers are three times as long. Rows: f.jsonl:3. look at them."
    assert f"<b>DPO</b>: {line}" in shown(run)
    assert f"wrong: dpo: {line}" in capsys.readouterr().out


def test_a_reward_model_is_shown_by_its_pairs(run: Path) -> None:
    folder = run / "reward"
    curve(folder, train__loss=[0.6], train__rewards__accuracy=[0.8])
    rewards = {"accuracy": interval([1.0] * 9 + [0.0]), "margin": interval([1.5]), "pairs": 24, "prompts": 4}
    write(folder / "evaluation" / "results.json", {"rewards": rewards})
    text = shown(run)
    assert (
        '<th scope="row">reward model</th><td data-label="share of pairs ranked right" class="n">0.900 [0.800, 1.000]'
        in text
    )
    assert "24 of 4 prompts" in text
    assert "Yes: DPO against SFT" in text  # the reward model is no stage of the answers


def test_validation_before_training_is_told_where_it_is_known(tmp_path: Path) -> None:
    log(tmp_path / "dpo", [{"step": 3, "val/loss": 1.5, "val/log_ratio": -6.1}])
    write(tmp_path / "dpo" / "before_after.json", {"before": {"metrics": {"val/loss": 2.5, "val/log_ratio": 0.0}}})
    text = shown(tmp_path)
    assert '<td data-label="loss" class="n">2.5 → 1.5</td>' in text
    assert '<td data-label="mean log-ratio to the reference, nats" class="n">0 → -6.1</td>' in text


def test_a_stage_that_ended_before_it_logged_anything_is_in_the_report(tmp_path: Path) -> None:
    evaluate(tmp_path / "dpo", [1.0, 0.0])
    curve(tmp_path / "dpo", train__loss=[1.0])
    finish(tmp_path / "sft", 3)
    (tmp_path / "seed-old").mkdir()  # somebody else's
    (chain,) = read_run(tmp_path)
    assert {each.name: each.seconds for each in chain.stages} == {"sft": 3, "dpo": None}
    shown(tmp_path)


def test_a_step_without_any_answer_of_a_kind_is_no_point_of_its_curve(tmp_path: Path) -> None:
    path = tmp_path / "kto" / "lightning_logs" / "version_0" / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text("step,train/rewards/margin\n0,0.5\n1,nan\n2,0.75\n")  # no undesirable answer in step 1
    assert read_stage(tmp_path / "kto").curves == {"train/rewards/margin": {0: 0.5, 2: 0.75}}


def test_a_step_that_is_no_number_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss\ninf,0.5\n")
    with pytest.raises(
        ValueError, match=r"metrics\.csv: damaged, or not metrics .*; correct it, or remove it: the report goes without"
    ):
        read_stage(tmp_path)


def test_a_folder_without_logs_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "no stage has logged anything there (no metrics.csv)" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "none is not a folder" in capsys.readouterr().err


# --- the page as HTML


def test_texts_are_escaped_and_commands_of_terminals_and_of_text_direction_are_gone() -> None:
    assert tag("p", "a < b", Html("<b>c</b>"), class_='"x"') == '<p class="&quot;x&quot;">a &lt; b<b>c</b></p>'
    assert tag("p", "a\x1b[2J\u202eb\nc") == "<p>a\ufffd[2J\ufffdb\nc</p>"
    assert table(["a<", "n"], [["<script>", Cell("1 & 2", "n")]]) == (
        '<table><thead><tr><th scope="col">a&lt;</th><th scope="col">n</th></tr></thead><tbody><tr>'
        '<th scope="row">&lt;script&gt;</th><td data-label="n" class="n">1 &amp; 2</td></tr></tbody></table>'
    )


def test_hostile_answers_prompts_kinds_and_logs_are_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"question": HOSTILE, "answer": HOSTILE, "score": number % 2, "row": {"family": HOSTILE}} for number in range(9)
    ]
    for stage in ("sft", "dpo"):
        (run / stage / "evaluation" / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        results = json.loads((run / stage / "evaluation" / "results.json").read_text())
        results["accuracy"]["by"] = {HOSTILE: interval([1.0, 0.0])}
        results["accuracy"]["parts"] = {HOSTILE: interval([1.0, 0.0])}
        write(run / stage / "evaluation" / "results.json", results)
        write(
            run / stage / "startup.json",
            {**STARTUP, "rows": {HOSTILE: [HOSTILE]}, "policy": {"class": HOSTILE, "parameters": 1}},
        )
        (run / stage / "done.json").unlink()
        (run / stage / "export" / "lion_export.json").unlink()
        (run / stage / "log.txt").write_text(HOSTILE)
        (run / stage / "rounds").mkdir()
        write(run / stage / "rounds" / "round-0000.json", {"metrics": {f"on_policy/reward/{HOSTILE}": 1.0}})
    text = shown(run)  # sound: no element that was not ours
    assert "&lt;script&gt;alert(1)" in text
    for char in "\x1b\u202e":
        assert char not in text
        assert char not in capsys.readouterr().out


@pytest.mark.parametrize("colors", [LIGHT, DARK])
def test_colors_have_the_contrast_that_reading_needs(colors: dict[str, str]) -> None:
    def luminance(color: str) -> float:
        parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:  # WCAG 2.2
        low, high = sorted((luminance(colors[one]), luminance(colors[other])))
        return (high + 0.05) / (low + 0.05)

    for name in ("text", "quiet", "good", "bad"):
        assert min(contrast(name, "back"), contrast(name, "panel")) >= 4.5, name
    for number in range(6):
        assert contrast(f"s{number}", "back") >= 3, number


def test_the_page_stays_small_with_many_seeds_and_steps(tmp_path: Path) -> None:
    values = [1 / (number + 1) for number in range(2000)]
    for seed in range(12):
        curve(tmp_path / f"seed-{seed}" / "dpo", train__loss=values, train__rewards__margin=values, train__kl=values)
    assert len(shown(tmp_path)) < 300_000
