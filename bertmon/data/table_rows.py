"""Rows of .csv, .tsv and .jsonl files, one by one, with the line and the byte that each begins at."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from bertmon import sanitize

_LONGEST_LINE = 10_000_000  # bytes, and characters of a field: a model reads the first few thousand


class Row(NamedTuple):
    """One row."""

    line: int  # from 1
    byte_offset: int  # byte of the file at which it begins
    values: dict[str, object]  # by column, or by JSON key


class BadRowError(Exception):
    """`reason` completes the sentence "FILE, line LINE ..."."""

    def __init__(self, line: int, reason: str) -> None:
        self.line, self.reason = line, reason


def read_rows(path: Path) -> Iterator[Row]:
    """All rows. Raises BadRowError for the first that is none, OSError where the file cannot be read."""
    with path.open("rb") as file:
        yield from READERS[path.suffix.lower()](file, None)


def rows_at(file: BinaryIO, suffix: str, places: Iterable[int]) -> Iterator[dict[str, object]]:
    """The values of the rows that begin at these bytes of a file that `read` has found well-formed."""
    return (row.values for row in READERS[suffix](file, places))


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, str]]:
    """Lines from where the file stands: numbers from 1, places, and texts with their ends. Skips a byte order mark."""
    place = file.tell()
    for number, raw in enumerate(iter(lambda: file.readline(_LONGEST_LINE + 1), b""), start=1):
        if len(raw) > _LONGEST_LINE:
            raise BadRowError(number, f"has more than {_LONGEST_LINE} bytes")
        if b"\0" in raw:
            raise BadRowError(number, "has a NUL byte: text in UTF-8 is needed")
        try:
            yield number, place, raw.decode("utf-8" if place else "utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadRowError(number, f"is not UTF-8 ({error.reason} at byte {error.start + 1})") from None
        place += len(raw)


def _read_table(file: BinaryIO, places: Iterable[int] | None, delimiter: str) -> Iterator[Row]:
    fields = _fields(file, delimiter)
    header = next(fields, None)
    if header is None:
        return
    _, _, names = header
    if not names:
        raise BadRowError(1, "is empty: a header with column names is needed")
    if len(set(names)) < len(names):
        raise BadRowError(1, f"names a column twice: {join_names(list(map(repr, names)))}")
    for place in places if places is not None else ():
        file.seek(place)
        fields = _fields(file, delimiter)
        yield Row(0, place, dict(zip(names, next(fields)[2], strict=True)))
    if places is None:
        for line, place, row in fields:
            if row:
                if len(row) != len(names):
                    raise BadRowError(line, f"has {len(row)} fields where the header has {len(names)}")
                yield Row(line, place, dict(zip(names, row, strict=True)))


def _fields(file: BinaryIO, delimiter: str) -> Iterator[tuple[int, int, list[str]]]:
    """Rows of a table from where the file stands, with the first of the lines that each spans."""
    begun: list[tuple[int, int]] = []

    def lines() -> Iterator[str]:
        for number, place, line in _lines(file):
            begun.append((number, place))
            yield line

    csv.field_size_limit(_LONGEST_LINE)  # the module's default cuts documents off at 128 KiB
    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            yield *begun[0], row
            begun.clear()
    except csv.Error as error:
        raise BadRowError(rows.line_num, f"is not well-formed: {sanitize.sanitize_line(error)}") from None


def _read_jsonl(file: BinaryIO, places: Iterable[int] | None) -> Iterator[Row]:
    for place in places if places is not None else ():
        file.seek(place)
        yield _object(*next(_lines(file)))
    if places is None:
        for number, place, line in _lines(file):
            if line.strip():
                yield _object(number, place, line)


def _object(number: int, place: int, line: str) -> Row:
    try:
        values = json.loads(line, object_pairs_hook=_reject_duplicate_keys)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or an integer of thousands of digits
        raise BadRowError(number, f"is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise BadRowError(number, f"holds {preview(values)}: an object is needed")
    return Row(number, place, values)


def _reject_duplicate_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


READERS: dict[str, Callable[[BinaryIO, Iterable[int] | None], Iterator[Row]]] = {
    ".csv": lambda file, places: _read_table(file, places, ","),
    ".tsv": lambda file, places: _read_table(file, places, "\t"),
    ".jsonl": _read_jsonl,
}


def preview(value: object) -> str:
    """The value as JSON, for a message."""
    text = json.dumps(value, ensure_ascii=True, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def join_names(names: Sequence[str]) -> str:
    """The names, for a message."""
    return ", ".join(sanitize.sanitize_line(name, 60) for name in names[:10]) + (
        f" and {len(names) - 10} more" if len(names) > 10 else ""
    )
