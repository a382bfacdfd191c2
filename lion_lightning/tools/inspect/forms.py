"""The forms that the rows of each source were read in, and why not in another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from lion_lightning.data.formats.answers.groups import FORMS as GROUP_FORMS
from lion_lightning.data.formats.answers.labeled import FORMS as LABELED_FORMS
from lion_lightning.data.formats.answers.preference import FORMS as PAIR_FORMS
from lion_lightning.data.formats.columns import Forms
from lion_lightning.data.formats.sft import FORMS as SFT_FORMS
from lion_lightning.data.reports.row_messages import RowMessages
from lion_lightning.rollouts.prompts.forms import PROMPT_FORMS

FORMS: dict[str, Forms[Any]] = {
    "documents": SFT_FORMS,
    "pairs": PAIR_FORMS,
    "answers": LABELED_FORMS,
    "groups": GROUP_FORMS,
    "prompts": PROMPT_FORMS,
    "trajectories": SFT_FORMS,  # with a reward in addition
}
"""Known forms, by what the rows become."""


def forms_block(name: str, messages: RowMessages, noun: str) -> str:
    """The forms of a source's rows as a few lines: form, columns used and not used, and the nearest other form.

    Args:
        name: Name of the source.
        messages: Messages about its rows.
        noun: What the rows become, a key of :data:`FORMS`.
    """
    return "\n".join([f"{name} is read as", *(f"  {line}" for line in _lines(messages, FORMS[noun]))])


def _lines(messages: RowMessages, forms: Forms[Any]) -> Iterator[str]:
    counts, used = Counter[str](), Counter[str]()
    for text, count in messages["form"].items():
        form, *columns = text.split(" | ")
        counts[form] += count
        used.update(dict.fromkeys(columns, count))
    rows = counts.total()
    if not rows:
        yield "nothing: no row could be read"
        return
    yield f"form: {', '.join(f'{form} ({count:,} rows)' for form, count in counts.most_common())}"
    yield f"columns used: {RowMessages.of({'form': used}).listed('form', rows)}"
    yield f"columns not used: {messages.listed('unused', rows) or 'none'}"
    if kept := messages.listed("kept", rows):
        yield f"columns for judges: {kept}"
    known = {text.rpartition(" as ")[2] for text in used} | messages["unused"].keys()
    yield f"not read as: {forms.nearest(counts.most_common(1)[0][0], known)}"
