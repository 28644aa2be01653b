"""Errors shown to the user as one message, without a traceback. No third-party imports: any module can import it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import NoReturn

from bertmon.sanitize import sanitize, sanitize_line


class InputError(ValueError):
    """A user's mistake: the message names the key or file, what was expected and what was given."""

    def __init__(self, message: str) -> None:
        super().__init__(sanitize(message))


class StorageError(InputError):
    """A run's file cannot be written: disk full or missing, no permission. Ends the whole launch, not only the run."""


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Convert an OSError raised in the body to a StorageError that names `path`."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"could not write {path}: {error.strerror or error}.") from None


def require(ok: bool, key: str, value: object, expected: str) -> None:
    """Raise InputError ("key: expected ..., got value.") unless `ok`."""
    if not ok:
        shown = value.value if isinstance(value, Enum) else value
        raise InputError(f"{key}: expected {expected}, got {sanitize_line(shown)}.")


def first_line(error: Exception) -> str:
    """The first line of a library's message, whose others are advice or a source location; the second after a colon."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0]} {lines[1].strip()}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]


def exit_after_closed_pipe() -> NoReturn:
    """Exit quietly after the reader of standard output, such as `head`, has closed it. Discards buffered output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
