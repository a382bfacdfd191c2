"""`lion report`: what the logs on disk say, and nothing else."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from lion_lightning.cli import main
from lion_lightning.tools.report import plots, write_report
from lion_lightning.tools.report.accuracy import accuracy_of
from lion_lightning.tools.report.logs import ChainLogs, read_run, read_stage
from lion_lightning.tools.report.page import Cell, page, table
from lion_lightning.tools.report.panels import POLICY_GRADIENT, round_panels, step_panels

PNG = b"\x89PNG\r\n"


def log(folder: Path, rows: list[dict[str, float]], version: int = 0) -> None:
    path = folder / "lightning_logs" / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)


def stage(folder: Path, right: float, kinds: dict[str, float], answer: str = "tako") -> None:
    log(folder, [{"step": 9, "train/loss": 2.0}, {"step": 19, "train/loss": 1.0, "val/loss": 1.5}])
    results = {"estimate": right, "low": 0.0, "high": 1.0, "count": 10}
    by = {kind: {"estimate": value, "low": 0.0, "high": 1.0, "count": 5} for kind, value in kinds.items()}
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "results.json").write_text(json.dumps({"accuracy": {**results, "by": by}}))
    scored = {"question": "Say <b>.", "answer": answer, "score": float(answer == "tako")}
    (folder / "evaluation" / "scored.jsonl").write_text(json.dumps(scored) + "\n")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three seeds of two stages; seed 10 comes after seed 2."""
    for seed, sft, dpo in ((0, 0.4, 0.5), (2, 0.5, 0.7), (10, 0.6, 0.9)):
        stage(tmp_path / f"seed-{seed}" / "sft", sft, {"spell": sft - 0.1, "sort": sft + 0.1}, "toka")
        stage(tmp_path / f"seed-{seed}" / "dpo", dpo, {"spell": dpo - 0.1, "sort": dpo + 0.1})
        dpo_folder = tmp_path / f"seed-{seed}" / "dpo"
        log(dpo_folder, [{"step": 9, "train/rewards/margin": 0.5, "train/rewards/accuracy": 0.75}], version=1)
    return tmp_path


def test_a_stage_that_ended_before_it_logged_anything_is_in_the_report(tmp_path: Path) -> None:
    stage(tmp_path / "dpo", 0.5, {"spell": 0.5})
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "done.json").write_text('{"seconds": 3}')
    (tmp_path / "seed-old").mkdir()  # somebody else's
    (chain,) = read_run(tmp_path)
    assert {each.name: each.seconds for each in chain.stages} == {"sft": 3, "dpo": None}
    assert write_report(tmp_path).exists()


def test_accuracies_and_gains_are_means_over_the_seeds_with_t_intervals(run: Path) -> None:
    accuracy = accuracy_of(read_run(run))
    assert accuracy is not None
    assert (accuracy.stages, accuracy.kinds, accuracy.seeds) == (["sft", "dpo"], ["spell", "sort"], 3)
    assert accuracy.values("dpo") == [0.5, 0.7, 0.9]
    # gains 0.1, 0.2, 0.3: mean 0.2, standard deviation 0.1, and t is 4.303 with two degrees of freedom
    gain = accuracy.gain("dpo")
    assert gain is not None
    assert gain.estimate == pytest.approx(0.2)
    assert gain.high - gain.estimate == pytest.approx(4.3027 * 0.1 / 3**0.5, abs=1e-4)
    assert accuracy.gain("sft") is None
    assert accuracy.of_kind("dpo", "spell").estimate == pytest.approx(0.6)


def test_seeds_are_in_the_order_of_numbers_and_stages_in_that_of_their_begin(run: Path) -> None:
    chains = read_run(run)
    assert [chain.name for chain in chains] == ["seed-0", "seed-2", "seed-10"]
    assert all([stage.name for stage in chain.stages] == ["sft", "dpo"] for chain in chains)


def test_where_a_resumed_run_logged_a_step_again_the_later_value_holds(tmp_path: Path) -> None:
    log(tmp_path, [{"step": 9, "train/loss": 3.0}, {"step": 19, "train/loss": 2.5}], version=2)
    log(tmp_path, [{"step": 19, "train/loss": 2.0}, {"step": 29, "train/loss": 1.0}], version=10)
    assert read_stage(tmp_path).curves == {"train/loss": {9: 3.0, 19: 2.0, 29: 1.0}}


def test_the_page_says_what_was_measured_and_shows_answers_as_text(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["report", str(run)]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(f"wrote {run / 'report.html'}\n")
    assert "+0.200 [-0.048, +0.448]" in printed
    text = (run / "report.html").read_text()
    assert "0.500 [0.252, 0.748]" in text  # SFT: 0.4, 0.5, 0.6
    assert "+0.200 [-0.048, +0.448]" in text
    assert "Say &lt;b&gt;." in text
    assert '<td class="a wrong">toka</td><td class="a right">tako</td>' in text
    assert len(re.findall("data:image/png;base64,", text)) == 2  # accuracies and curves; no rounds
    assert "http" not in text  # one file: nothing is fetched
    assert (run / "report.png").read_bytes()[:6] == PNG


def test_a_single_fit_without_evaluation_gets_a_report_too(tmp_path: Path) -> None:
    log(tmp_path / "run", [{"step": 1, "train/loss": 2.0}])
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    assert "Held-out accuracy" not in (tmp_path / "out" / "report.html").read_text()


def test_no_accuracy_is_claimed_if_a_seed_lacks_it(run: Path) -> None:
    (run / "seed-2" / "dpo" / "evaluation" / "results.json").unlink()
    assert accuracy_of(read_run(run)) is None


def test_a_step_without_any_answer_of_a_kind_is_no_point_of_its_curve(tmp_path: Path) -> None:
    path = tmp_path / "kto" / "lightning_logs" / "version_0" / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text("step,train/rewards/margin\n0,0.5\n1,nan\n2,0.75\n")  # no undesirable answer in step 1
    assert read_stage(tmp_path / "kto").curves == {"train/rewards/margin": {0: 0.5, 2: 0.75}}


def test_a_stage_without_answers_is_no_row_of_the_accuracies_and_its_pairs_are_shown(run: Path) -> None:
    for seed in ("seed-2", "seed-10"):
        folder = run / seed / "reward"
        log(folder, [{"step": 1, "train/loss": 0.6, "train/rewards/accuracy": 0.8}])
        one = {"estimate": 0.9, "low": 0.8, "high": 0.95, "count": 24}
        (folder / "evaluation").mkdir()
        rewards = {"accuracy": one, "margin": one | {"estimate": 1.5}, "pairs": 24, "prompts": 4}
        (folder / "evaluation" / "results.json").write_text(json.dumps({"rewards": rewards}))
    chains = read_run(run)
    accuracy = accuracy_of(chains)
    assert accuracy is not None
    assert "reward" not in accuracy.stages
    assert len(accuracy.stages) == 2
    text = page("run", chains, accuracy, [])
    assert '<td>reward</td><td class="n">0.900 [0.800, 0.950]</td><td class="n">1.500 [0.800, 0.950]</td>' in text
    assert '<td class="n">24 of 4 prompts</td>' in text


def test_a_folder_without_logs_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "no stage has logged anything there (no metrics.csv)" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "none is not a folder" in capsys.readouterr().err


def test_cells_are_escaped() -> None:
    assert table(["a<"], [["<script>", Cell("1 & 2", "n")]]) == (
        '<table><tr><th>a&lt;</th></tr><tr><td>&lt;script&gt;</td><td class="n">1 &amp; 2</td></tr></table>'
    )
    assert "<title>a &amp; b</title>" in page("a & b", [ChainLogs("run", [])], None, [])


def small_stage(folder: Path, score: float, **before: float) -> None:
    """A stage of a run with one seed, whose evaluation names no kinds of prompts and whose steps were few."""
    log(folder, [{"step": 3, "val/loss": 1.5, "val/kl": -6.1}])
    results = {"estimate": score, "low": score - 0.1, "high": score + 0.1, "count": 10, "by": {}}
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "results.json").write_text(json.dumps({"accuracy": results}))
    if before:
        (folder / "before_after.json").write_text(json.dumps({"before": {"step": 0, "metrics": before}}))


def test_a_single_seed_has_intervals_over_its_prompts_and_no_plot_without_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    small_stage(tmp_path / "sft", 0.4)
    small_stage(tmp_path / "dpo", 0.6)
    (tmp_path / "short").mkdir()
    assert main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    text = (tmp_path / "report.html").read_text()
    for shown in (printed, text):
        assert "Held-out accuracy [95% interval over the prompts]" in shown
        assert "0.600 [0.500, 0.700]" in shown
        assert "+0.200" in shown
        assert "+0.200 [" not in shown
        assert "1 seeds" not in shown
    assert len(re.findall("data:image/png;base64,", text)) == 1  # no kinds of prompts, no rounds


def test_plots_are_left_out_where_nothing_was_logged(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "done.json").write_text('{"seconds": 3}')
    chains = read_run(tmp_path)
    assert (plots.overview(chains, None), plots.curves(chains), plots.accuracies(None)) == (None, None, None)
    assert "<img" not in write_report(tmp_path).read_text()


def test_validation_before_training_is_told_where_it_is_known(tmp_path: Path) -> None:
    small_stage(tmp_path / "sft", 0.4)
    small_stage(tmp_path / "dpo", 0.6, **{"val/loss": 2.5, "val/kl": 0.0})
    text = write_report(tmp_path).read_text()
    assert '<td>sft</td><td class="n">1.5</td><td class="n">-6.1</td>' in text
    assert '<td>dpo</td><td class="n">2.5 → 1.5</td><td class="n">0 → -6.1</td>' in text
    assert "<th>log-ratio to the reference, nats</th>" in text


def test_a_policy_gradient_run_shows_what_it_logged_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    for seed in (0, 1):
        folder = tmp_path / f"seed-{seed}" / "grpo"
        rows = [{"step": 4, "train/ratio": 1.0, "train/staleness": 0.0, "train/clip/low": 0.1, "train/clip/high": 0.2}]
        log(folder, [*rows, {**rows[0], "step": 9, "train/staleness": 5.0}])
        metrics = {"pass_at_1": 0.25, "pass_at_4": 0.5, "reward/a$b": 1.0, "reward/Length": 0.1, "win_rate": None}
        (folder / "rounds").mkdir()
        summary = {"metrics": {f"on_policy/{name}": value for name, value in metrics.items()}}
        (folder / "rounds" / "round-0000.json").write_text(json.dumps(summary))
    chains = read_run(tmp_path)
    drawn: dict[str, list[str]] = {}
    for draw in (*step_panels(chains, POLICY_GRADIENT), *round_panels(chains)):
        axes = Figure().subplots()
        draw(axes)
        legend = axes.get_legend()
        drawn[axes.get_title()] = [text.get_text() for text in legend.get_texts()] if legend else []
        if axes.get_title() == "steps since the answers were sampled":
            assert [np.asarray(line.get_ydata()).tolist() for line in axes.get_lines()] == [
                [0.0, 5.0]
            ] * 2  # not smoothed
    assert drawn == {
        "share of tokens that are clipped": ["GRPO high", "GRPO low"],
        "ratio to the policy that sampled": ["GRPO"],
        "steps since the answers were sampled": ["GRPO"],
        "parts of the score": ["a$b", "Length"],
        "pass@k on monitor prompts": ["k = 1", "k = 4"],
    }
    monkeypatch.setattr(plots, "_png", lambda panels: PNG if panels else None)  # drawing takes a second
    assert plots.policy_gradients(chains[:0]) is None
    text = write_report(tmp_path).read_text()
    assert text.index("Policy gradients") < text.index("Rounds of on-policy sampling")
