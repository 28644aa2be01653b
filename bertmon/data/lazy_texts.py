"""Texts of a large file, read on demand.

Shapes: N texts.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bertmon.data import table_rows
from bertmon.data.table_rows import TableFormat
from bertmon.errors import InputError
from bertmon.storage import content_hash

Text = str | tuple[str, str]
"""A text, or a pair of texts that are classified together."""


@dataclass(frozen=True, slots=True)
class LazyTexts:
    """N texts of a file, with only their byte offsets in memory.

    Raises InputError if the file has changed or can no longer be read.
    """

    path: Path
    columns: tuple[str, ...]  # one, or two for pairs
    table_format: TableFormat
    file_stamp: str
    byte_offsets: npt.NDArray[np.int64]  # [N]
    hashes: npt.NDArray[np.uint64]  # [N] text_hash of each
    digest: str
    """The content_hash of all texts; for a subset, of the original digest and the indices."""

    def __len__(self) -> int:
        return len(self.byte_offsets)

    def __iter__(self) -> Iterator[Text]:
        return self.take(range(len(self)))

    def __getitem__(self, index: int, /) -> Text:
        return next(self.take([index]))

    def take(self, indices: Iterable[int]) -> Iterator[Text]:
        """The texts at these indices, in their order."""
        try:
            with self.path.open("rb") as file:
                if file_stamp(os.fstat(file.fileno())) != self.file_stamp:
                    raise InputError(f"{self.path} has changed since training began.")
                byte_offsets = (int(self.byte_offsets[index]) for index in indices)
                rows = table_rows.rows_at(file, self.path, self.columns, self.table_format, byte_offsets)
                for values in rows:
                    yield as_text([str(values[column]) for column in self.columns])
        except OSError as error:
            raise InputError(f"could not read {self.path}: {error.strerror}.") from None

    def subset(self, indices: npt.NDArray[np.int64]) -> "LazyTexts":
        """The texts at these indices."""
        return LazyTexts(
            self.path,
            self.columns,
            self.table_format,
            self.file_stamp,
            self.byte_offsets[indices],
            self.hashes[indices],
            content_hash(self.digest, indices.astype(np.int64).tobytes()),
        )


def file_stamp(stat: os.stat_result) -> str:
    """Size and modification time, which show whether the file has changed."""
    return f"{stat.st_size} {stat.st_mtime_ns}"


def as_text(parts: list[str]) -> Text:
    """The text for one part, the pair for two."""
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def text_parts(text: Text) -> tuple[str, ...]:
    """The one or two strings of a text."""
    return (text,) if isinstance(text, str) else text


def text_hash(text: Text) -> int:
    """64-bit hash of a text, the same in every process."""
    joined = text if isinstance(text, str) else f"{len(text[0])} {text[0]}{text[1]}"
    data = joined.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
