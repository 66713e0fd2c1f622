"""Tables of rows: for the terminal, Markdown, comma-separated values and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "ErrorRow",
    "Row",
    "csv_table",
    "json_table",
    "markdown_table",
    "rich_table",
    "short",
]

_NUMBERS = ("numbers", "right")


class Row(Protocol):
    """A named tuple that the tables here can show: errors, or how good uncertainties are."""

    group: str  # a line is drawn where it changes
    _fields: tuple[str, ...]

    def columns(self) -> tuple[tuple[str, str], ...]:
        """Headings of the cells, and "left" or "right"."""

    def cells(self) -> list[str]:
        """What stands in the row."""

    def _asdict(self) -> dict[str, Any]:
        """Fields by name."""


class ErrorRow(NamedTuple):
    """Errors of one kind of label in one group of structures."""

    group: str
    kind: str
    unit: str
    mae: float
    rmse: float
    max: float
    count: int

    @staticmethod
    def columns() -> tuple[tuple[str, str], ...]:
        """Headings of the cells and how these are aligned.

        Returns
        -------
        tuple[tuple[str, str], ...]
            Heading, and "left" or "right".
        """
        numbers = (("MAE", "right"), ("RMSE", "right"), ("max", "right"))
        return (("group", "left"), ("label", "left"), *numbers, ("unit", "left"), _NUMBERS)

    def cells(self) -> list[str]:
        """What stands in the row.

        Returns
        -------
        list[str]
            One for each of `columns`.
        """
        errors = (self.mae, self.rmse, self.max)
        return [self.group, self.kind, *map(short, errors), self.unit, str(self.count)]


def markdown_table(rows: Sequence[Row]) -> str:
    """A table in Markdown.

    Parameters
    ----------
    rows : Sequence[Row]
        From `error_table`, or `report_uncertainty.uncertainty_table`.

    Returns
    -------
    str
        The table, without a final line break.
    """
    columns = _kind(rows).columns()
    marks = ("---" if side == "left" else "--:" for _, side in columns)
    lines = ["| " + " | ".join(name for name, _ in columns) + " |", "|" + "|".join(marks) + "|"]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    return "\n".join(lines)


def csv_table(rows: Sequence[Row]) -> str:
    """Comma-separated values, with a heading.

    Parameters
    ----------
    rows : Sequence[Row]
        As for `markdown_table`.

    Returns
    -------
    str
        One line per row.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_kind(rows)._fields)
    writer.writerows(rows)
    return text.getvalue()


def json_table(rows: Sequence[Row]) -> str:
    """A JSON list of objects.

    Parameters
    ----------
    rows : Sequence[Row]
        As for `markdown_table`.

    Returns
    -------
    str
        One object per row; null for what is not defined, for which JSON has no number.
    """
    objects = [
        {name: None if value != value else value for name, value in row._asdict().items()}
        for row in rows
    ]
    return json.dumps(objects, indent=1) + "\n"


def rich_table(rows: Sequence[Row], title: str) -> Table:
    """A table for the terminal.

    Parameters
    ----------
    rows : Sequence[Row]
        As for `markdown_table`.
    title : str
        Stands above the table.

    Returns
    -------
    Table
        For rich's console.
    """
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name, side in _kind(rows).columns():
        table.add_column(name, justify=side)
    for row, following in zip(rows, (*rows[1:], None), strict=True):
        last = following is None or _group(following) != _group(row)
        table.add_row(*row.cells(), end_section=last)
    return table


def short(value: float) -> str:
    """A number in three digits, or without decimals from 100 on.

    Parameters
    ----------
    value : float
        Any.

    Returns
    -------
    str
        As it stands in a table; "-" for what is not defined.
    """
    if value != value:
        return "-"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _kind(rows: Sequence[Row]) -> type[Row]:
    """What the rows are; those of errors where there is none."""
    return type(rows[0]) if rows else ErrorRow


def _group(row: Any) -> str | None:
    """Where rows have groups, a line stands between them."""
    return getattr(row, "group", None)
