"""Files that no program should have to read. Each function returns one that creates such a file."""

import os
from collections.abc import Callable
from pathlib import Path

Make = Callable[[], object]


def pipe(name: str) -> Make:
    return lambda: os.mkfifo(name)


def loop(name: str) -> Make:
    """A symbolic link to itself."""
    return lambda: Path(name).symlink_to(name)


def sparse(name: str) -> Make:
    """A gigabyte of NUL bytes that takes no space."""

    def make() -> None:
        with open(name, "wb") as file:
            file.truncate(1_000_000_000)

    return make


def write(name: str, content: bytes) -> Make:
    return lambda: Path(name).write_bytes(content)
