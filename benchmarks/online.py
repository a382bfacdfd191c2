"""Does online DPO raise what its judge measures? A tiny model, from a short SFT on, over several seeds; with a plot.

    python benchmarks/online.py --out runs/online_benchmark

For each seed: the made-up task of ``lion demo``, stage 1 for one epoch (so that there is room above it), then rounds of
online DPO straight from there. Reported are, for each round, the share of sampled answers that the verifier calls
right, and, before and after, greedy accuracy on 300 held-out questions that no stage saw. About two minutes per seed on
two cores.
"""

from __future__ import annotations

import argparse
import json
import os
from contextlib import chdir
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

CONFIGS = Path(__file__).parents[1] / "configs"
LOSS = {
    "class_path": "lion_lightning.losses.WeightedSum",
    "init_args": {
        "losses": [
            {"class_path": "lion_lightning.losses.SigmoidLoss", "init_args": {"beta": 0.1}},
            {"class_path": "lion_lightning.losses.ChosenNLLLoss"},
        ],
        "weights": [1.0, 1.0],
    },
}


class Run(NamedTuple):
    """What one seed gave.

    Attributes:
        scores: Mean score of the sampled answers, by round.
        before: Greedy accuracy on held-out questions after stage 1.
        after: The same after the last round.
    """

    scores: list[float]
    before: float
    after: float


def run(folder: Path, seed: int, rounds: int) -> Run:
    """Train one seed.

    Args:
        folder: Where to.
        seed: Of data, weights and draws.
        rounds: Epochs of online DPO.
    """
    from lion_lightning.cli import main
    from lion_lightning.tools.demo import write_demo

    folder.mkdir(parents=True, exist_ok=True)
    with chdir(folder):
        write_demo("runs/demo", seed=seed, prompts=4000)
        common = [f"--seed_everything={seed}", "--trainer.enable_progress_bar=false"]
        assert main(["fit", "-c", str(CONFIGS / "sft.yaml"), *common, "--trainer.max_epochs=1"]) == 0
        online = [
            f"--trainer.max_epochs={rounds}",
            "--model.policy.path=runs/sft/export",
            f"--model.loss={json.dumps(LOSS)}",
            "--model.optimizer.init_args.lr=6e-4",
            "--data.batch_size=1",
            "--data.row_length=256",
        ]
        assert main(["fit", "-c", str(CONFIGS / "online_dpo.yaml"), *common, *online]) == 0
        summaries = [json.loads(path.read_text()) for path in sorted(Path("runs/online_dpo/rounds").glob("*.json"))]
        scores = [summary["metrics"]["on_policy/score"] for summary in summaries]
        return Run(scores, accuracy("runs/sft/export"), accuracy("runs/online_dpo/export"))


def accuracy(folder: str) -> float:
    """Share of right greedy answers to the held-out questions.

    Args:
        folder: An exported model.
    """
    from types import SimpleNamespace

    from lion_lightning import PolicySpec, TokenizerSpec
    from lion_lightning.models.generation.greedy import generate_answers
    from lion_lightning.tools.demo import check

    rows = [json.loads(line) for line in Path("runs/demo/validation.jsonl").read_text().splitlines()]
    questions = [row["messages"][0]["content"] for row in rows]
    module = SimpleNamespace(policy_model=PolicySpec(path=folder).build(), tokenizer_spec=TokenizerSpec(path=folder))
    answers = generate_answers(module, questions, max_new_tokens=32)
    return mean(check(question, answer) for question, answer in zip(questions, answers, strict=True))


def draw(runs: list[Run], path: Path) -> None:
    """Plot the scores of all seeds.

    Args:
        runs: One a seed.
        path: Where to.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    rounds = range(len(runs[0].scores))
    for seed, one in enumerate(runs):
        axes.plot(rounds, one.scores, color="tab:blue", alpha=0.35, linewidth=1, label="a seed" if not seed else None)
    means = [mean(scores) for scores in zip(*(one.scores for one in runs), strict=True)]
    axes.plot(rounds, means, color="tab:blue", linewidth=2.5, marker="o", label=f"mean of {len(runs)} seeds")
    axes.axhline(means[0], color="gray", linestyle="--", linewidth=1, label="start")
    axes.set(xlabel="round", ylabel="share of sampled answers that are right", title="Online DPO on the made-up task")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("runs/online_benchmark"))
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    out = options.out.resolve()
    runs = [run(out / f"seed-{seed}", seed, options.rounds) for seed in range(options.seeds)]
    for seed, one in enumerate(runs):
        scores = " ".join(f"{score:.3f}" for score in one.scores)
        print(f"seed {seed}: score by round {scores}; held-out accuracy {one.before:.3f} -> {one.after:.3f}")
    for name, values in (("before", [one.before for one in runs]), ("after", [one.after for one in runs])):
        spread = stdev(values) if len(values) > 1 else 0.0
        print(f"held-out accuracy {name}: {mean(values):.3f} (standard deviation over seeds {spread:.3f})")
    draw(runs, out / "online.png")
    print(f"wrote {out / 'online.png'}")


if __name__ == "__main__":
    main()
