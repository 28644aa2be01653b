"""Conversion of rows to labeled texts: checks the values, handles empty cells, strips whitespace around labels.

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
_MAX_LISTED_ROWS = 20  # in a message


class Columns(Protocol):
    """The config keys that name columns."""

    text_column: str
    text_pair_column: str | None
    label_column: str


class Example(NamedTuple):
    """One labeled text."""

    byte_offset: int  # of its row
    text: Text
    label: str


def text_columns(config: Columns) -> tuple[str, ...]:
    """The text column, or both columns of pairs."""
    return (config.text_column,) if config.text_pair_column is None else (config.text_column, config.text_pair_column)


@dataclass
class ExampleReader:
    """One pass over the rows of `name`, with a record of labels stripped and rows with empty cells."""

    name: str
    unit: str  # what row numbers count: "line" or "row"
    text_columns: tuple[str, ...]
    label_column: str
    skip_empty: bool
    n_rows: int = 0
    stripped_labels: int = 0
    empty: dict[str, list[int]] = field(default_factory=dict)  # numbers of the rows that lack a "text" or a "label"
    _names: dict[str, str] = field(default_factory=dict)  # label names read so far, by cell value

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.text_columns, self.label_column)

    def examples(self, rows: Iterable[Row]) -> Iterator[Example]:
        """The labeled texts of all rows. Raises BadRowError and, at the end, BadFileError for empty cells."""
        for number, offset, values in rows:
            self.n_rows += 1
            parts = [values[column] for column in self.text_columns]
            label = values[self.label_column]
            if is_empty(label) or any(map(is_empty, parts)):
                self.empty.setdefault("text" if any(map(is_empty, parts)) else "label", []).append(number)
                continue
            texts = [text_value(number, column, part) for column, part in zip(self.text_columns, parts, strict=True)]
            yield Example(offset, as_text(texts), self._label(number, label))
        if self.empty and not self.skip_empty:
            raise BadFileError(f"has empty cells: {self._empty_rows()}. Fill them, or set data.skip_empty=true")

    def notes(self) -> list[str]:
        """Messages about stripped labels and skipped rows."""
        notes = []
        if self.stripped_labels:
            notes.append(f"{self.name}: whitespace around the labels of {self.stripped_labels} rows was removed")
        if self.empty:
            notes.append(f"{self.name}: rows with empty cells were skipped: {self._empty_rows()}")
        return notes

    def _label(self, number: int, value: object) -> str:
        if isinstance(value, str) and value in self._names:
            label = self._names[value]
        else:
            label = label_name(number, self.label_column, value)
        if isinstance(value, str):
            self._names[value] = label
            self.stripped_labels += label != value
        return label

    def _empty_rows(self) -> str:
        parts = []
        for lacking, numbers in self.empty.items():
            more = f" and {len(numbers) - _MAX_LISTED_ROWS} more" if len(numbers) > _MAX_LISTED_ROWS else ""
            listed = ", ".join(map(str, numbers[:_MAX_LISTED_ROWS])) + more
            have, units = ("have", f"{self.unit}s") if len(numbers) > 1 else ("has", self.unit)
            parts.append(f"{len(numbers)} of {self.n_rows} rows {have} no {lacking}: {units} {listed}")
        return "; ".join(parts)


def is_empty(value: object) -> bool:
    """Whether a cell is empty, whitespace, or NaN, which pandas uses for missing values."""
    if isinstance(value, str):
        return not value or value.isspace()
    return value is None or (isinstance(value, float) and math.isnan(value))


def text_value(number: int, column: str, value: object) -> str:
    """The text in a nonempty cell. Raises BadRowError."""
    if not isinstance(value, str) or not _is_unicode(value):
        raise BadRowError(number, f"has {preview(value)} as {column!r}: expected a string")
    return value


def label_name(number: int, column: str, value: object) -> str:
    """The label name in a nonempty cell, without surrounding whitespace. Raises BadRowError."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas writes integers as floats in a column with missing values
    if not isinstance(value, str | int) or not _is_unicode(str(value)):
        raise BadRowError(number, f"has {preview(value)} as {column!r}: expected a string, integer or boolean")
    label = str(value).strip()
    if len(label) > _MAX_LABEL_LENGTH or has_control_characters(label):
        expected = f"expected at most {_MAX_LABEL_LENGTH} characters, none of them a control character"
        raise BadRowError(number, f"has {preview(value)} as {column!r}: {expected}")
    return label


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON can express (\\ud800) and UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
