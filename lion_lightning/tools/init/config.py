"""The config of a stage, or of a pipeline, from templates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

import torch
import yaml

from lion_lightning.modules.optimization.limits import has_bf16
from lion_lightning.tools.init.model import Model
from lion_lightning.tools.init.rows import Look, look

STAGES = {
    "sft": "conversations",
    "dpo": "pairs",
    "kto": "answers",
    "reward": "pairs",
    "ranked": "groups",
    "grpo": "prompts",
    "online_dpo": "prompts",
}
"""Kind of rows that each stage trains on."""

_PIPELINE = ("sft", "dpo", "online_dpo")

_FORMS = {
    "conversations": ("my/conversations/*.jsonl", "rows of messages, or question and answer: docs/data.md"),
    "pairs": ("my/preferences.jsonl", "rows of question, chosen, rejected"),
    "answers": ("my/thumbs.jsonl", "rows of question, answer, label"),
    "groups": ("my/ranked.jsonl", "rows of question, answers, scores"),
    "prompts": ("my/questions.jsonl", "rows of a question or a prompt"),
}
"""Path and columns of the data to be edited, where none are given."""

_FEW = 400
"""Below so many rows each micro-batch is a step, and there are three epochs: one step of eight rows teaches nothing."""

_VALUE = re.compile(r"(.*####)?\s*[-+]?\$?\d[\d,]*([./]\d+)?\s*%?\s*", re.DOTALL)
"""An answer that is a number, by itself or at the end of a solution of GSM8K."""

_TITLES = {
    "sft": "Supervised fine-tuning on conversations",
    "dpo": "DPO on preference pairs",
    "kto": "KTO on answers with a thumb up or down",
    "reward": "A reward model from preference pairs",
    "ranked": "Listwise training on answers with scores",
    "grpo": "GRPO: the model's own answers, and a reward for each",
    "online_dpo": "Online DPO: the model's own answers, ranked by a judge",
}


def write_config(
    stage: str, model: str | None, data: list[str], out: str | None = None, precision: str | None = None
) -> tuple[str, list[str]]:
    """A config, and lines that say what was understood.

    Args:
        stage: One of :data:`STAGES`, or ``pipeline``.
        model: Folder or hub id; None for one to be edited.
        data: Files or hub ids; none for places to be edited.
        out: The config's name, for its comments.
        precision: As of the trainer; None for what the device can.

    Raises:
        ValueError: The model or the data is wrong.
    """
    chosen, looks = Model.of(model), _looks(stage, data)
    values = _values(chosen, precision or _precision())
    file = out or "FILE"
    text = _pipeline(file, values, looks) if stage == "pipeline" else _single(stage, file, values, looks)
    return text, [*chosen.lines, *(found.line for found in looks.values() if found.line)]


def _single(stage: str, file: str, values: Mapping[str, str], looks: Mapping[str, Look]) -> str:
    """The config of a stage."""
    use = STAGES[stage]
    own = {
        "root": f"default_root_dir: runs/{stage}",
        "export": f"- class_path: lion_lightning.callbacks.HuggingFaceExport  # into runs/{stage}/export",
    }
    head = _head(_TITLES[stage], f"lion fit -c {file}", "after a stop the same with --ckpt_path last")
    return head + _filled(stage, {**values, **_data_values(looks[use], use), **own})


def _pipeline(file: str, values: Mapping[str, str], looks: Mapping[str, Look]) -> str:
    """The config of three stages, of which the later ones start from the export of the one before."""
    stages: list[str] = []
    for stage in _PIPELINE:
        use = STAGES[stage]
        own = {**values, **_data_values(looks[use], use), "root": "", "export": ""}
        if stages:
            own |= {"policy": "{recompute: none}  # starts from what the stage before exported", "tokenizer": ""}
        stages.append(f"  {stage}:\n" + _indented(_filled(stage, own), 4))
    head = _head("A model and data of your own through the three stages", f"lion run {file}", "after a stop the same")
    return f"{head}out: runs/own\n\nstages:\n" + "\n".join([*stages, _template("evaluate")])


def _head(title: str, command: str, then: str) -> str:
    return (
        f"# {title}. Edit the lines marked <-- edit, then\n#   {command:<32} {then}\n"
        "# Rates and beta are for 2 to 8 billion weights; smaller models take larger ones.\n"
    )


def _looks(stage: str, data: list[str]) -> dict[str, Look]:
    """Looks at the rows by their kind; empty looks where none are given."""
    uses = [STAGES[name] for name in (_PIPELINE if stage == "pipeline" else (stage,))]
    if len(data) > len(uses):
        raise ValueError(f"--data: {stage} takes {' and '.join(uses)}, one file each; add more to the config's list")
    found = [look(path, use) for path, use in zip(data, uses, strict=False)]
    return dict(zip(uses, [*found, *(Look({}) for _ in uses)], strict=False))


def _data_values(found: Look, use: str) -> dict[str, str]:
    """Values of a template that follow from the rows."""
    few = found.rows is not None and found.rows < _FEW
    sources, hint = _flow([found.source]), ""
    if not found.source:
        path, form = _FORMS[use]
        chat = {"format": "chat"} if use in ("pairs", "prompts") else {}
        sources, hint = _flow([{"path": path, **chat}]), f"  # <-- edit: {form}"
    return {
        "sources": sources + hint,
        "share": "0.1" if few else "0.01",
        "epochs": "3" if few else "1",
        "accumulate": "1" if few else "8",
        "judge": _judge(found),
    }


def _judge(found: Look) -> str:
    """A check against the right answer where the rows have one, else a model that compares answers."""
    named = ("answer", "solution", "target", "label")
    column = next((name for name in named if found.first and name in found.first[0]), None)
    if column is None:
        return _template("judge_pair_rm").rstrip()
    are_values = all(_VALUE.fullmatch(str(row.get(column))) for row in found.first)
    verifier, how = (
        ("MathAnswer", "the last value of an answer is compared; needs math-verify")
        if are_values
        else ("ExactMatch", "the whole answer has to be equal")
    )
    return _filled("judge_verifier", {"verifier": verifier, "column": column, "how": how}).rstrip()


def _values(model: Model, precision: str) -> dict[str, str]:
    """Values of a template that follow from the model and the device."""
    length = min(2048, model.positions or 2048)
    numbers = {
        "length": length,
        "prompt_length": length // 4,
        "row_length": 2 * length,
        "long_row": 8 * length,
        "new_tokens": length // 4,
    }
    return {
        "policy": model.policy,
        "tokenizer": model.tokenizer,
        "precision": precision,
        **{name: str(number) for name, number in numbers.items()},
    }


def _precision() -> str:
    """bf16 where the device has it."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    return "bf16-mixed" if has_bf16(device) else "32-true"


# --- templates


def _template(name: str) -> str:
    return resources.files(__package__).joinpath("templates", f"{name}.yaml").read_text(encoding="utf-8")


_MARK = re.compile(r"@(\w+)@")


def _filled(name: str, values: Mapping[str, str]) -> str:
    """A template with its values; a line that a mark without a value stands on alone is left out."""
    lines: list[str] = []
    for line in _template(name).splitlines():
        mark = _MARK.fullmatch(line.strip())
        if mark is None:
            lines.append(_MARK.sub(lambda found: values[found[1]], line))
        elif mark[1] in ("trainer", "pairs"):  # another template
            lines.append(_filled(mark[1], values).rstrip())
        elif values[mark[1]]:
            lines += _indented(values[mark[1]], len(line) - len(line.lstrip())).splitlines()
    return "\n".join(lines) + "\n"


def _indented(text: str, spaces: int) -> str:
    return "".join(f"{' ' * spaces}{line}" if line.strip() else line for line in text.splitlines(keepends=True))


def _flow(value: Any) -> str:
    """Plain data as YAML on a line."""
    return str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)).strip()
