"""Files that are written atomically, a cache of such files, and locks."""

import glob
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bertmon.errors import InputError, storage_errors

log = logging.getLogger(__name__)

_MAX_JSON_BYTES = 100_000_000  # a result with a million evaluations is smaller
_LOCK_TIMEOUT_S = 0.6  # `is_locked` in another process holds the lock briefly


class ContentHash:
    """SHA-256 of a sequence of parts; different sequences have different hashes, even if they join to the same text."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def add(self, part: str | bytes) -> None:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        self._sha.update(len(data).to_bytes(8, "big"))
        self._sha.update(data)

    def hex(self) -> str:
        return self._sha.hexdigest()


def content_hash(*parts: str | bytes) -> str:
    """The ContentHash of the parts, in hex."""
    content = ContentHash()
    for part in parts:
        content.add(part)
    return content.hex()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path` to write to; on success it replaces `path`, flushed to disk.

    On an exception `path` keeps its old content and the temporary file is removed.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        _apply_umask(temporary, 0o666)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_write(path: Path, content: bytes) -> None:
    """Replace the file at `path`, or leave the old one untouched. Raises OSError."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path` to write to; on success it replaces `path`, flushed to disk.

    On an exception `path` keeps its old content and the temporary folder is removed. Raises OSError.
    """
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:100]}."))
    previous = temporary.with_name(f"{temporary.name}.old")
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
                _apply_umask(file, 0o666)  # safetensors hides its files from the group
        _apply_umask(temporary, 0o777)
        if path.exists():
            path.rename(previous)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if previous.exists() and not path.exists():
            previous.rename(path)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def remove_temporaries(path: Path) -> None:
    """Remove what a process left that was killed while it wrote `path`. No other process may be writing it."""
    for leftover in path.parent.glob(f".{glob.escape(path.name[:100])}.*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _apply_umask(path: Path, mode: int) -> None:
    """Give a file of tempfile the usual permissions: its own hide it from the user's group."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(mode & ~umask)


def cached_bytes(folder: Path, name: str, make: Callable[[], bytes]) -> bytes:
    """The bytes stored under `name`, which must identify everything they depend on; built and stored if missing.

    A stored file begins with the SHA-256 of its content; if it does not match, the file is rebuilt with a warning. Two
    processes that build the same file both succeed. If the file cannot be written, it is not cached, with a warning.
    """
    path = folder / name
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("could not read cache file %s (%s); rebuilding", path, error.strerror)
    else:
        checksum, content = stored[:32], stored[32:]
        if hashlib.sha256(content).digest() == checksum:
            return content
        log.warning("cache file %s is corrupt; rebuilding", path)

    content = make()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, hashlib.sha256(content).digest() + content)
    except OSError as error:
        log.warning("could not write cache file %s (%s)", path, error.strerror)
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is missing, incomplete, corrupt or not a JSON object."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_JSON_BYTES:  # reading a FIFO would block
            return {}
        content = json.loads(path.read_text("utf-8"))
        json.dumps(content, ensure_ascii=False).encode()  # raises for lone surrogates, which cannot be written back
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def exclusive(path: Path, error: str) -> Iterator[None]:
    """Hold the lock file at `path` during the body; if this process dies, the lock is released.

    Raises InputError(error) if another process holds it, StorageError if the file cannot be created.
    """
    lock = FileLock(path, timeout=_LOCK_TIMEOUT_S)
    with storage_errors(path):
        try:
            lock.acquire()
        except Timeout:
            raise InputError(error) from None
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file at `path`; True also if that cannot be determined."""
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except (Timeout, OSError):
        return True
