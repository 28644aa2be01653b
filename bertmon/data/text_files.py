"""Your own texts in files: checks every row, reports bad ones by file and line, and splits a file into parts.

File formats are in table_rows. Texts of large files are read on demand, by lazy_texts.
Shapes: N texts of a file.
"""

import io
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from bertmon.config import FilesConfig
from bertmon.data import table_rows
from bertmon.data.corpus import Corpus
from bertmon.data.examples import Columns, ExampleReader, text_columns
from bertmon.data.lazy_texts import LazyTexts, file_stamp, text_hash, text_parts
from bertmon.data.parts import LabelIndex, PartContent, build_corpus
from bertmon.data.table_rows import MissingColumnsError, TableFormat
from bertmon.errors import InputError, require
from bertmon.storage import ContentHash, cached_bytes, content_hash

_LAZY_BYTES = 32_000_000  # texts of a file of this size or larger are read on demand
_USUAL_NAMES = {  # of columns, in order of preference
    "data.text_column": ("text", "sentence", "content", "review", "body", "tweet", "message", "document", "v2"),
    "data.label_column": ("label", "labels", "class", "category", "target", "sentiment", "v1"),
}


def read(config: FilesConfig, cache: Path) -> Corpus:
    """The texts of data.train, data.test and data.validation; parts without a file are taken from data.train.

    Errors name the key, the file and, if there is one, the line.
    """
    named = {"train": config.train, "test": config.test, "validation": config.validation}
    parts = {part: _read_file(f"data.{part}", name, config, cache) for part, name in named.items() if name is not None}
    corpus = build_corpus(parts, named, config, sorted(parts["train"].label_names, key=label_order))
    return replace(corpus, notes=(*corpus.notes, *_same_file_notes(config)))


def _same_file_notes(config: FilesConfig) -> Iterator[str]:
    for part, name in (("test", config.test), ("validation", config.validation)):
        if name is not None and os.path.samefile(*map(os.path.expanduser, (config.train, name))):
            yield f"data.train and data.{part} are the same file: the {part} accuracy says nothing about new texts"


def label_order(name: str) -> tuple[int, str]:
    """Sort key of labels: numbers by value, then names alphabetically."""
    is_number = re.fullmatch(r"-?[0-9]{1,15}", name) is not None
    return (int(name) if is_number else sys.maxsize, name)


def _read_file(key: str, name: str, config: FilesConfig, cache: Path) -> PartContent:
    path = Path(os.path.expanduser(name))
    suffixes = ", ".join(table_rows.SUFFIXES)
    require(table_rows.is_readable(path), key, name, f"a file that ends in {suffixes} (or one of these and .gz)")
    require(os.path.exists(path), key, name, f"an existing file (in {Path.cwd()})")
    require(os.path.isfile(path), key, name, "a file")
    table_format = TableFormat(config.delimiter, config.encoding, config.quoted)
    unit = table_rows.row_unit(path)
    reader = ExampleReader(str(path), unit, text_columns(config), config.label_column, config.skip_empty)
    with table_rows.located_errors(f"{key}: {name}", unit, lambda missing: propose_columns(missing, config)):
        if path.stat().st_size >= _LAZY_BYTES and table_rows.has_stable_offsets(path, table_format):
            part = _indexed(path, table_format, reader, cache)
        else:
            part = _in_memory(path, table_format, reader)
    if not part.texts:
        raise InputError(f"{key}: {name} has no texts.")
    return part


def propose_columns(missing: MissingColumnsError, config: Columns) -> str:
    """A sentence with the column keys to set, guessed from the file's column names if possible."""
    columns = {"data.text_column": config.text_column, "data.label_column": config.label_column}
    proposals, taken = [], {column for column in columns.values() if column not in missing.missing}
    for key, column in columns.items():
        if column in missing.missing:
            free = {name.strip().lower(): name for name in missing.names if name not in taken}
            usual = next((free[name] for name in (column.lower(), *_USUAL_NAMES[key]) if name in free), None)
            if usual is not None:
                taken.add(usual)
                proposals.append(_as_argument(key, usual))
    if proposals:
        return f" Set {' '.join(proposals)}."
    return "" if len(missing.names) < 2 else " Set data.text_column and data.label_column to the names of columns."


def _in_memory(path: Path, table_format: TableFormat, reader: ExampleReader) -> PartContent:
    texts, labels, index = [], [], LabelIndex()
    for _, text, label in reader.examples(table_rows.read_rows(path, reader.columns, table_format)):
        texts.append(text)
        labels.append(index[label])
    return PartContent(texts, list(index), np.array(labels, dtype=np.int64), reader.notes())


def _indexed(path: Path, table_format: TableFormat, reader: ExampleReader, cache: Path) -> PartContent:
    """Read the entire file once; the offsets are cached until the file changes."""
    stamp = file_stamp(path.stat())
    options = repr((reader.columns, table_format, reader.skip_empty))
    key = content_hash("3", str(path.resolve()), stamp, options)  # increase the number when the pass below changes

    def scan() -> bytes:
        byte_offsets, labels, hashes, index, content = [], [], [], LabelIndex(), ContentHash()
        for offset, text, label in reader.examples(table_rows.read_rows(path, reader.columns, table_format)):
            byte_offsets.append(offset)
            labels.append(index[label])
            hashes.append(text_hash(text))
            for part in text_parts(text):
                content.add(part)
        metadata = {"label_names": list(index), "digest": content.hex(), "notes": reader.notes()}
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
        texts = LazyTexts(path, reader.text_columns, table_format, stamp, offsets, hashes, metadata["digest"])
        return PartContent(texts, metadata["label_names"], stored["labels"], metadata["notes"])


def _as_argument(key: str, value: str) -> str:
    """`key=value` for a shell and Hydra: quoted twice unless the value is a plain word."""
    if re.fullmatch(r"(?!(null|true|false)$)[a-z_][\w.-]*", value, re.ASCII | re.IGNORECASE):
        return f"{key}={value}"
    escaped = value.replace("'", "\\'")
    return f"\"{key}='{escaped}'\""
