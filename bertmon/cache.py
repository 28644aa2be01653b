"""What is made once and used by many runs: one file a key, written whole or not at all, checked when read."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)


class Digest:
    """SHA-256 of parts that come one by one; no two different lists of parts have the same one."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def add(self, part: str | bytes) -> None:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        self._sha.update(len(data).to_bytes(8, "big"))
        self._sha.update(data)

    def hex(self) -> str:
        return self._sha.hexdigest()


def digest(*parts: str | bytes) -> str:
    """The Digest of the parts as hex."""
    whole = Digest()
    for part in parts:
        whole.add(part)
    return whole.hex()


def cached(folder: Path, name: str, make: Callable[[], bytes]) -> bytes:
    """The bytes stored under `name`, which must say everything they depend on; made and stored where there are none.

    A stored file begins with its own SHA-256; one that does not match is made again, with a warning. Two processes that
    make the same file both succeed: each writes to a name of its own and renames. A folder that cannot be written
    costs only the reuse, with a warning.
    """
    path = folder / name
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("cache %s cannot be read (%s): made again", path, error.strerror)
    else:
        checksum, content = stored[:32], stored[32:]
        if hashlib.sha256(content).digest() == checksum:
            return content
        log.warning("cache %s is damaged: made again", path)

    content = make()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, hashlib.sha256(content).digest() + content)
    except OSError as error:
        log.warning("cache %s cannot be written (%s): not kept", path, error.strerror)
    return content


def write_atomic(path: Path, content: bytes) -> None:
    """Write the whole file or leave the old one: to a temporary name beside it, flushed to disk, then renamed."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would hide the file from the user's group
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
