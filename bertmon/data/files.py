"""Your own texts: .csv, .tsv and .jsonl files, read row by row; a bad row is named by file and line."""

import csv
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bertmon import terminal
from bertmon.config import FilesConfig, InputError
from bertmon.data.corpus import Corpus, Split

_LONGEST_LINE = 10_000_000  # bytes, and characters of a field: a model reads the first few thousand
_LONGEST_LABEL = 1000  # characters; beyond that it is a text


def read(config: FilesConfig) -> Corpus:
    """The texts of data.train and data.test. Every error names the key, the file and, where there is one, the line."""
    train_texts, train_labels = _read_file("data.train", config.train, config)
    test_texts, test_labels = _read_file("data.test", config.test, config)
    names = sorted(set(train_labels), key=lambda name: (int(name), name) if _is_number(name) else (sys.maxsize, name))
    if len(names) < 2:
        raise InputError(
            f"data.train: {terminal.line(config.train)} has the one label {_shortened(names)}: at least two are needed."
        )
    unknown = sorted(set(test_labels) - set(names))
    if unknown:
        raise InputError(
            f"data.test: {terminal.line(config.test)} has the label {_shortened(unknown[:1])}, "
            f"which {terminal.line(config.train)} lacks. "
            f"Known are {_shortened(names)}."
        )
    index = {name: label for label, name in enumerate(names)}
    return Corpus(
        Split(train_texts, [index[name] for name in train_labels]),
        Split(test_texts, [index[name] for name in test_labels]),
        tuple(names),
    )


def _read_file(key: str, name: str, config: FilesConfig) -> tuple[list[str], list[str]]:
    """Texts [N] and label names [N] of one file. Every error names the key, the file and the line."""
    path, shown = Path(os.path.expanduser(name)), terminal.line(name)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{key}={shown} is not possible: give a file that ends in {', '.join(_READERS)}.")
    if not os.path.isfile(path):
        why = "that is no file" if os.path.exists(path) else f"there is no such file in {Path.cwd()}"
        raise InputError(f"{key}={shown}: {why}.")
    texts, labels = [], []
    try:
        for line, row in reader(path):
            for column in (config.text_column, config.label_column):
                if column not in row:
                    raise _BadRowError(line, f"has no {column!r}; it has {_shortened(list(map(repr, row)))}")
            texts.append(_text(line, config.text_column, row[config.text_column]))
            labels.append(_label(line, config.label_column, row[config.label_column]))
    except _BadRowError as bad:
        raise InputError(f"{key}: {shown}, line {bad.line} {bad.reason}.") from None
    except OSError as error:
        raise InputError(f"{key}: {shown} cannot be read: {error.strerror}.") from None
    if not texts:
        raise InputError(f"{key}: {shown} holds no texts.")
    return texts, labels


class _BadRowError(Exception):
    """`reason` completes the sentence "FILE, line LINE ..."."""

    def __init__(self, line: int, reason: str) -> None:
        self.line, self.reason = line, reason


def _text(line: int, column: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not _is_unicode(value):
        raise _BadRowError(line, f"has {_quoted(value)} as {column!r}: a text is needed")
    return value


def _label(line: int, column: str, value: object) -> str:
    if not isinstance(value, str | int) or not str(value).strip() or not _is_unicode(str(value)):
        raise _BadRowError(line, f"has {_quoted(value)} as {column!r}: a string, whole number or boolean is needed")
    label = str(value)
    if len(label) > _LONGEST_LABEL or terminal.controls(label):
        allowed = f"at most {_LONGEST_LABEL} characters, none of them a control character, are needed"
        raise _BadRowError(line, f"has {_quoted(value)} as {column!r}: {allowed}")
    return label


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, ends kept; a byte order mark is skipped."""
    with path.open("rb") as file:
        for number, raw in enumerate(iter(lambda: file.readline(_LONGEST_LINE + 1), b""), start=1):
            if len(raw) > _LONGEST_LINE:
                raise _BadRowError(number, f"has more than {_LONGEST_LINE} bytes")
            if b"\0" in raw:
                raise _BadRowError(number, "has a NUL byte: text in UTF-8 is needed")
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _BadRowError(number, f"is not UTF-8 ({error.reason} at byte {error.start + 1})") from None


def _rows_of_table(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, object]]]:
    csv.field_size_limit(_LONGEST_LINE)  # the module's default cuts documents off at 128 KiB
    rows = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    try:
        header = next(rows, None)
        if header is None:
            return
        if not header:
            raise _BadRowError(1, "is empty: a header with column names is needed")
        if len(set(header)) < len(header):
            raise _BadRowError(1, f"names a column twice: {_shortened(list(map(repr, header)))}")
        first_line = rows.line_num + 1  # of a row, which may span several lines
        for row in rows:
            if row:
                if len(row) != len(header):
                    raise _BadRowError(first_line, f"has {len(row)} fields where the header has {len(header)}")
                yield first_line, dict(zip(header, row, strict=True))
            first_line = rows.line_num + 1
    except csv.Error as error:
        raise _BadRowError(rows.line_num, f"is not well-formed: {terminal.line(error)}") from None


def _rows_of_jsonl(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_without_twins)
        except (ValueError, RecursionError) as error:  # ValueError: no JSON, or an integer of thousands of digits
            raise _BadRowError(number, f"is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise _BadRowError(number, f"holds {_quoted(row)}: an object is needed")
        yield number, row


def _without_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, dict[str, object]]]]] = {
    ".csv": lambda path: _rows_of_table(path, ","),
    ".tsv": lambda path: _rows_of_table(path, "\t"),
    ".jsonl": _rows_of_jsonl,
}


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON can spell (\\ud800) and nothing can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_number(name: str) -> bool:
    return re.fullmatch(r"-?[0-9]{1,15}", name) is not None


def _quoted(value: object) -> str:
    text = json.dumps(value, ensure_ascii=True, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(terminal.line(name, 60) for name in names[:10]) + (
        f" and {len(names) - 10} more" if len(names) > 10 else ""
    )
