"""Columns of a raw row: what they are called, which form they make, and that none is dropped without a word."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Generic, NamedTuple, TypeVar

from typing_extensions import override

from lion_lightning.data.formats.unused_columns import check_unused_columns, printable
from lion_lightning.data.reports.row_messages import add_message
from lion_lightning.data.sources.json_text import parse_messages

Row = Mapping[str, Any]
Made = TypeVar("Made")

_MOST_NAMES = 20


class Form(NamedTuple, Generic[Made]):
    """A known form of rows.

    Attributes:
        required: The columns that a row of this form has.
        optional: The columns that it may have besides; ``columns`` can name these too.
        parse: The function that reads such a row.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    parse: Callable[..., Made]

    @override
    def __str__(self) -> str:
        """The columns that make the form."""
        return " + ".join(self.required)


class Fields(Mapping[str, Any]):
    """A row under the names that forms know, without nulls. It remembers what was read.

    Args:
        values: The values by these names.
        own: What the row itself calls them, where it is another name.

    Attributes:
        unread: Names of what nobody has asked for yet, in the row's order.
    """

    def __init__(self, values: Mapping[str, Any], own: Mapping[str, str]) -> None:
        self._values, self._own = values, own
        self.unread = dict.fromkeys(values)

    @override
    def __getitem__(self, name: str) -> Any:
        """A value, which is read from now on."""
        value = self._values[name]
        self.unread.pop(name, None)
        return value

    @override
    def __contains__(self, name: object) -> bool:
        """Whether it is there; that does not read it."""
        return name in self._values

    @override
    def __iter__(self) -> Iterator[str]:
        """Names."""
        return iter(self._values)

    @override
    def __len__(self) -> int:
        """Number of columns."""
        return len(self._values)

    def peek(self, name: str) -> Any:
        """A value, without reading it."""
        return self._values[name]

    def own(self, name: str) -> str:
        """What the row calls a column."""
        return self._own.get(name, name)

    def is_mapped(self, name: str) -> bool:
        """Whether ``columns`` says which column this is."""
        return name in self._own


def read_row(
    row: Row, columns: Mapping[str, str], forms: Sequence[Form[Made]], *context: Any, only_prompt: bool = False
) -> Made:
    """Read a row by the form that it is written in, and account for the columns that the form has not read.

    Args:
        row: The raw row. A column that is null counts as absent.
        columns: The row's own name for a known column.
        forms: Known forms; of several that fit, the one that uses most of ``columns``, then the first, is taken.
        *context: What the form's function takes besides the row.
        only_prompt: Whether only the prompt is wanted, so that columns of answers may remain.

    Raises:
        ValueError: No form fits, ``columns`` names something that does not exist, or a column would be lost that
            changes what the row means.
    """
    fields = _named(row, columns, {column for form in forms for column in form.required + form.optional})
    form = _fitting(row, fields, columns, forms)
    made = form.parse(fields, *context)
    check_unused_columns(fields, str(form), only_prompt)
    return made


def list_names(names: Iterable[object]) -> str:
    """Names of columns as an error can show them: on one line, and not all of thousands."""
    listed = [printable(str(name)) for name in names]
    more = f" and {len(listed) - _MOST_NAMES} more" if len(listed) > _MOST_NAMES else ""
    return ", ".join(listed[:_MOST_NAMES]) + more


def _named(row: Row, columns: Mapping[str, str], known: Set[str]) -> Fields:
    if unknown := sorted(columns.keys() - known):
        name, turned = unknown[0], columns[unknown[0]]
        if name in row and turned in known:
            raise ValueError(f"columns are the other way round: write {turned}: {name}, the row's own name last")
        raise ValueError(f"columns names the unknown column {name!r}; known are {', '.join(sorted(known))}")
    values = {key: value for key, value in row.items() if value is not None}
    for name in [name for name, own in columns.items() if name in values and name not in columns.values()]:
        if columns[name] not in values:
            raise ValueError(
                f"columns maps {name} to {columns[name]!r}, but the row only has the keys {list_names(row)}"
            )
        add_message("unused", printable(name))  # the row's own column of the name that another one goes by
    renamed = {name: values[own] for name, own in columns.items() if own in values}
    rest = {key: value for key, value in values.items() if key not in columns.values()}
    named = {name: parse_messages(value, name) if name in known else value for name, value in (rest | renamed).items()}
    return Fields(named, columns)


def _fitting(row: Row, fields: Fields, columns: Mapping[str, str], forms: Sequence[Form[Made]]) -> Form[Made]:
    """The form of a row, which uses a column that ``columns`` brings where it brings any that makes a form."""
    decisive = {name for form in forms for name in form.required} & columns.keys()
    fitting = [form for form in forms if all(name in fields for name in form.required)]
    absent = [name for name in columns if name in decisive and name not in fields]
    if absent and (not fitting or len(absent) == len(decisive)):
        own = columns[absent[0]]
        raise ValueError(f"columns maps {absent[0]} to {own!r}, but the row only has the keys {list_names(row)}")
    if not fitting:
        raise ValueError(_unknown_form(row, fields, forms))
    return max(fitting, key=lambda form: len(columns.keys() & {*form.required, *form.optional}))


def _unknown_form(row: Row, fields: Fields, forms: Sequence[Form[Any]]) -> str:
    keys = list_names(f"{key} (null)" if value is None else key for key, value in row.items()) or "none"
    nearest = max(forms, key=lambda form: sum(name in fields for name in form.required))
    lacking = [name for name in nearest.required if name not in fields]
    near = f"; {nearest} lacks {', '.join(lacking)}" if len(lacking) < len(nearest.required) else ""
    known = "; ".join(map(str, forms))
    fix = "rename keys with `columns` or give a `transform`"
    return f"unknown format: the row's keys are {keys}; known: {known}{near}; {fix}"
