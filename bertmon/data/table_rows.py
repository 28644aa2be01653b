"""Rows of .csv, .tsv, .jsonl, .json and .parquet files, one by one, each with its number and byte offset.

Handles file formats, encodings and compression; examples interprets the values as texts and labels.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from bertmon.config import DELIMITERS
from bertmon.errors import InputError

_MAX_LINE_BYTES = 10_000_000  # and characters of a field: a model reads the first few thousand tokens at most
_MAX_BYTES_IN_MEMORY = 2_000_000_000  # of a file that must be decompressed or re-encoded in memory
_HEAD_BYTES = 1_000_000
_BYTE_ORDER_MARKS = {  # the longer ones first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True, slots=True)
class TableFormat:
    """How to read a text file. None: determined by its first bytes, header and suffix."""

    delimiter: str | None = None
    """Of .csv and .tsv: a name in config.DELIMITERS or a character. None: a tab for .tsv; for .csv a comma, or the
    semicolon or tab in a header without commas."""
    encoding: str | None = None
    """None: from the byte order mark, else UTF-8."""
    quoted: bool | None = None
    """Whether fields can be enclosed in double quotes. None: true for .csv; false for .tsv, where quotes are text."""


class Row(NamedTuple):
    """One row."""

    number: int  # of its first line, or of the row in formats without lines; counted from 1
    byte_offset: int  # of its first byte, in formats with lines
    values: Mapping[str, object]  # by column name or JSON key


class BadFileError(Exception):
    """`reason` completes the sentence "FILE ..."."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class BadRowError(BadFileError):
    """`reason` completes the sentence "FILE, line NUMBER ..."; number 0: no single row."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number


class MissingColumnsError(BadRowError):
    """A row or a table header that lacks required columns."""

    def __init__(self, number: int, missing: list[str], names: list[str], hint: str = "") -> None:
        super().__init__(
            number, f"has no {' and no '.join(map(repr, missing))}; it has {join_names(names, repr)}{hint}"
        )
        self.missing, self.names = missing, names


@contextmanager
def located_errors(
    where: str, unit: str, hint: Callable[[MissingColumnsError], str], *, reword: Callable[[str], str] = str
) -> Iterator[None]:
    """Turn errors of the body in a file or one of its rows into an InputError with their location.

    where: key and file. unit: of row numbers. hint: advice on missing columns, as a sentence after a space, or an empty
    string. reword: rewords a reason.
    """
    try:
        yield
    except BadRowError as bad:
        advice = hint(bad) if isinstance(bad, MissingColumnsError) else ""
        row = f", {unit} {bad.number}" if bad.number else ""
        raise InputError(f"{where}{row} {reword(bad.reason)}.{advice}") from None
    except BadFileError as bad:
        raise InputError(f"{where} {reword(bad.reason)}.") from None
    except OSError as error:
        raise InputError(f"{where} could not be read: {error.strerror or error}.") from None


def suffix_of(path: Path) -> str:
    """The suffix that determines the format: ".csv" for train.CSV and for train.csv.gz."""
    return Path(path.stem if _is_gzip(path) else path.name).suffix.lower()


def row_unit(path: Path) -> str:
    """What row numbers count in messages: "line" or "row"."""
    return "row" if suffix_of(path) in (".json", ".parquet") else "line"


def read_rows(
    path: Path, columns: Collection[str], table_format: TableFormat, *, optional: Collection[str] = ()
) -> Iterator[Row]:
    """All rows; their values include `columns`, and those of the `optional` columns that the file has.

    Raises BadRowError for the first row that is malformed or lacks one of the columns, BadFileError if the file as a
    whole does not have its format, OSError if it cannot be read.
    """
    if suffix_of(path) == ".parquet":
        yield from _read_parquet(path, columns, optional)
        return
    with _open_utf8(path, table_format.encoding) as file:
        yield from _READERS[suffix_of(path)](file, columns, table_format, None)


def has_stable_offsets(path: Path, table_format: TableFormat) -> bool:
    """Whether `rows_at` can read single rows, which requires a plain UTF-8 file with lines."""
    if suffix_of(path) not in (".csv", ".tsv", ".jsonl"):
        return False
    with _open_utf8(path, table_format.encoding) as file:
        return not isinstance(file, io.BytesIO)


def rows_at(
    file: BinaryIO, path: Path, columns: Collection[str], table_format: TableFormat, byte_offsets: Iterable[int]
) -> Iterator[Mapping[str, object]]:
    """The values of the rows at these offsets, which come from `read_rows`, in the open file `path`."""
    return (row.values for row in _READERS[suffix_of(path)](file, columns, table_format, byte_offsets))


def _is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _open_utf8(path: Path, encoding: str | None) -> BinaryIO:
    """The file as UTF-8 with line feeds at line ends: the file itself, or a converted copy in memory."""
    file = cast(BinaryIO, gzip.GzipFile(path)) if _is_gzip(path) else path.open("rb")
    try:
        head = file.read(_HEAD_BYTES)
        encoding = encoding or next((name for mark, name in _BYTE_ORDER_MARKS.items() if head.startswith(mark)), None)
        is_utf8 = encoding is None or codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
        old_mac = b"\r" in head and b"\n" not in head
        if is_utf8 and not old_mac and not _is_gzip(path):
            file.seek(0)
            return file
        content = head + file.read(_MAX_BYTES_IN_MEMORY)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        file.close()
        raise BadFileError(f"is not a complete gzip file ({error})") from None
    except BaseException:
        file.close()
        raise
    file.close()
    if len(content) > _MAX_BYTES_IN_MEMORY:
        raise BadFileError(
            f"takes more than {_MAX_BYTES_IN_MEMORY / 1e9:.0f} GB of memory: expected UTF-8, not compressed"
        )
    if not is_utf8:
        content = _decode(content, str(encoding)).encode("utf-8", "surrogatepass")
    return io.BytesIO(content.replace(b"\r", b"\n") if b"\n" not in content else content)


def _decode(content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadRowError(line, f"is not {encoding} ({error.reason} at byte {error.start} of the file)") from None


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, str]]:
    """Lines from the current position: (number from 1, byte offset, text with line end). Skips a byte order mark."""
    offset = file.tell()
    for number, raw in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES + 1), b""), start=1):
        if len(raw) > _MAX_LINE_BYTES:
            raise BadRowError(number, f"is longer than {_MAX_LINE_BYTES} bytes")
        if b"\0" in raw:
            raise BadRowError(number, "has a NUL byte: expected text in UTF-8; set data.encoding if it is in another")
        try:
            yield number, offset, raw.decode("utf-8" if offset else "utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadRowError(
                number,
                f"is not UTF-8 ({error.reason} at byte {error.start + 1}): set data.encoding, "
                "such as cp1252 for a file saved by a spreadsheet on Windows",
            ) from None
        offset += len(raw)


def _read_table(
    file: BinaryIO,
    columns: Collection[str],
    table_format: TableFormat,
    byte_offsets: Iterable[int] | None,
    *,
    tabs: bool,
) -> Iterator[Row]:
    quoted = not tabs if table_format.quoted is None else table_format.quoted
    declared = table_format.delimiter
    delimiter = DELIMITERS.get(declared, declared) if declared else "\t" if tabs else _sniff_delimiter(file)
    read_fields = _quoted_fields if quoted else _plain_fields
    rows = read_fields(file, delimiter)
    header = next(rows, None)
    if header is None:
        return
    names = [name.strip() for name in header[2]]
    _check_header(names, columns, delimiter)
    if byte_offsets is not None:
        for offset in byte_offsets:
            file.seek(offset)
            yield Row(0, offset, dict(zip(names, next(read_fields(file, delimiter))[2], strict=True)))
        return
    for number, offset, fields in rows:
        if fields:
            if len(fields) != len(names):
                raise BadRowError(number, _wrong_length(fields, names, quoted=quoted))
            yield Row(number, offset, dict(zip(names, fields, strict=True)))


def _check_header(names: list[str], columns: Collection[str], delimiter: str) -> None:
    if not any(names):
        raise BadRowError(1, "is empty: expected a header with column names")
    if missing := [column for column in columns if column not in names]:
        other = next((name for name, char in DELIMITERS.items() if char != delimiter and char in names[0]), None)
        hint = f". Set data.delimiter={other} if that separates the columns" if other and len(names) == 1 else ""
        raise MissingColumnsError(1, missing, [name for name in names if name], hint)
    for column in columns:
        if names.count(column) > 1:
            raise BadRowError(1, f"has the column {column!r} twice")


def _wrong_length(fields: list[str], names: list[str], *, quoted: bool) -> str:
    reason = f"has {len(fields)} fields where the header has {len(names)}"
    if not quoted and any(field.startswith('"') for field in fields):
        reason += ". Set data.quoted=true if quotes enclose fields that hold tabs or line ends"
    return reason


def _sniff_delimiter(file: BinaryIO) -> str:
    """A comma, or the semicolon or tab in a header without commas outside quotes."""
    position = file.tell()
    header = re.sub(rb'"[^"]*"', b"", file.readline(_MAX_LINE_BYTES))
    file.seek(position)
    return next((char.decode() for char in (b",", b";", b"\t") if char in header), ",")


def _quoted_fields(file: BinaryIO, delimiter: str) -> Iterator[tuple[int, int, list[str]]]:
    """Rows of a table from the current position: (number and byte offset of the first line, fields)."""
    lines_of_row: list[tuple[int, int]] = []

    def lines() -> Iterator[str]:
        for number, offset, line in _lines(file):
            lines_of_row.append((number, offset))
            yield line

    csv.field_size_limit(_MAX_LINE_BYTES)  # the module's default rejects fields over 128 KiB
    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            yield *lines_of_row[0], row
            lines_of_row.clear()
    except csv.Error as error:
        carriage_return = "new-line character seen in unquoted field" in str(error)
        reason = "has a carriage return in an unquoted field: quote it" if carriage_return else f"is malformed: {error}"
        raise BadRowError(lines_of_row[0][0] if lines_of_row else rows.line_num, reason) from None


def _plain_fields(file: BinaryIO, delimiter: str) -> Iterator[tuple[int, int, list[str]]]:
    """Like _quoted_fields, but with one row per line and without special treatment of quotes."""
    for number, offset, line in _lines(file):
        content = line.rstrip("\r\n")
        yield number, offset, content.split(delimiter) if content else []


def _read_jsonl(
    file: BinaryIO, columns: Collection[str], table_format: TableFormat, byte_offsets: Iterable[int] | None
) -> Iterator[Row]:
    if byte_offsets is not None:
        for offset in byte_offsets:
            file.seek(offset)
            _, _, line = next(_lines(file))
            yield _json_row(0, offset, _parse_json(0, line), columns)
        return
    for number, offset, line in _lines(file):
        if line.strip():
            yield _json_row(number, offset, _parse_json(number, line), columns)


def _read_json(
    file: BinaryIO, columns: Collection[str], table_format: TableFormat, byte_offsets: Iterable[int] | None
) -> Iterator[Row]:
    assert byte_offsets is None
    content = file.read(_MAX_BYTES_IN_MEMORY + 1)
    if len(content) > _MAX_BYTES_IN_MEMORY:
        raise BadFileError(f"takes more than {_MAX_BYTES_IN_MEMORY / 1e9:.0f} GB: expected .jsonl, one object per line")
    try:
        rows = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_reject_duplicate_keys)
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"is not JSON ({error})") from None
    if not isinstance(rows, list):
        raise BadFileError(f"is {preview(rows)}: expected an array of objects; one object per line is .jsonl")
    for number, values in enumerate(rows, start=1):
        yield _json_row(number, 0, values, columns)


def _parse_json(number: int, line: str) -> object:
    try:
        return json.loads(line, object_pairs_hook=_reject_duplicate_keys)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or an integer of thousands of digits
        raise BadRowError(number, f"is not JSON ({error})") from None


def _json_row(number: int, offset: int, values: object, columns: Collection[str]) -> Row:
    if not isinstance(values, dict):
        raise BadRowError(number, f"is {preview(values)}: expected an object")
    if missing := [column for column in columns if column not in values]:
        raise MissingColumnsError(number, missing, list(values))
    return Row(number, offset, values)


def _reject_duplicate_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("it has a key twice")
    return values


def _read_parquet(path: Path, columns: Collection[str], optional: Collection[str]) -> Iterator[Row]:
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ImportError:
        raise BadFileError("needs pyarrow: pip install 'bertmon[datasets]'") from None
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := [column for column in columns if column not in names]:
                raise MissingColumnsError(1, missing, names)
            number = 0
            selected = [name for name in names if name in (*columns, *optional)]
            for batch in file.iter_batches(batch_size=1000, columns=selected):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(number, 0, values)
    except pa.ArrowException as error:
        raise BadFileError(f"is not a parquet file that can be read ({str(error).splitlines()[0]})") from None


_Reader = Callable[[BinaryIO, Collection[str], TableFormat, Iterable[int] | None], Iterator[Row]]
_READERS: dict[str, _Reader] = {
    ".csv": lambda *arguments: _read_table(*arguments, tabs=False),
    ".tsv": lambda *arguments: _read_table(*arguments, tabs=True),
    ".jsonl": _read_jsonl,
    ".json": _read_json,
}
SUFFIXES = (*_READERS, ".parquet")
"""Suffixes of the files that `read_rows` reads. All except .parquet can be gzipped (.gz)."""


def is_readable(path: Path) -> bool:
    """Whether the file has a supported suffix."""
    return suffix_of(path) in (_READERS if _is_gzip(path) else SUFFIXES)


def preview(value: object) -> str:
    """The value as JSON, for a message."""
    text = json.dumps(value, ensure_ascii=True, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def join_names(names: Sequence[str], format_name: Callable[[str], str] = str) -> str:
    """The names, for a message: at most ten, each cut to 60 characters."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    formatted = map(format_name, names[:10])
    return ", ".join(name if len(name) <= 60 else f"{name[:57]}..." for name in formatted) + more
