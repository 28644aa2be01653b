"""result.json: what a run leaves behind, whatever happened to it."""

import fcntl
import json
import logging
import math
import platform
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from bertmon.cache import write_atomic
from bertmon.config import InputError

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


def plan(start: Path) -> dict[str, Any]:
    """What a launch has left in its folder; empty where there is nothing, or nothing whole."""
    try:
        found = json.loads((start / SWEEP).read_text())
    except (OSError, ValueError):
        return {}
    whole = isinstance(found, dict) and isinstance(found.get("runs"), list)
    return found if whole and all(isinstance(name, str) for name in found["runs"]) else {}


def finished(folder: Path) -> dict[str, Any] | None:
    """The result of a run that has come to its end; None where there is none, or it was broken off."""
    try:
        result = json.loads((folder / NAME).read_text())
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.get("status") in FINISHED else None


@contextmanager
def recorded(folder: Path, *, again: bool = False) -> Iterator[dict[str, Any]]:
    """Yields a dict for the run to fill; it stands in result.json from the first moment and, complete, at the end.

    "seconds" is the time from start to end, with what the body put into "seconds_before".
    status is "running" at first, then what the body put there ("ok" unless it did), "failed" with the error and its
    traceback after an exception, "interrupted" after Ctrl-C or SystemExit. The exception goes on.
    again: the folder may hold a run that was broken off.
    Raises InputError where the folder holds a run already, or another process is at work in it.
    """
    with _locked(folder):
        yield from _recorded(folder / NAME, again)


def at_work(folder: Path) -> bool:
    """Whether a process is running the run in the folder."""
    try:
        with _locked(folder):
            return False
    except InputError:
        return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Until the end of this process at most, however it ends."""
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process is running this run.") from None
        yield


def _recorded(path: Path, again: bool) -> Iterator[dict[str, Any]]:
    try:
        path.touch(exist_ok=again)  # of two runs that come at once, one is refused
    except FileExistsError:
        raise InputError(f"{path.parent} holds a run already: give another folder, or take this one away.") from None
    started = time.time()
    result: dict[str, Any] = {
        "status": "running",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "versions": {name: metadata.version(name) for name in _LIBRARIES},
    }
    _write(path, result)
    try:
        yield result
    except (KeyboardInterrupt, SystemExit):
        result["status"] = "interrupted"
        log.error("interrupted")
        raise
    except Exception as error:
        result["status"] = "failed"
        result["error"] = f"{type(error).__name__}: {error}"
        result["traceback"] = traceback.format_exc()
        log.error(str(error) if isinstance(error, InputError) else result["traceback"])
        raise
    else:
        if result["status"] == "running":
            result["status"] = "ok"
    finally:
        result["seconds"] = round(time.time() - started + result.get("seconds_before", 0.0), 2)
        _write(path, result)


def _write(path: Path, result: dict[str, Any]) -> None:
    write_atomic(path, (json.dumps(_plain(result), indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())


def _plain(value: Any) -> Any:
    """JSON has neither nan nor infinity: they become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
