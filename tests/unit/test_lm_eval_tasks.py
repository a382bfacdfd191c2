"""The paper's benchmark tasks for lm-evaluation-harness."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "examples" / "lm_eval"


def test_each_task_has_the_few_shot_examples_of_the_paper() -> None:
    group = yaml.safe_load((FOLDER / "lions_openllm.yaml").read_text("utf-8"))
    assert group["group"] == "lions_openllm"
    shots = {task["task"]: task["num_fewshot"] for task in group["task"]}
    assert shots == {
        "hellaswag": 10, "arc_challenge": 25, "truthfulqa_mc2": 0, "winogrande": 5, "gsm8k": 5, "mmlu": 5
    }  # fmt: skip


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs lm-evaluation-harness: pip install 'lm_eval[hf]'")
def test_lm_eval_finds_the_group() -> None:
    from lm_eval.tasks import TaskManager

    assert "lions_openllm" in TaskManager(include_path=str(FOLDER)).all_groups
