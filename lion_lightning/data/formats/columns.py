"""Columns of a raw row: their known names, the form that they make, and a check that none is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from functools import cached_property
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

from typing_extensions import override

from lion_lightning.data.formats.column_table import ANSWER_LISTS, ANSWERS, PROMPTS, SYNONYMS
from lion_lightning.data.formats.turns import are_turns
from lion_lightning.data.formats.unused_columns import check_unused_columns, meaning_of, printable
from lion_lightning.data.reports.row_messages import add_message
from lion_lightning.data.sources.json_text import parse_messages, read_list

Row = Mapping[str, Any]
Made = TypeVar("Made")

_MAX_NAMES = 20


class Form(NamedTuple, Generic[Made]):
    """A known form of rows.

    Attributes:
        required: The columns that make the form.
        optional: Columns that it may have as well; ``columns`` can name these too.
        parse: The function that reads such a row.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    parse: Callable[..., Made]

    @override
    def __str__(self) -> str:
        return " + ".join(self.required)


class Refusal(NamedTuple):
    """Columns of rows that are not taken here, and the line that says who takes them."""

    columns: tuple[str, ...]
    line: str


class Forms(tuple[Form[Made], ...]):
    """Known forms, in their order."""

    @cached_property
    def known(self) -> frozenset[str]:
        """All columns that a form reads."""
        return frozenset[str]().union(*(form.required + form.optional for form in self))

    def fitting(self, columns: Iterable[str]) -> list[Form[Made]]:
        """The forms of which all required columns are there."""
        names = {*columns}
        return [form for form in self if names.issuperset(form.required)]

    @override
    def __str__(self) -> str:
        """All forms; those that differ in the prompt's column alone as one: ``prompt|question + chosen + rejected``."""
        prompts: dict[str, list[str]] = {}
        for first, *rest in (form.required for form in self):
            tail = " + ".join(["", *rest])
            prompts.setdefault(tail or first, []).append(first)
        return "; ".join("|".join(firsts) + tail if tail.startswith(" ") else tail for tail, firsts in prompts.items())

    def nearest(self, taken: str, columns: Set[str]) -> str:
        """The form that rows with these columns would have next to the one that was taken, and why they do not."""
        if fitting := [form for form in self.fitting(columns) if str(form) != taken]:
            return f"{fitting[0]} fits too, and {taken} comes before it; `columns` decides otherwise"
        read = next(form.required for form in self if str(form) == taken)

        def nearness(form: Form[Any]) -> tuple[int, int]:
            """How many of its columns are there that were not read, and how many in all."""
            found = columns & {*form.required}
            return len(found - {*read}), len(found)

        nearest = max((form for form in self if str(form) != taken), key=nearness)
        if not any(nearness(nearest)):
            return "any other form: none of their other columns is there"
        lacking = [name for name in nearest.required if name not in columns]
        return f"{nearest} lacks {', '.join(lacking)}"


class Fields(Mapping[str, Any]):
    """A row under the known names of its columns, without nulls; it remembers which columns were read.

    Args:
        values: Values by known name.
        columns: The row's own names of columns, by known name.

    Attributes:
        unread: Names that were not read yet, in the row's order.
    """

    def __init__(self, values: dict[str, Any], columns: Mapping[str, str]) -> None:
        self._values, self._own, self._mapped = values, columns, columns
        self.unread = dict.fromkeys(values)

    @override
    def __getitem__(self, name: str) -> Any:
        """Read a value."""
        value = self._values[name]
        self.unread.pop(name, None)
        return value

    @override
    def __contains__(self, name: object) -> bool:
        """True if a column is there; that does not read it."""
        return name in self._values

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    @override
    def __len__(self) -> int:
        return len(self._values)

    @override
    def get(self, name: str, default: Any = None) -> Any:
        """Read a value that may be absent; the base's way raises an error for each one that is."""
        return self[name] if name in self._values else default

    def peek(self, name: str) -> Any:
        """A value, without reading it."""
        return self._values[name]

    def own(self, name: str) -> str:
        """The row's own name of a column."""
        return self._own.get(name, name)

    def rename(self, name: str, known: str) -> None:
        """Give a column its known name."""
        self._values[known] = self._values.pop(name)
        self._own = {**self._own, known: name}
        self.unread = dict.fromkeys(self._values)

    def describe_read(self) -> list[str]:
        """The columns that were read, each as the row calls it, and as what it was read where that is another name."""
        names = [name for name in self._values if name not in self.unread]
        return [f"{printable(self._own[name])} as {name}" if name in self._own else name for name in names]

    def is_mapped(self, name: str) -> bool:
        """True if ``columns`` says which column this is."""
        return name in self._mapped


def read_row(
    row: Row,
    columns: Mapping[str, str],
    forms: Forms[Made],
    found: Mapping[str, str] | None = None,
    refused: Sequence[Refusal] = (),
    only_prompt: bool = False,
) -> Made:
    """Read a row in the form that its columns make, then check the columns that the form has not read.

    Args:
        row: The raw row. A column that is null counts as absent.
        columns: The row's own name for a known column.
        forms: Known forms; of several that fit, the one that uses most of ``columns``, then the first, is taken.
        found: More of the row's own names, which are known by themselves and prefer no form.
        refused: Columns of rows that fit no form and somebody else takes.
        only_prompt: Whether only the prompt is wanted, so that columns of answers may remain.

    Raises:
        ValueError: No form fits, ``columns`` names something that does not exist, or a column would be lost that
            changes what the row means.
    """
    unknown = columns.keys() - forms.known
    if unknown := unknown.difference(*(refusal.columns for refusal in refused)):
        _refuse_unknown(row, columns, min(unknown), forms.known)
    fields = _rename(row, {**(found or {}), **columns}, forms.known)
    fitting = forms.fitting(fields)
    if not fitting:
        holding = []  # columns of messages, whatever their names, unless these say that they are something else
        for name in fields:
            if name not in (*PROMPTS, *ANSWERS, *ANSWER_LISTS) and meaning_of(name) is None:
                with suppress(ValueError):  # not a list
                    holding += [name] if are_turns(read_list(fields.peek(name), name)) else []
        if len(holding) == 1:
            fields.rename(holding[0], "messages")
            fitting = forms.fitting(fields)
    form = _choose_form(row, fields, columns, forms, fitting, refused)
    made = form.parse(fields)
    check_unused_columns(fields, str(form), only_prompt)
    add_message("form", " | ".join([str(form), *fields.describe_read()]))
    return made


def _refuse_unknown(row: Row, columns: Mapping[str, str], name: str, known: Set[str]) -> NoReturn:
    if name in row and columns[name] in known:
        raise ValueError(f"columns are the other way round: write {columns[name]}: {name}, the row's own name last")
    raise ValueError(f"columns names the unknown column {name!r}; known are {', '.join(sorted(known))}")


def _rename(row: Row, columns: Mapping[str, str], known: Set[str]) -> Fields:
    """The row's values under known names."""
    values = {key: value for key, value in row.items() if value is not None}
    renamed = {key: value for key, value in values.items() if key not in columns.values()}
    for name, own in columns.items():
        if name in renamed:  # the row's own column of the name that another one is given
            if own not in values:
                raise ValueError(f"columns maps {name} to {own!r}, but the row only has the keys {_listed(row)}")
            add_message("unused", printable(name))
        if own in values:
            renamed[name] = values[own]
    parsed = {name: parse_messages(value, name) if name in known else value for name, value in renamed.items()}
    fields = Fields(parsed, columns)
    for name in SYNONYMS.keys() & parsed.keys():
        if name not in known and SYNONYMS[name] not in parsed:
            fields.rename(name, SYNONYMS[name])
    return fields


def _choose_form(
    row: Row,
    fields: Fields,
    columns: Mapping[str, str],
    forms: Forms[Made],
    fitting: list[Form[Made]],
    refused: Sequence[Refusal],
) -> Form[Made]:
    """The form of a row; if ``columns`` names columns that make a form, the row must have one of them."""
    decisive = columns.keys() & set[str]().union(*(form.required for form in forms)) if columns else frozenset()
    absent = [name for name in columns if name in decisive and name not in fields]
    if absent and (not fitting or len(absent) == len(decisive)):
        own = columns[absent[0]]
        raise ValueError(f"columns maps {absent[0]} to {own!r}, but the row only has the keys {_listed(row)}")
    if fitting:
        return max(fitting, key=lambda form: len(columns.keys() & {*form.required, *form.optional}))
    keys = _listed(f"{key} (null)" if value is None else key for key, value in row.items()) or "none"
    nearest = max(forms, key=lambda form: sum(name in fields for name in form.required))
    lacking = [name for name in nearest.required if name not in fields]
    for refusal in refused:  # unless a form lacks one column, and has as many
        has_more = len(refusal.columns) > len(nearest.required) - len(lacking)
        if fields.keys() >= {*refusal.columns} and (has_more or len(lacking) > 1):
            raise ValueError(refusal.line)
    near = f"; {nearest} lacks {', '.join(lacking)}" if len(lacking) < len(nearest.required) else ""
    raise ValueError(
        f"unknown format: the row's keys are {keys}; known: {forms}{near}; rename keys with "
        "`columns` or give a `transform`"
    )


def _listed(names: Iterable[object]) -> str:
    """Names of columns for an error: on one line, and not all of thousands."""
    listed = [printable(str(name)) for name in names]
    more = f" and {len(listed) - _MAX_NAMES} more" if len(listed) > _MAX_NAMES else ""
    return ", ".join(listed[:_MAX_NAMES]) + more
