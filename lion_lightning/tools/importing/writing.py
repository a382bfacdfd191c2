"""The config file that an import writes, and its report."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml

from lion_lightning.printing import one_line
from lion_lightning.tools.importing.compose import compose
from lion_lightning.tools.importing.dialect import Imported
from lion_lightning.tools.importing.rules import Kind, Outcome

_HEADINGS: dict[Kind, str] = {
    "check": "carried over, to be checked",
    "not supported": "not supported",
    "no effect": "without effect here",
    "unknown": "unknown keys",
}


def report(imported: Imported) -> list[str]:
    """Lines that say what became of the keys."""
    outcomes, recipe = imported.outcomes, imported.recipe
    kinds = [outcome.kind for outcome in outcomes]
    carried = kinds.count("carried") + kinds.count("check")
    lines = [f"{imported.dialect.title}, {recipe.objective}: {carried} of {len(outcomes)} keys carried over"]
    batches = recipe.batches
    what = "rows of max_length tokens" if batches.packing != "none" else _ITEMS[recipe.objective]
    lines.append(
        f"a step: {batches.size} x {batches.accumulation} = {batches.size * batches.accumulation} {what} on each device"
    )
    for kind, heading in _HEADINGS.items():
        if found := [outcome for outcome in outcomes if outcome.kind == kind]:
            lines += [f"{heading}:", *_by_reason(found)]
    if imported.defaults:
        written = ", ".join(f"{key} {value}" for key, value in imported.defaults.items())
        lines.append(f"defaults of {imported.dialect.title} that are written out: {written}")
    lines += imported.notes
    return [one_line(line) if not line.startswith("  ") else f"  {one_line(line[2:])}" for line in lines]


_ITEMS = {"sft": "conversations", "dpo": "pairs", "kto": "labeled answers", "reward": "pairs"}


def _by_reason(outcomes: list[Outcome]) -> list[str]:
    """A line for each reason, with all keys that have it."""
    keys: dict[str, list[str]] = {}
    for outcome in outcomes:
        keys.setdefault(outcome.reason, []).append(outcome.key)
    return [f"  {', '.join(names)}{': ' if reason else ''}{reason}" for reason, names in keys.items()]


def config_text(imported: Imported, source: str) -> str:
    """The config as YAML, under the report as comments."""
    lines = [f"Imported from {one_line(source)}. Look at it with:  lion inspect -c FILE      then:  lion fit -c FILE"]
    comments = [f"# {part}" for line in [*lines, *report(imported)] for part in _wrapped(line)]
    return "\n".join([*comments, yaml.dump(compose(imported.recipe), Dumper=_Dumper, sort_keys=False, width=110)])


def _wrapped(line: str) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(line, 118, initial_indent="", subsequent_indent=f"{indent}  ", break_on_hyphens=False) or [""]


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no types
    """Writes small mappings on a line, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        short = len(str(mapping)) < 90 and "init_args" not in mapping and "class_path" not in mapping
        return super().represent_mapping(tag, mapping, flow_style=short if mapping else True)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        plain = all(isinstance(each, str | int | float) for each in sequence)
        return super().represent_sequence(tag, sequence, flow_style=plain)
