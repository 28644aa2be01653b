"""Your own texts: .csv, .tsv and .jsonl files, read row by row; a bad row is named by file and line."""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bertmon.config import FilesConfig, InputError
from bertmon.data.corpus import Corpus, Split


def read(config: FilesConfig) -> Corpus:
    """The texts of data.train and data.test. Every error names the key, the file and, where there is one, the line."""
    train_texts, train_labels = _read_file("data.train", config.train, config)
    test_texts, test_labels = _read_file("data.test", config.test, config)
    names = sorted(set(train_labels), key=lambda name: (int(name), name) if _is_number(name) else (sys.maxsize, name))
    if len(names) < 2:
        raise InputError(f"data.train: {config.train} has the one label {names[0]}: at least two are needed.")
    unknown = sorted(set(test_labels) - set(names))
    if unknown:
        raise InputError(
            f"data.test: {config.test} has the label {unknown[0]}, which {config.train} lacks. "
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
    path = Path(name).expanduser()
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{key}={name} is not possible: give a file that ends in {', '.join(_READERS)}.")
    if not path.is_file():
        raise InputError(f"{key}={name}: there is no such file in {Path.cwd()}.")
    texts, labels = [], []
    try:
        for line, row in reader(path):
            for column in (config.text_column, config.label_column):
                if column not in row:
                    raise _BadRowError(line, f"has no {column!r}; it has {_shortened(list(map(repr, row)))}")
            texts.append(_text(line, config.text_column, row[config.text_column]))
            labels.append(_label(line, config.label_column, row[config.label_column]))
    except _BadRowError as bad:
        raise InputError(f"{key}: {name}, line {bad.line} {bad.reason}.") from None
    except OSError as error:
        raise InputError(f"{key}: {name} cannot be read: {error.strerror}.") from None
    if not texts:
        raise InputError(f"{key}: {name} holds no texts.")
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
    return str(value)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, ends kept; a byte order mark is skipped."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _BadRowError(number, f"is not UTF-8 ({error.reason} at byte {error.start + 1})") from None


def _rows_of_table(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, object]]]:
    csv.field_size_limit(sys.maxsize)  # the module's default cuts documents off at 128 KiB
    rows = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    try:
        header = next(rows, None)
        if header is None:
            return
        if not header:
            raise _BadRowError(1, "is empty: a header with column names is needed")
        if len(set(header)) < len(header):
            raise _BadRowError(1, f"names a column twice: {_shortened(header)}")
        first_line = rows.line_num + 1  # of a row, which may span several lines
        for row in rows:
            if row:
                if len(row) != len(header):
                    raise _BadRowError(first_line, f"has {len(row)} fields where the header has {len(header)}")
                yield first_line, dict(zip(header, row, strict=True))
            first_line = rows.line_num + 1
    except csv.Error as error:
        raise _BadRowError(rows.line_num, f"is not well-formed: {error}") from None


def _rows_of_jsonl(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: no JSON, or an integer of thousands of digits
            raise _BadRowError(number, f"is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise _BadRowError(number, f"holds {_quoted(row)}: an object is needed")
        yield number, row


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
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
