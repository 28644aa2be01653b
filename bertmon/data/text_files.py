"""Your own texts in files: checks every row, names bad ones by file and line, and splits one file into parts.

File formats are in table_rows. Texts of large files are not loaded but read on demand, by lazy_texts.
Shapes: N texts of a file.
"""

import io
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bertmon.config import FilesConfig
from bertmon.data import table_rows
from bertmon.data.corpus import Corpus, Split, TextSequence
from bertmon.data.lazy_texts import LazyTexts, Text, as_text, file_stamp, text_hash, text_parts
from bertmon.data.splitting import split_off, with_validation
from bertmon.data.table_rows import BadFileError, BadRowError, MissingColumnsError, TableFormat, join_names, preview
from bertmon.errors import InputError, require
from bertmon.sanitize import has_control_characters
from bertmon.storage import ContentHash, cached_bytes, content_hash

_LAZY_BYTES = 32_000_000  # texts of a file of this size or larger are read on demand
_MAX_LABEL_LENGTH = 1000  # characters; anything longer is a text
_SHOWN_LINES = 20
_USUAL_NAMES = {  # of columns, in the order in which they are proposed
    "data.text_column": ("text", "sentence", "content", "review", "body", "tweet", "message", "document", "v2"),
    "data.label_column": ("label", "labels", "class", "category", "target", "sentiment", "v1"),
}


class _File(NamedTuple):
    """Content of one file."""

    texts: TextSequence  # [N]
    label_names: list[str]
    labels: npt.NDArray[np.int64]  # [N], indices into label_names
    notes: list[str]


def read(config: FilesConfig, cache: Path) -> Corpus:
    """The texts of data.train, data.test and data.validation; parts without a file are taken from data.train.

    Errors name the key, the file and, if there is one, the line.
    """
    named = {"train": config.train, "test": config.test, "validation": config.validation}
    files = {part: _read_file(f"data.{part}", name, config, cache) for part, name in named.items() if name is not None}
    names = sorted(files["train"].label_names, key=_label_order)
    if len(names) < 2:
        raise InputError(f"data.train: expected at least two labels, got {join_names(names)} alone in {config.train}.")
    for part in files:
        if unknown := sorted(set(files[part].label_names) - set(names)):
            raise InputError(
                f"data.{part}: expected the labels of {config.train} ({join_names(names)}), "
                f"got {join_names(unknown)} in {named[part]}."
            )
    splits = {part: _split(file, names) for part, file in files.items()}
    if "test" not in splits:
        splits["train"], splits["test"] = split_off(
            splits["train"], config.test_frac, config.split_seed, tuple(names), key="data.test_frac"
        )
    notes = [note for file in files.values() for note in file.notes]
    if config.test is not None and os.path.samefile(*map(os.path.expanduser, (config.train, config.test))):
        notes.append("data.train and data.test are the same file: the test accuracy says nothing about new texts")
    corpus = Corpus(splits["train"], splits["test"], tuple(names), splits.get("validation"), tuple(notes))
    fraction = config.validation_share()
    return with_validation(corpus, fraction, config.split_seed) if fraction else corpus


def _split(file: _File, label_names: list[str]) -> Split:
    index = {name: label for label, name in enumerate(label_names)}
    return Split(file.texts, np.array([index[name] for name in file.label_names])[file.labels].tolist())


def _label_order(name: str) -> tuple[int, str]:
    """Numbers by value, before names by alphabet."""
    is_number = re.fullmatch(r"-?[0-9]{1,15}", name) is not None
    return (int(name) if is_number else sys.maxsize, name)


def _read_file(key: str, name: str, config: FilesConfig, cache: Path) -> _File:
    path = Path(os.path.expanduser(name))
    suffixes = ", ".join(table_rows.SUFFIXES)
    require(table_rows.is_readable(path), key, name, f"a file that ends in {suffixes} (or one of these and .gz)")
    require(os.path.exists(path), key, name, f"an existing file (in {Path.cwd()})")
    require(os.path.isfile(path), key, name, "a file")
    reading = _Reading(path, config)
    try:
        lazy = path.stat().st_size >= _LAZY_BYTES and table_rows.has_stable_offsets(path, reading.table_format)
        file = _indexed(reading, cache) if lazy else _in_memory(reading)
    except MissingColumnsError as missing:
        proposal = _propose_columns(missing, config)
        unit = table_rows.row_unit(path)
        raise InputError(f"{key}: {name}, {unit} {missing.number} {missing.reason}.{proposal}") from None
    except BadRowError as bad:
        raise InputError(f"{key}: {name}, {table_rows.row_unit(path)} {bad.number} {bad.reason}.") from None
    except BadFileError as bad:
        raise InputError(f"{key}: {name} {bad.reason}.") from None
    except OSError as error:
        raise InputError(f"{key}: could not read {name}: {error.strerror or error}.") from None
    require(len(file.texts) > 0, key, f"{name} without any", "a file with texts")
    return file


def _propose_columns(missing: MissingColumnsError, config: FilesConfig) -> str:
    """Names the keys to set, as far as the file's own column names let one guess."""
    asked = {"data.text_column": config.text_column, "data.label_column": config.label_column}
    proposals, taken = [], {column for column in asked.values() if column not in missing.missing}
    for key, column in asked.items():
        if column in missing.missing:
            free = {name.strip().lower(): name for name in missing.names if name not in taken}
            usual = next((free[name] for name in (column.lower(), *_USUAL_NAMES[key]) if name in free), None)
            if usual is not None:
                taken.add(usual)
                proposals.append(f"{key}={usual}")
    if proposals:
        return f" Set {' '.join(proposals)}."
    return "" if len(missing.names) < 2 else " Set data.text_column and data.label_column to the names of columns."


@dataclass
class _Reading:
    """One pass over a file: what to read, and what was noticed on the way."""

    path: Path
    config: FilesConfig
    n_rows: int = 0
    stripped_labels: int = 0
    empty: dict[str, list[int]] = field(default_factory=dict)  # numbers of the rows without a text, by what they lack

    @property
    def table_format(self) -> TableFormat:
        return TableFormat(self.config.delimiter, self.config.encoding, self.config.quoted)

    @property
    def text_columns(self) -> tuple[str, ...]:
        pair = self.config.text_pair_column
        return (self.config.text_column,) if pair is None else (self.config.text_column, pair)

    def examples(self) -> Iterator[tuple[int, Text, str]]:
        """(byte offset, text, label) of each row. Raises BadRowError, and BadFileError if cells are empty."""
        columns = (*self.text_columns, self.config.label_column)
        for number, offset, values in table_rows.read_rows(self.path, columns, self.table_format):
            self.n_rows += 1
            if (empty := next((column for column in columns if _is_empty(values[column])), None)) is not None:
                self.empty.setdefault("label" if empty == columns[-1] else "text", []).append(number)
                continue
            text = as_text([_text(number, column, values[column]) for column in self.text_columns])
            yield offset, text, self._label(number, values[self.config.label_column])
        if self.empty and not self.config.skip_empty:
            raise BadFileError(f"has empty cells: {self._empty_rows()}. Fill them, or set data.skip_empty=true")

    def notes(self) -> list[str]:
        """What was repaired, in words."""
        notes = []
        if self.stripped_labels:
            notes.append(f"{self.path}: blanks around the labels of {self.stripped_labels} rows were removed")
        if self.empty:
            notes.append(f"{self.path}: rows with empty cells were skipped: {self._empty_rows()}")
        return notes

    def _label(self, number: int, value: object) -> str:
        label = _label(number, self.config.label_column, value)
        self.stripped_labels += label != label.strip()
        return label.strip()

    def _empty_rows(self) -> str:
        unit, parts = table_rows.row_unit(self.path), []
        for lacking, numbers in self.empty.items():
            more = f" and {len(numbers) - _SHOWN_LINES} more" if len(numbers) > _SHOWN_LINES else ""
            shown = ", ".join(map(str, numbers[:_SHOWN_LINES])) + more
            plural = len(numbers) > 1
            parts.append(
                f"{len(numbers)} of {self.n_rows} rows {'have' if plural else 'has'} no {lacking}: "
                f"{unit}{'s' if plural else ''} {shown}"
            )
        return "; ".join(parts)


def _in_memory(reading: _Reading) -> _File:
    texts, labels, index = [], [], _LabelIndex()
    for _, text, label in reading.examples():
        texts.append(text)
        labels.append(index[label])
    return _File(texts, list(index), np.array(labels, dtype=np.int64), reading.notes())


def _indexed(reading: _Reading, cache: Path) -> _File:
    """Read the whole file once; the offsets stay in the cache for as long as the file does not change."""
    path = reading.path
    stamp = file_stamp(path.stat())
    columns = (*reading.text_columns, reading.config.label_column)
    how = repr((columns, reading.table_format, reading.config.skip_empty))
    key = content_hash("3", str(path.resolve()), stamp, how)  # increase the number when the pass below changes

    def scan() -> bytes:
        byte_offsets, labels, hashes, index, content = [], [], [], _LabelIndex(), ContentHash()
        for offset, text, label in reading.examples():
            byte_offsets.append(offset)
            labels.append(index[label])
            hashes.append(text_hash(text))
            for part in text_parts(text):
                content.add(part)
        metadata = {"label_names": list(index), "digest": content.hex(), "notes": reading.notes()}
        file = io.BytesIO()
        np.savez(
            file,
            byte_offsets=np.array(byte_offsets, np.int64),
            labels=np.array(labels, np.int64),
            hashes=np.array(hashes, np.uint64),
            metadata=np.array(json.dumps(metadata)),
        )
        return file.getvalue()

    with np.load(io.BytesIO(cached_bytes(cache, f"rows-{key[:32]}.npz", scan)), allow_pickle=False) as stored:
        metadata = json.loads(str(stored["metadata"]))
        offsets, hashes = stored["byte_offsets"], stored["hashes"]
        texts = LazyTexts(path, reading.text_columns, reading.table_format, stamp, offsets, hashes, metadata["digest"])
        return _File(texts, metadata["label_names"], stored["labels"], metadata["notes"])


class _LabelIndex(dict[str, int]):
    """Numbers label names in the order of their first use."""

    def __missing__(self, name: str) -> int:
        return self.setdefault(name, len(self))


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
