"""result.json: what a run leaves behind, whatever happened to it."""

import fcntl
import json
import logging
import math
import platform
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from bertmon.cache import write_atomic
from bertmon.config import InputError, storing
from bertmon.terminal import controls

log = logging.getLogger(__name__)

NAME = "result.json"
LOCK = ".lock"
"""Locked while a process is at work in the folder."""
SWEEP = "sweep.json"
"""In a launch's folder: "runs", the folders of all its runs below it, in the order in which they start."""

FINISHED = ("ok", "stopped", "diverged")
"""Statuses of runs that have come to their end."""
BROKEN = ("failed", "interrupted")
"""Statuses of runs that have not, and are not running any more."""
_LIBRARIES = ("bertmon", "hydra-core", "numpy", "tokenizers", "torch", "transformers")


_LARGEST = 100_000_000  # bytes; a result of a million evaluations has less


class TerminatedError(SystemExit):
    """SIGTERM has come: the run is interrupted. Any other SystemExit is a failure of the run."""


class LogFile(logging.FileHandler):
    """run.log. That it cannot be written is told once, in a line, and not at each message with a traceback."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's own name
        if not self._told:
            self._told = True
            print(f"{self.baseFilename} cannot be written: {sys.exc_info()[1]}", file=sys.stderr)


def load(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is none, no whole one (yet), or something else."""
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:  # a pipe would never end
            return {}
        found = json.loads(path.read_text("utf-8"))
        json.dumps(found, ensure_ascii=False).encode()  # a lone surrogate is no text
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def plan(start: Path) -> dict[str, Any]:
    """What a launch has left in its folder; empty where there is nothing, or nothing whole."""
    found = load(start / SWEEP)
    names = found.get("runs")
    return found if isinstance(names, list) and all(map(_is_below, names)) else {}


def _is_below(name: object) -> bool:
    """Whether it names a folder below another one."""
    if not isinstance(name, str) or controls(name) or Path(name).is_absolute():
        return False
    return all(part != ".." and len(part.encode()) <= 255 for part in Path(name).parts)


def finished(folder: Path) -> dict[str, Any] | None:
    """The result of a run that has come to its end; None where there is none, or it was broken off."""
    result = load(folder / NAME)
    try:
        float(result["metrics"]["final"]["accuracy"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return result if result.get("status") in FINISHED else None


@contextmanager
def recorded(folder: Path, *, again: bool = False) -> Iterator[dict[str, Any]]:
    """Yields a dict for the run to fill; it stands in result.json from the first moment and, complete, at the end.

    "seconds" is the time from start to end, with what the body put into "seconds_before".
    status is "running" at first, then what the body put there ("ok" unless it did), "failed" with the error and its
    traceback after an exception, "interrupted" after Ctrl-C or SIGTERM. The exception goes on; a SystemExit as a
    RuntimeError, since it would end the whole sweep.
    again: the folder may hold a run that was broken off.
    Raises InputError where the folder holds a run already, or another process is at work in it, and StorageError where
    it cannot be written.
    """
    with _locked(folder):
        yield from _recorded(folder / NAME, again)


def at_work(folder: Path) -> bool:
    """Whether a process holds the folder's run; True also where that cannot be told."""
    try:
        with (folder / LOCK).open() as file:
            return not _locks(file, fcntl.LOCK_SH)
    except OSError:
        return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Until the end of this process at most, however it ends."""
    with storing(folder / LOCK):
        file = (folder / LOCK).open("w")
    with file:
        for wait in (0, 0.1, 0.5):  # `at_work` of another process holds it for an instant
            time.sleep(wait)
            if _locks(file, fcntl.LOCK_EX):
                break
        else:
            raise InputError(f"{folder}: another process is running this run.")
        yield


def _locks(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _recorded(path: Path, again: bool) -> Iterator[dict[str, Any]]:
    try:
        path.touch(exist_ok=again)  # of two runs that come at once, one is refused
    except FileExistsError:
        raise InputError(f"{path.parent} holds a run already: give another folder, or take this one away.") from None
    started = time.monotonic()
    result: dict[str, Any] = {
        "status": "running",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "versions": {name: metadata.version(name) for name in _LIBRARIES},
    }
    _write(path, result)
    try:
        yield result
    except (KeyboardInterrupt, TerminatedError):
        result["status"] = "interrupted"
        log.error("interrupted")
        raise
    except (Exception, SystemExit) as error:
        result["status"] = "failed"
        result["error"] = f"{type(error).__name__}: {error}"
        result["traceback"] = traceback.format_exc()
        log.error(str(error) if isinstance(error, InputError) else result["traceback"])
        if isinstance(error, SystemExit):
            raise RuntimeError(f"it exited ({error})") from None
        raise
    else:
        if result["status"] == "running":
            result["status"] = "ok"
    finally:
        result["seconds"] = round(time.monotonic() - started + result.get("seconds_before", 0.0), 2)
        _write(path, result)


def _write(path: Path, result: dict[str, Any]) -> None:
    with storing(path):
        write_atomic(path, (json.dumps(_plain(result), indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())


def _plain(value: Any) -> Any:
    """JSON has neither nan nor infinity: they become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
