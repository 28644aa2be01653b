"""result.json: what a run leaves behind, whatever happened to it."""

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
SWEEP = "sweep.json"
"""In a launch's folder: "runs", the folders of all its runs below it, in the order in which they start."""

_LIBRARIES = ("bertmon", "hydra-core", "numpy", "tokenizers", "torch", "transformers")


@contextmanager
def recorded(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields a dict for the run to fill; it stands in result.json from the first moment and, complete, at the end.

    status is "running" at first, then what the body put there ("ok" unless it did), "failed" with the error and its
    traceback after an exception, "interrupted" after Ctrl-C or SystemExit. The exception goes on.
    Raises InputError where the folder holds a run already.
    """
    path = folder / NAME
    try:
        path.touch(exist_ok=False)  # of two runs that come at once, one is refused
    except FileExistsError:
        raise InputError(f"{folder} holds a run already: give another folder, or take this one away.") from None
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
        result["seconds"] = round(time.time() - started, 2)
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
