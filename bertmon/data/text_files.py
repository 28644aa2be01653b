"""Your own texts: .csv, .tsv and .jsonl files; a bad row is named by file and line. Texts of large files stay there."""

import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bertmon import sanitize
from bertmon.config import FilesConfig
from bertmon.data import table_rows
from bertmon.data.corpus import Corpus, Split, TextSequence
from bertmon.data.table_rows import BadRowError, join_names, preview
from bertmon.errors import InputError
from bertmon.storage import ContentHash, cached_bytes, content_hash

_LARGE = 32_000_000  # bytes of a file from which on its texts stay there
_LONGEST_LABEL = 1000  # characters; beyond that it is a text


class LazyTexts:
    """The texts [N] of a file, each read again when it is asked for: in memory are only the bytes they begin at.

    Raises InputError where the file cannot be read any more, or is not what it was.
    """

    def __init__(self, path: Path, column: str, state: str, places: npt.NDArray[np.int64], digest: str) -> None:
        self._path = path
        self._column = column
        self._state = state
        self._places = places
        self.digest = digest
        """What cache.digest gives for all of them."""

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return self.take(range(len(self)))

    def __getitem__(self, index: int, /) -> str:
        return next(self.take([index]))

    def take(self, indices: Iterable[int]) -> Iterator[str]:
        """The texts at these indices, in their order."""
        try:
            with self._path.open("rb") as file:
                if _file_stamp(os.fstat(file.fileno())) != self._state:
                    raise InputError(f"{sanitize.sanitize_line(self._path)} has been changed while it was trained on.")
                places = (int(self._places[index]) for index in indices)
                for values in table_rows.rows_at(file, self._path.suffix.lower(), places):
                    yield str(values[self._column])
        except OSError as error:
            raise InputError(f"{sanitize.sanitize_line(self._path)} cannot be read: {error.strerror}.") from None


class _File(NamedTuple):
    """What one file holds: N texts, and of each the number of its label's name."""

    texts: TextSequence
    names: list[str]
    labels: npt.NDArray[np.int64]  # [N], into names


def read(config: FilesConfig, cache: Path) -> Corpus:
    """The texts of data.train and data.test. Every error names the key, the file and, where there is one, the line."""
    train = _read_file("data.train", config.train, config, cache)
    test = _read_file("data.test", config.test, config, cache)
    names = sorted(train.names, key=lambda name: (int(name), name) if _is_number(name) else (sys.maxsize, name))
    if len(names) < 2:
        raise InputError(
            f"data.train: {sanitize.sanitize_line(config.train)} has the one label {join_names(names)}: at least two are needed."
        )
    unknown = sorted(set(test.names) - set(names))
    if unknown:
        raise InputError(
            f"data.test: {sanitize.sanitize_line(config.test)} has the label {join_names(unknown[:1])}, "
            f"which {sanitize.sanitize_line(config.train)} lacks. "
            f"Known are {join_names(names)}."
        )
    index = {name: label for label, name in enumerate(names)}

    def split(file: _File) -> Split:
        return Split(file.texts, np.array([index[name] for name in file.names])[file.labels].tolist())

    return Corpus(split(train), split(test), tuple(names))


def _read_file(key: str, name: str, config: FilesConfig, cache: Path) -> _File:
    """Every error names the key, the file and the line."""
    path, shown = Path(os.path.expanduser(name)), sanitize.sanitize_line(name)
    if path.suffix.lower() not in table_rows.READERS:
        raise InputError(f"{key}={shown} is not possible: give a file that ends in {', '.join(table_rows.READERS)}.")
    if not os.path.isfile(path):
        why = "that is no file" if os.path.exists(path) else f"there is no such file in {Path.cwd()}"
        raise InputError(f"{key}={shown}: {why}.")
    try:
        found = _indexed(path, config, cache) if path.stat().st_size >= _LARGE else _in_memory(path, config)
    except BadRowError as bad:
        raise InputError(f"{key}: {shown}, line {bad.line} {bad.reason}.") from None
    except OSError as error:
        raise InputError(f"{key}: {shown} cannot be read: {error.strerror}.") from None
    if not len(found.texts):
        raise InputError(f"{key}: {shown} holds no texts.")
    return found


def _in_memory(path: Path, config: FilesConfig) -> _File:
    texts, labels, numbers = [], [], _LabelIndex()
    for _, text, label in _examples(path, config):
        texts.append(text)
        labels.append(numbers[label])
    return _File(texts, list(numbers), np.array(labels, dtype=np.int64))


def _indexed(path: Path, config: FilesConfig, cache: Path) -> _File:
    """A pass over the whole file, whose result stays in the cache for as long as the file is not changed."""
    state = _file_stamp(path.stat())
    columns = (config.text_column, config.label_column)
    key = content_hash("1", str(path.resolve()), state, *columns)  # raise the number when the pass below changes

    def scan() -> bytes:
        places, labels, numbers, content = [], [], _LabelIndex(), ContentHash()
        for place, text, label in _examples(path, config):
            places.append(place)
            labels.append(numbers[label])
            content.add(text)
        told = json.dumps({"names": list(numbers), "digest": content.hex()})
        file = io.BytesIO()
        np.savez(file, places=np.array(places, np.int64), labels=np.array(labels, np.int64), told=np.array(told))
        return file.getvalue()

    with np.load(io.BytesIO(cached_bytes(cache, f"rows-{key[:32]}.npz", scan)), allow_pickle=False) as stored:
        told = json.loads(str(stored["told"]))
        texts = LazyTexts(path, config.text_column, state, stored["places"], told["digest"])
        return _File(texts, told["names"], stored["labels"])


def _file_stamp(stat: os.stat_result) -> str:
    """Another one when the file is changed."""
    return f"{stat.st_size} {stat.st_mtime_ns}"


class _LabelIndex(dict[str, int]):
    """Numbers names in the order in which they come."""

    def __missing__(self, name: str) -> int:
        return self.setdefault(name, len(self))


def _examples(path: Path, config: FilesConfig) -> Iterator[tuple[int, str, str]]:
    """Of each row the byte it begins at, its text and its label. Raises BadRowError."""
    for line, place, values in table_rows.read_rows(path):
        for column in (config.text_column, config.label_column):
            if column not in values:
                raise BadRowError(line, f"has no {column!r}; it has {join_names(list(map(repr, values)))}")
        text = _text(line, config.text_column, values[config.text_column])
        yield place, text, _label(line, config.label_column, values[config.label_column])


def _text(line: int, column: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not _is_unicode(value):
        raise BadRowError(line, f"has {preview(value)} as {column!r}: a text is needed")
    return value


def _label(line: int, column: str, value: object) -> str:
    if not isinstance(value, str | int) or not str(value).strip() or not _is_unicode(str(value)):
        raise BadRowError(line, f"has {preview(value)} as {column!r}: a string, whole number or boolean is needed")
    label = str(value)
    if len(label) > _LONGEST_LABEL or sanitize.has_control_characters(label):
        allowed = f"at most {_LONGEST_LABEL} characters, none of them a control character, are needed"
        raise BadRowError(line, f"has {preview(value)} as {column!r}: {allowed}")
    return label


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON can spell (\\ud800) and nothing can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_number(name: str) -> bool:
    return re.fullmatch(r"-?[0-9]{1,15}", name) is not None
