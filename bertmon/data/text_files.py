"""Your own texts in .csv, .tsv or .jsonl files: checks each row and names a bad one by file and line.

Texts of large files are not loaded: LazyTexts reads them on demand. Formats are in table_rows.
Shapes: N texts of a file.
"""

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

from bertmon.config import FilesConfig
from bertmon.data import table_rows
from bertmon.data.corpus import Corpus, Split, TextSequence
from bertmon.data.table_rows import BadRowError, join_names, preview
from bertmon.errors import InputError, require
from bertmon.sanitize import has_control_characters
from bertmon.storage import ContentHash, cached_bytes, content_hash

_LAZY_BYTES = 32_000_000  # texts of a file of this size or larger are read on demand
_MAX_LABEL_LENGTH = 1000  # characters; anything longer is a text


class LazyTexts:
    """The texts [N] of a file, read on demand: only their byte offsets are in memory.

    Raises InputError if the file has changed or can no longer be read.
    """

    def __init__(
        self, path: Path, column: str, file_stamp: str, byte_offsets: npt.NDArray[np.int64], digest: str
    ) -> None:
        self._path = path
        self._column = column
        self._file_stamp = file_stamp
        self._byte_offsets = byte_offsets
        self.digest = digest
        """The content_hash of all texts."""

    def __len__(self) -> int:
        return len(self._byte_offsets)

    def __iter__(self) -> Iterator[str]:
        return self.take(range(len(self)))

    def __getitem__(self, index: int, /) -> str:
        return next(self.take([index]))

    def take(self, indices: Iterable[int]) -> Iterator[str]:
        """The texts at these indices, in their order."""
        try:
            with self._path.open("rb") as file:
                if _file_stamp(os.fstat(file.fileno())) != self._file_stamp:
                    raise InputError(f"{self._path} has changed since training began.")
                byte_offsets = (int(self._byte_offsets[index]) for index in indices)
                for values in table_rows.rows_at(file, self._path.suffix.lower(), byte_offsets):
                    yield str(values[self._column])
        except OSError as error:
            raise InputError(f"could not read {self._path}: {error.strerror}.") from None


class _File(NamedTuple):
    """Content of one file."""

    texts: TextSequence  # [N]
    label_names: list[str]
    labels: npt.NDArray[np.int64]  # [N], indices into label_names


def read(config: FilesConfig, cache: Path) -> Corpus:
    """The texts of data.train and data.test. Errors name the key, the file and, if there is one, the line."""
    train = _read_file("data.train", config.train, config, cache)
    test = _read_file("data.test", config.test, config, cache)
    names = sorted(train.label_names, key=_label_order)
    if len(names) < 2:
        raise InputError(f"data.train: expected at least two labels, got {join_names(names)} alone in {config.train}.")
    unknown = sorted(set(test.label_names) - set(names))
    if unknown:
        raise InputError(
            f"data.test: expected the labels of {config.train} ({join_names(names)}), "
            f"got {join_names(unknown)} in {config.test}."
        )
    return Corpus(_split(train, names), _split(test, names), tuple(names))


def _split(file: _File, label_names: list[str]) -> Split:
    index = {name: label for label, name in enumerate(label_names)}
    return Split(file.texts, np.array([index[name] for name in file.label_names])[file.labels].tolist())


def _label_order(name: str) -> tuple[int, str]:
    """Numbers by value, before names by alphabet."""
    is_number = re.fullmatch(r"-?[0-9]{1,15}", name) is not None
    return (int(name) if is_number else sys.maxsize, name)


def _read_file(key: str, name: str, config: FilesConfig, cache: Path) -> _File:
    path = Path(os.path.expanduser(name))
    suffixes = ", ".join(table_rows.READERS)
    require(path.suffix.lower() in table_rows.READERS, key, name, f"a file that ends in {suffixes}")
    require(os.path.exists(path), key, name, f"an existing file (in {Path.cwd()})")
    require(os.path.isfile(path), key, name, "a file")
    try:
        file = _indexed(path, config, cache) if path.stat().st_size >= _LAZY_BYTES else _in_memory(path, config)
    except BadRowError as bad:
        raise InputError(f"{key}: {name}, line {bad.line} {bad.reason}.") from None
    except OSError as error:
        raise InputError(f"{key}: could not read {name}: {error.strerror}.") from None
    require(len(file.texts) > 0, key, f"{name} without any", "a file with texts")
    return file


def _in_memory(path: Path, config: FilesConfig) -> _File:
    texts, labels, index = [], [], _LabelIndex()
    for _, text, label in _examples(path, config):
        texts.append(text)
        labels.append(index[label])
    return _File(texts, list(index), np.array(labels, dtype=np.int64))


def _indexed(path: Path, config: FilesConfig, cache: Path) -> _File:
    """Read the whole file once; the offsets stay in the cache for as long as the file does not change."""
    stamp = _file_stamp(path.stat())
    columns = (config.text_column, config.label_column)
    key = content_hash("2", str(path.resolve()), stamp, *columns)  # increase the number when the pass below changes

    def scan() -> bytes:
        byte_offsets, labels, index, content = [], [], _LabelIndex(), ContentHash()
        for offset, text, label in _examples(path, config):
            byte_offsets.append(offset)
            labels.append(index[label])
            content.add(text)
        file = io.BytesIO()
        np.savez(
            file,
            byte_offsets=np.array(byte_offsets, np.int64),
            labels=np.array(labels, np.int64),
            metadata=np.array(json.dumps({"label_names": list(index), "digest": content.hex()})),
        )
        return file.getvalue()

    with np.load(io.BytesIO(cached_bytes(cache, f"rows-{key[:32]}.npz", scan)), allow_pickle=False) as stored:
        metadata = json.loads(str(stored["metadata"]))
        texts = LazyTexts(path, config.text_column, stamp, stored["byte_offsets"], metadata["digest"])
        return _File(texts, metadata["label_names"], stored["labels"])


def _file_stamp(stat: os.stat_result) -> str:
    """Size and modification time: differs once the file has changed."""
    return f"{stat.st_size} {stat.st_mtime_ns}"


class _LabelIndex(dict[str, int]):
    """Numbers label names in the order of their first use."""

    def __missing__(self, name: str) -> int:
        return self.setdefault(name, len(self))


def _examples(path: Path, config: FilesConfig) -> Iterator[tuple[int, str, str]]:
    """(byte offset, text, label) of each row. Raises BadRowError."""
    for line, offset, values in table_rows.read_rows(path):
        for column in (config.text_column, config.label_column):
            if column not in values:
                raise BadRowError(line, f"has no {column!r}; it has {join_names(list(map(repr, values)))}")
        text = _text(line, config.text_column, values[config.text_column])
        yield offset, text, _label(line, config.label_column, values[config.label_column])


def _text(line: int, column: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not _is_unicode(value):
        raise BadRowError(line, f"has {preview(value)} as {column!r}: expected a text")
    return value


def _label(line: int, column: str, value: object) -> str:
    if not isinstance(value, str | int) or not str(value).strip() or not _is_unicode(str(value)):
        raise BadRowError(line, f"has {preview(value)} as {column!r}: expected a string, whole number or boolean")
    label = str(value)
    if len(label) > _MAX_LABEL_LENGTH or has_control_characters(label):
        expected = f"expected at most {_MAX_LABEL_LENGTH} characters, none of them a control character"
        raise BadRowError(line, f"has {preview(value)} as {column!r}: {expected}")
    return label


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON can spell (\\ud800) and UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
