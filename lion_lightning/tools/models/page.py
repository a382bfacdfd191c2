"""The Markdown page of ``lion models``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import transformers

from lion_lightning import __version__
from lion_lightning.tools.models.check import STEPS, ModelCheck

HEAD = """# Models

Each type of causal LM of transformers {transformers}, at a tiny size with random weights in fp32, on a CPU. Made by
`lion models --out docs/models.md` with lion_lightning {version} and torch {torch} in {minutes:.0f} minutes.

{counts}

- **packed**: documents, prompts and answers are laid end to end in rows without padding, and a prompt is computed once
  for all its answers. Otherwise every sequence runs alone in a padded batch, with a warning when training starts.
- **exact**: log-probs and gradients of a row of documents and prompts with up to three answers equal those of each
  sequence alone.
- **prefix**: in a row with a bidirectional prompt, as that of a prefix language model, each token sees what it should.
  Else such rows are refused.
- **DPO**: a step of DPO with a frozen reference starts at a loss of log 2.
- **LoRA**: exact with adapters on all linear layers.
- **export**: the trained model's folder loads in transformers with equal logits.

| type | {columns} | note |
|---|{lines}|---|
{rows}
"""


def page(checks: Sequence[ModelCheck], minutes: float) -> str:
    """The page.

    Args:
        checks: Results, in the order of the table.
        minutes: Time that they took.
    """
    rows = []
    for check in checks:
        tried = STEPS[: STEPS.index(check.failed) + 1] if check.failed else STEPS
        marks = ["yes" if step in check.passed else ("no" if step in tried else "") for step in STEPS]
        rows.append(f"| {check.model_type} | {' | '.join(marks)} | {check.reason.replace('|', chr(92) + '|')} |")
    return HEAD.format(
        transformers=transformers.__version__,
        version=__version__,
        torch=torch.__version__.partition("+")[0],
        minutes=minutes,
        counts=counts(checks),
        columns=" | ".join(STEPS),
        lines="|".join("---" for _ in STEPS),
        rows="\n".join(rows),
    )


def counts(checks: Sequence[ModelCheck]) -> str:
    """How many types run packed, padded, or not, in a sentence."""
    right = [check for check in checks if not check.failed]
    packed = sum(check.packed for check in right)
    refused = sum(check.failed == "build" for check in checks)
    return (
        f"Of {len(checks)} types {packed} pass every check packed ({packed / max(len(checks), 1):.0%}) and "
        f"{len(right) - packed} padded; {refused} are refused when they are built; "
        f"{len(checks) - len(right) - refused} fail a later check. "
        f"{sum('prefix' in check.passed for check in checks)} take bidirectional prefixes."
    )


def summary(check: ModelCheck) -> str:
    """A line about one type."""
    state = "packed" if check.packed else "padded"
    if not check.failed:
        return f"{check.model_type}: {state}, all checks passed"
    return f"{check.model_type}: {check.failed} failed: {check.reason}"
