"""Folders of watched trainings: finding free ones, and saving the points from which a history can be resumed."""

import json
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from bertmon.errors import storage_errors
from bertmon.monitor.history import HISTORY_FILE, History
from bertmon.monitor.monitor import Monitor
from bertmon.monitor.tensorboard import Positions, RunWriter
from bertmon.storage import atomic_write, read_json

RESUME_FILE = "resume_points.json"
"""The state at each checkpoint of the training that is not in history.npz, by the number of updates done."""


class ResumePoint(NamedTuple):
    """The state of a watched training when a checkpoint was saved."""

    history: History
    monitor: dict[str, Any]  # Monitor.state_dict()
    event_files: Positions


def contains_run(folder: Path) -> bool:
    """Whether a training has been watched in the folder."""
    return (folder / HISTORY_FILE).exists() or any(folder.glob("events.out.tfevents.*"))


def free_folder(folder: Path) -> Path:
    """The first of folder, folder-2, folder-3, ... that contains no run."""
    names = (folder if number == 1 else folder.with_name(f"{folder.name}-{number}") for number in count(1))
    return next(candidate for candidate in names if not contains_run(candidate))


def save_resume_point(folder: Path, steps: int, monitor: Monitor, writer: RunWriter) -> None:
    """Make the training resumable from here, after `steps` updates. Raises StorageError."""
    points = _read(folder)
    points[str(steps)] = {
        "watched": len(monitor.history.losses),
        "monitor": monitor.state_dict(),
        "event_files": dict(writer.positions()),
    }
    with storage_errors(folder):
        atomic_write(folder / HISTORY_FILE, monitor.history.to_bytes())
        atomic_write(folder / RESUME_FILE, json.dumps(points).encode())


def load_resume_point(folder: Path, steps: int) -> ResumePoint | None:
    """The state after `steps` updates; None if it was not saved or is incomplete."""
    point = _read(folder).get(str(steps))
    if point is None:
        return None
    try:
        history = History.load(folder / HISTORY_FILE)
        watched = int(point["watched"])
        if len(history.losses) < watched:
            return None
        history.rewind(watched)
        return ResumePoint(history, dict(point["monitor"]), dict(point["event_files"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def forget_later_points(folder: Path, steps: int) -> None:
    """Remove the points after `steps` updates, which the resumed training will replace."""
    points = {key: point for key, point in _read(folder).items() if key.isdecimal() and int(key) <= steps}
    with storage_errors(folder):
        atomic_write(folder / RESUME_FILE, json.dumps(points).encode())


def _read(folder: Path) -> dict[str, Any]:
    return read_json(folder / RESUME_FILE)
