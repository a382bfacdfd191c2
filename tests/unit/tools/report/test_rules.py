"""Advice, costs and settings of a report: numbers that are derived from the files of the run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from lion_lightning.tools.report.advice import advice_of
from lion_lightning.tools.report.facts import GIB, MIB, cost_of, data_of, described, progress_of, settings_of
from lion_lightning.tools.report.logs import ChainLogs, Launch, Stage, read_launch, read_run, read_stage
from lion_lightning.tools.report.rules import RULES
from lion_lightning.tools.report.scores import scores_of
from tests.unit.tools.report.runs import STARTUP, curve, evaluate, export, finish, log, write

RUN = Launch("lion run mine.yaml --seeds 0", ["sft", "dpo"])


def rounds(folder: Path, **metrics: list[float]) -> None:
    for number in range(len(next(iter(metrics.values())))):
        found = {f"on_policy/{name}": values[number] for name, values in metrics.items()}
        kept = {"pairs": 100 + number, "tokens": 1000}
        write(folder / "rounds" / f"round-{number:04}.json", {"metrics": found, "report": {"kept": kept}})


def advised(folder: Path) -> list[str]:
    """Advice of the rules on a stage, without the reasons."""
    stage = read_stage(folder)
    return [found.what for rule in RULES if (found := rule([stage]))]


def logged(folder: Path, **metrics: list[float]) -> list[str]:
    curve(folder, 0, **metrics)
    return advised(folder)


def test_a_run_of_few_steps_is_told(tmp_path: Path) -> None:
    finish(tmp_path)
    assert logged(tmp_path, train__loss=[1.0]) == []  # logged at step 9, so it made 10
    (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").write_text("step,train/loss\n0,1.0\n8,1.0\n")
    (what,) = advised(tmp_path)
    assert what.startswith("Make more optimizer steps")


@pytest.mark.parametrize(
    ("losses", "what"),
    [
        ([2.0, 1.0, 1.0], None),
        ([2.0, 1.0, 1.2], "Train fewer epochs, or use a lower learning rate."),  # 0.2 of a fall of 1
        ([2.0, 1.0, 1.05], None),
        ([2.0, 1.5, 1.0], "Train more epochs."),
        ([2.0, 1.05, 1.0], None),
        ([2.0, 1.0], None),  # nobody knows from two values
    ],
)
def test_held_out_losses_say_too_long_or_too_short(losses: list[float], what: str | None, tmp_path: Path) -> None:
    assert logged(tmp_path, val__loss=losses) == [what] * (what is not None)


def test_what_the_loss_was_before_the_first_step_counts(tmp_path: Path) -> None:
    write(tmp_path / "before_after.json", {"before": {"metrics": {"val/loss": 7.0}}})
    assert logged(tmp_path, val__loss=[2.0, 1.5, 1.0]) == []  # the last fall is 0.5 of 6


def test_pairs_that_were_not_learned_are_told(tmp_path: Path) -> None:
    found = logged(tmp_path, val__rewards__accuracy=[0.5, 0.52], val__rewards__margin=[0.0, 0.01])
    assert found == ["Raise the learning rate or the epochs, and look at pairs with lion inspect."]
    rounds(tmp_path, score=[0.5])
    assert advised(tmp_path) == []  # an online stage's pairs begin anew with each round


def test_rounds_whose_score_still_rises_want_more(tmp_path: Path) -> None:
    rounds(tmp_path, score=[0.5, 0.5, 0.54, 0.56])  # 0.50 to 0.55
    assert advised(tmp_path) == [f"Give {tmp_path.name} more rounds (trainer.max_epochs)."]
    rounds(tmp_path, score=[0.5, 0.5, 0.51, 0.51])
    assert advised(tmp_path) == []


def test_equal_scores_and_cut_answers_of_rounds_are_told(tmp_path: Path) -> None:
    rounds(tmp_path, prompts_with_signal=[0.9, 0.2], unfinished=[0.0, 0.06])
    found = [rule([read_stage(tmp_path)]) for rule in RULES]
    whys = [one.why for one in found if one]
    assert whys[0] == "In the last round 80% of the prompts had answers of equal scores, which teach nothing."
    assert whys[1].startswith("6% of the answers")


def test_policy_gradients_that_clip_much_are_told(tmp_path: Path) -> None:
    found = logged(tmp_path, train__clip__high=[0.1, 0.3])
    assert found == ["Lower the learning rate or the epochs per round."]


# --- the run


def chain(folder: Path, *names: str) -> list[ChainLogs]:
    return [ChainLogs("run", [read_stage(folder / name) for name in names])]


def test_a_stopped_run_says_where_and_how_it_goes_on(tmp_path: Path) -> None:
    curve(tmp_path / "dpo", train__loss=[1.0])
    write(tmp_path / "dpo" / "startup.json", STARTUP)
    (tmp_path / "dpo" / "log.txt").write_text("all is well\nstep 3\rlion: error: disk full\n\n")
    (tmp_path / "dpo" / "checkpoints").mkdir()
    (tmp_path / "dpo" / "checkpoints" / "step=5.ckpt").write_text("")
    chains = chain(tmp_path, "dpo")
    assert progress_of(chains[0].stages[0])[:3] == (False, 10, 20)
    first, *_ = advice_of(chains, None, RUN)
    assert first.code == "lion run mine.yaml --seeds 0"
    assert "stopped at step 10 of 20; it goes on from" in first.why
    assert first.why.endswith("Its log ends with: disk full")


def test_a_bar_at_the_end_of_a_log_is_told_without_the_bar(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(
        "sample:  10%|\u2588         | 1/10\rsample:  51%|\u2588\u2588\u258f   | 5/10 [00:40<00:38]"
    )
    assert read_stage(tmp_path).last_line == "sample:  51%| 5/10 [00:40<00:38]"


def test_a_run_whose_stages_have_not_all_begun_is_not_finished(tmp_path: Path) -> None:
    finish(tmp_path / "sft")
    first, *_ = advice_of(chain(tmp_path, "sft"), None, RUN)
    assert first.why == "dpo: not begun."


def test_a_stage_is_finished_by_its_export_or_its_steps_too(tmp_path: Path) -> None:
    curve(tmp_path / "a", train__loss=[1.0, 1.0])
    write(tmp_path / "a" / "startup.json", STARTUP)
    assert progress_of(read_stage(tmp_path / "a")).done  # 20 of 20
    curve(tmp_path / "b", train__loss=[1.0])
    write(tmp_path / "b" / "startup.json", STARTUP)
    assert not progress_of(read_stage(tmp_path / "b")).done
    export(tmp_path / "b")
    assert progress_of(read_stage(tmp_path / "b")).done


@pytest.mark.parametrize(("planned", "of_lion_run", "done"), [(29, False, True), (30, False, False), (29, True, False)])
def test_steps_that_a_logger_leaves_out_at_the_end_are_not_missed(
    planned: int, of_lion_run: bool, done: bool, tmp_path: Path
) -> None:
    curve(tmp_path, train__loss=[1.0, 1.0])  # every tenth, the last is the 20th: the next would be the 30th
    write(tmp_path / "startup.json", STARTUP | {"run": {"steps": planned}})
    if of_lion_run:  # which marks what is done
        (tmp_path / "stage.yaml").write_text("{}")
    assert progress_of(read_stage(tmp_path)).done is done


def test_of_a_run_whose_steps_nobody_planned_it_is_not_said_that_it_stopped(tmp_path: Path) -> None:
    curve(tmp_path, train__loss=[1.0])
    advice = advice_of(read_run(tmp_path), None, Launch())
    assert not any("goes on" in one.what for one in advice)


def test_a_run_without_an_evaluation_is_told_how_to_add_one(tmp_path: Path) -> None:
    for name in ("sft", "dpo"):
        finish(tmp_path / name)
        export(tmp_path / name)
    found, talk = advice_of(chain(tmp_path, "dpo"), None, Launch())
    lines, command = found.code.split("\n\n")
    assert set(yaml.safe_load(lines)) == {"prompts", "judge"}
    folder = f"{tmp_path}/dpo"
    assert command == f"lion evaluate -c evaluate.yaml --model {folder}/export --out {folder}/evaluation"
    assert talk.code == f"lion chat {folder}/export"
    both, _ = advice_of(chain(tmp_path, "sft", "dpo"), None, RUN)
    assert f"for stage in {tmp_path}/sft {tmp_path}/dpo; do\n  lion evaluate" in both.code


def test_the_same_advice_for_two_stages_is_given_once(tmp_path: Path) -> None:
    for name in ("sft", "dpo"):
        log(tmp_path / name, [{"step": 3, "train/loss": 1.0}])
        finish(tmp_path / name)
    _, short = advice_of(chain(tmp_path, "sft", "dpo"), None, RUN)
    assert short.why == (
        "SFT made 4: its warmup and a few examples decide what it learned. "
        "DPO made 4: its warmup and a few examples decide what it learned."
    )


def test_a_reward_model_is_used_as_a_judge(tmp_path: Path) -> None:
    finish(tmp_path / "reward")
    export(tmp_path / "reward")
    write(tmp_path / "reward" / "provenance.json", [{"model": {"module": "RewardModule"}}])
    measure, use = advice_of(chain(tmp_path, "reward"), None, Launch())
    assert measure.code.startswith("preferences: ")
    assert use.what.startswith("Use it as a judge")


def test_how_many_prompts_would_decide_follows_from_the_interval(tmp_path: Path) -> None:
    # 40 prompts: 6 better, 4 worse, so a gain of 0.05 +- about 0.15, whose square is about 10 times that of 0.05
    evaluate(tmp_path / "sft", [0.0] * 6 + [1.0] * 4 + [0.0] * 30)
    evaluate(tmp_path / "dpo", [1.0] * 6 + [0.0] * 4 + [0.0] * 30)
    finish(tmp_path / "sft")
    finish(tmp_path / "dpo")
    chains = chain(tmp_path, "sft", "dpo")
    scores = scores_of(chains)
    assert scores is not None
    gain = scores.gain("dpo", "sft")
    assert gain is not None
    (found,) = advice_of(chains, scores, RUN)
    wanted = 40 * ((gain.high - gain.low) / 2 / 0.05) ** 2
    assert 300 < wanted < 500
    assert f"about {int(wanted + 1):,} prompts" in found.what
    assert found.code == "lion run mine.yaml --seeds 0 1 2"


def test_a_last_stage_that_is_decidedly_worse_is_not_the_one_to_use(tmp_path: Path) -> None:
    for name, right in (("sft", 20), ("dpo", 5)):
        evaluate(tmp_path / name, [1.0] * right + [0.0] * (20 - right))
        finish(tmp_path / name)
        export(tmp_path / name)
    chains = chain(tmp_path, "sft", "dpo")
    *_, talk = advice_of(chains, scores_of(chains), RUN)
    assert talk.code == f"lion chat {tmp_path}/sft/export"
    assert "DPO is worse by 0.750" in talk.why


# --- facts


def test_costs_are_counted_from_the_logs(tmp_path: Path) -> None:
    curve(tmp_path, perf__packing_efficiency=[0.8, 0.9], perf__tokens_per_second=[100.0, 300.0])
    write(tmp_path / "startup.json", STARTUP)
    write(tmp_path / "done.json", {"seconds": 12.5})
    cost = cost_of(read_stage(tmp_path))
    # 20 steps of 400 tokens in rows of 200: 40 rows, 8000 tokens if full, 85% of that
    assert (cost.seconds, cost.steps, cost.rows, cost.tokens, cost.tokens_per_second) == (12.5, 20, 40, 6800, 200)
    assert (cost.memory, cost.measured) == (100 * MIB, False)
    write(tmp_path / "startup.json", {**STARTUP, "measured": {"memory": 300 * MIB}})
    cost = cost_of(read_stage(tmp_path))
    assert (cost.memory, cost.measured) == (300 * MIB, True)
    curve(tmp_path, 1, perf__peak_memory=[0.25, 0.5, 0.125])
    cost = cost_of(read_stage(tmp_path))
    assert (cost.memory, cost.measured) == (0.5 * GIB, True)


def test_data_of_rounds_is_what_they_kept(tmp_path: Path) -> None:
    rounds(tmp_path, score=[0.1, 0.2])
    assert data_of(read_stage(tmp_path)) == "201 pairs of 2 rounds of own answers"
    write(tmp_path / "b" / "startup.json", STARTUP)
    assert data_of(read_stage(tmp_path / "b")) == "5,000 examples"


def test_settings_are_those_of_the_config(tmp_path: Path) -> None:
    adam = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.002, "betas": [0.9, 0.95]}}
    losses = [{"class_path": "l.SigmoidLoss", "init_args": {"beta": 0.1}}, {"class_path": "l.ChosenNLLLoss"}]
    assert described(adam) == "AdamW (lr 0.002, betas 0.9 0.95)"
    assert described(losses) == "SigmoidLoss (beta 0.1) + ChosenNLLLoss"
    summed = {"class_path": "l.WeightedSum", "init_args": {"losses": losses, "weights": [1.0, 0.5]}}
    assert described(summed) == "SigmoidLoss (beta 0.1) + 0.5 ChosenNLLLoss"
    judge = {
        "class_path": "l.WeightedJudge",
        "init_args": {"judges": losses, "names": ["a", "b"], "weights": [0.25, 1]},
    }
    assert described(judge) == "0.25 a + b"
    assert len(described("x" * 999)) == 201
    sampling = {"class_path": "l.OnPolicySampling", "init_args": {"num_samples": 8, "judge": {"class_path": "l.J"}}}
    config = {
        "model": {"class_path": "M", "init_args": {"policy": {"config": "runs/demo/model"}, "optimizer": adam}},
        "data": {"class_path": "D", "init_args": {"max_length": 1280}},
        "trainer": {"max_epochs": 2, "callbacks": [sampling]},
    }
    tmp_path.joinpath("stage.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert settings_of(read_stage(tmp_path)) == {
        "starts from": "runs/demo/model (random weights)",
        "optimizer": "AdamW (lr 0.002, betas 0.9 0.95)",
        "epochs": "2",
        "longest": "1,280 tokens",
        "answers per prompt": "8",
        "judge": "J",
    }


def test_the_command_that_goes_on_is_known_of_both_kinds_of_run(tmp_path: Path) -> None:
    def launched(folder: Path) -> Launch:
        return read_launch(folder, [ChainLogs("run", [read_stage(folder)])])

    write(tmp_path / "provenance.json", [{"command": ["/x/lion", "fit", "-c", "my run.yaml"]}])
    assert launched(tmp_path).command == "lion fit -c 'my run.yaml' --ckpt_path last"
    write(tmp_path / "provenance.json", [{"command": ["/x/__main__.py", "runs/sft"]}])
    assert launched(tmp_path) == Launch()
    write(tmp_path / "run.json", {"command": ["lion", "run", "a b.yaml"], "stages": ["sft"]})
    assert launched(tmp_path) == Launch("lion run 'a b.yaml'", ["sft"])


def test_a_stage_may_lack_everything(tmp_path: Path) -> None:
    stage: Stage = read_stage(tmp_path)
    assert cost_of(stage) == (None, 0, None, None, None, None, False)
    assert (settings_of(stage), data_of(stage), advised(tmp_path)) == ({}, "", [])


def test_a_single_callback_need_not_be_a_list(tmp_path: Path) -> None:
    curve(tmp_path, train__loss=[1.0])
    callback = {"class_path": "lion_lightning.callbacks.OnPolicySampling", "init_args": {"num_samples": 4}}
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callback}}))
    assert settings_of(read_stage(tmp_path)) == {"answers per prompt": "4"}


EPOCHS: list[tuple[int, int, int | str, list[tuple[int, int]], str]] = [
    # rows of 200 tokens, planned steps and epochs, logged (step, epoch): two rows a step
    (50, 75, 3, [(9, 0), (74, 2)], "3"),  # 25 steps an epoch
    (50, 40, 3, [(9, 0), (39, 1)], "1.6 of 3"),  # max_steps 40
    (50, 75, 3, [(9, 0), (19, 0)], "0.8 of 3"),  # stopped
    (50, 40, "unlimited", [(9, 0), (39, 1)], "1.6"),
    (49, 29, 3, [(9, 0), (19, 0)], "1.2 of 3"),  # the last nine were not logged: 29 of 25 an epoch
    (0, 75, 3, [(9, 0), (19, 1)], "2 begun of 3"),  # rows are not known
    (0, 75, 3, [(9, 0), (74, 2)], "3"),
]


@pytest.mark.parametrize(("rows", "steps", "planned", "logged", "epochs"), EPOCHS)
def test_epochs_are_those_that_were_trained(
    rows: int, steps: int, planned: int | str, logged: list[tuple[int, int]], epochs: str, tmp_path: Path
) -> None:
    log(tmp_path, [{"step": step, "epoch": epoch, "train/loss": 1.0} for step, epoch in logged])
    run = {"epochs": planned, "steps": steps, "devices": 1, "step_tokens": 400}
    write(tmp_path / "startup.json", {"data": {"rows": rows, "row_tokens": 200}, "run": run})
    assert settings_of(read_stage(tmp_path))["epochs"] == epochs


def test_a_run_whose_losses_are_nan_made_its_steps(tmp_path: Path) -> None:
    curve(tmp_path / "dpo", train__loss=[math.nan, math.nan])
    write(tmp_path / "dpo" / "startup.json", STARTUP | {"run": {"steps": 90}})
    (tmp_path / "dpo" / "stage.yaml").write_text("{}")
    unfinished, diverged, *_ = advice_of(chain(tmp_path, "dpo"), None, RUN)
    assert unfinished.why == f"{tmp_path}/dpo stopped at step 20 of 90; it starts over."
    assert diverged.why == "The loss of DPO is NaN from step 9 on: nothing was learned from there."


def test_a_loss_that_becomes_nan_and_stays_so_is_told_by_its_step(tmp_path: Path) -> None:
    curve(tmp_path, train__loss=[2.0, math.nan, 1.0, math.nan, math.nan])
    metrics = read_stage(tmp_path).metrics
    assert metrics.curves == {"train/loss": {9: 2.0, 29: 1.0}}
    assert (metrics.steps, metrics.nan_since) == (50, {"train/loss": 39})
