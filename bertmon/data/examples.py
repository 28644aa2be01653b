"""Rows to labeled texts: which values are a text and a label, empty cells, labels with blanks around them.

Shapes: N texts of a file or split.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from bertmon.data.lazy_texts import Text, as_text
from bertmon.data.table_rows import BadFileError, BadRowError, Row, preview
from bertmon.sanitize import has_control_characters

_MAX_LABEL_LENGTH = 1000  # characters; anything longer is a text
_MAX_NUMBERS = 20  # of rows in a message


class Columns(Protocol):
    """The keys of a config that name columns."""

    text_column: str
    text_pair_column: str | None
    label_column: str


class Example(NamedTuple):
    """One labeled text."""

    byte_offset: int  # of its row
    text: Text
    label: str


def text_columns(config: Columns) -> tuple[str, ...]:
    """One column, or two for pairs."""
    return (config.text_column,) if config.text_pair_column is None else (config.text_column, config.text_pair_column)


@dataclass
class ExampleReader:
    """One pass over the rows of `name`, and what was noticed on the way."""

    name: str
    unit: str  # what the numbers of rows count: "line" or "row"
    text_columns: tuple[str, ...]
    label_column: str
    skip_empty: bool
    n_rows: int = 0
    stripped_labels: int = 0
    empty: dict[str, list[int]] = field(default_factory=dict)  # numbers of the rows that lack a "text" or a "label"

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.text_columns, self.label_column)

    def examples(self, rows: Iterable[Row]) -> Iterator[Example]:
        """The texts of all rows. Raises BadRowError, and at the end BadFileError for empty cells."""
        for number, offset, values in rows:
            self.n_rows += 1
            lacking = next((column for column in self.columns if _is_empty(values[column])), None)
            if lacking is not None:
                self.empty.setdefault("label" if lacking == self.label_column else "text", []).append(number)
                continue
            parts = [_text(number, column, values[column]) for column in self.text_columns]
            yield Example(offset, as_text(parts), self._label(number, values[self.label_column]))
        if self.empty and not self.skip_empty:
            raise BadFileError(f"has empty cells: {self._empty_rows()}. Fill them, or set data.skip_empty=true")

    def notes(self) -> list[str]:
        """What was repaired, in words."""
        notes = []
        if self.stripped_labels:
            notes.append(f"{self.name}: blanks around the labels of {self.stripped_labels} rows were removed")
        if self.empty:
            notes.append(f"{self.name}: rows with empty cells were skipped: {self._empty_rows()}")
        return notes

    def _label(self, number: int, value: object) -> str:
        label = _label(number, self.label_column, value)
        self.stripped_labels += label != label.strip()
        return label.strip()

    def _empty_rows(self) -> str:
        parts = []
        for lacking, numbers in self.empty.items():
            more = f" and {len(numbers) - _MAX_NUMBERS} more" if len(numbers) > _MAX_NUMBERS else ""
            listed = ", ".join(map(str, numbers[:_MAX_NUMBERS])) + more
            have, units = ("have", f"{self.unit}s") if len(numbers) > 1 else ("has", self.unit)
            parts.append(f"{len(numbers)} of {self.n_rows} rows {have} no {lacking}: {units} {listed}")
        return "; ".join(parts)


def _is_empty(value: object) -> bool:
    """Nothing, blanks, or pandas' NaN for nothing."""
    return (
        value is None
        or (isinstance(value, str) and not value.strip())
        or (isinstance(value, float) and math.isnan(value))
    )


def _text(number: int, column: str, value: object) -> str:
    if not isinstance(value, str) or not _is_unicode(value):
        raise BadRowError(number, f"has {preview(value)} as {column!r}: expected a text")
    return value


def _label(number: int, column: str, value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas writes whole numbers so if one of the column was missing
    if not isinstance(value, str | int) or not _is_unicode(str(value)):
        raise BadRowError(number, f"has {preview(value)} as {column!r}: expected a string, whole number or boolean")
    label = str(value)
    if len(label) > _MAX_LABEL_LENGTH or has_control_characters(label.strip()):
        expected = f"expected at most {_MAX_LABEL_LENGTH} characters, none of them a control character"
        raise BadRowError(number, f"has {preview(value)} as {column!r}: {expected}")
    return label


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON can spell (\\ud800) and UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
