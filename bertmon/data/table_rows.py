"""Rows of .csv, .tsv and .jsonl files, one by one, each with its line and byte offset.

Knows file formats; what a text and a label are is decided in text_files.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

_MAX_LINE_BYTES = 10_000_000  # bytes, and characters of a field: a model reads the first few thousand tokens at most


class Row(NamedTuple):
    """One row."""

    line: int  # of its first line, counted from 1
    byte_offset: int  # of its first byte
    values: dict[str, object]  # by column name or JSON key


class BadRowError(Exception):
    """`reason` completes the sentence "FILE, line LINE ..."."""

    def __init__(self, line: int, reason: str) -> None:
        self.line, self.reason = line, reason


def read_rows(path: Path) -> Iterator[Row]:
    """All rows. Raises BadRowError for the first malformed one, OSError if the file cannot be read."""
    with path.open("rb") as file:
        yield from READERS[path.suffix.lower()](file, None)


def rows_at(file: BinaryIO, suffix: str, byte_offsets: Iterable[int]) -> Iterator[dict[str, object]]:
    """The values of the rows at these offsets of a file that `read_rows` has read before."""
    return (row.values for row in READERS[suffix](file, byte_offsets))


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, str]]:
    """Lines from the file's position on: (number from 1, byte offset, text with its end). Skips a byte order mark."""
    offset = file.tell()
    for number, raw in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES + 1), b""), start=1):
        if len(raw) > _MAX_LINE_BYTES:
            raise BadRowError(number, f"is longer than {_MAX_LINE_BYTES} bytes")
        if b"\0" in raw:
            raise BadRowError(number, "has a NUL byte: expected text in UTF-8")
        try:
            yield number, offset, raw.decode("utf-8" if offset else "utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadRowError(number, f"is not UTF-8 ({error.reason} at byte {error.start + 1})") from None
        offset += len(raw)


def _read_table(file: BinaryIO, byte_offsets: Iterable[int] | None, delimiter: str) -> Iterator[Row]:
    fields = _fields(file, delimiter)
    header = next(fields, None)
    if header is None:
        return
    _, _, names = header
    if not names:
        raise BadRowError(1, "is empty: expected a header with column names")
    if len(set(names)) < len(names):
        raise BadRowError(1, f"names a column twice: {join_names(list(map(repr, names)))}")
    for offset in byte_offsets if byte_offsets is not None else ():
        file.seek(offset)
        fields = _fields(file, delimiter)
        yield Row(0, offset, dict(zip(names, next(fields)[2], strict=True)))
    if byte_offsets is None:
        for line, offset, row in fields:
            if row:
                if len(row) != len(names):
                    raise BadRowError(line, f"has {len(row)} fields where the header has {len(names)}")
                yield Row(line, offset, dict(zip(names, row, strict=True)))


def _fields(file: BinaryIO, delimiter: str) -> Iterator[tuple[int, int, list[str]]]:
    """Rows of a table from the file's position on: (number and byte offset of its first line, fields)."""
    lines_of_row: list[tuple[int, int]] = []

    def lines() -> Iterator[str]:
        for number, offset, line in _lines(file):
            lines_of_row.append((number, offset))
            yield line

    csv.field_size_limit(_MAX_LINE_BYTES)  # the module's default refuses documents over 128 KiB
    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            yield *lines_of_row[0], row
            lines_of_row.clear()
    except csv.Error as error:
        raise BadRowError(rows.line_num, f"is malformed: {error}") from None


def _read_jsonl(file: BinaryIO, byte_offsets: Iterable[int] | None) -> Iterator[Row]:
    for offset in byte_offsets if byte_offsets is not None else ():
        file.seek(offset)
        yield _object(*next(_lines(file)))
    if byte_offsets is None:
        for number, offset, line in _lines(file):
            if line.strip():
                yield _object(number, offset, line)


def _object(number: int, offset: int, line: str) -> Row:
    try:
        values = json.loads(line, object_pairs_hook=_reject_duplicate_keys)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or an integer of thousands of digits
        raise BadRowError(number, f"is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise BadRowError(number, f"is {preview(values)}: expected an object")
    return Row(number, offset, values)


def _reject_duplicate_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("it has a key twice")
    return values


READERS: dict[str, Callable[[BinaryIO, Iterable[int] | None], Iterator[Row]]] = {
    ".csv": lambda file, offsets: _read_table(file, offsets, ","),
    ".tsv": lambda file, offsets: _read_table(file, offsets, "\t"),
    ".jsonl": _read_jsonl,
}


def preview(value: object) -> str:
    """The value as JSON, for a message."""
    text = json.dumps(value, ensure_ascii=True, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def join_names(names: Sequence[str]) -> str:
    """The names, for a message."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(name if len(name) <= 60 else f"{name[:57]}..." for name in names[:10]) + more
