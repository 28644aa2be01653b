"""What a sweep came to: its runs by cell, and their statistics. Numpy at most, so that a report needs no torch.

A cell is a set of settings; its runs differ by their seed alone. Reads what runs leave (result.json, history.npz) and
what a launch leaves (sweep.json); leaves words to words, pictures to charts, pages to page.
"""

import json
import logging
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bertmon.errors import InputError
from bertmon.monitor.diagnosis import Verdict
from bertmon.monitor.history import HISTORY_FILE, History
from bertmon.result import FINISHED, RESULT_FILE, SWEEP_FILE, is_locked, read_json, read_sweep_file
from bertmon.sanitize import sanitize_line

log = logging.getLogger(__name__)

_NOT_IDENTITY = ("seed", "device", "cache", "experiment", "resume")  # runs that differ by these alone are of one cell


@dataclass(frozen=True, eq=False)
class RunSummary:
    """One run; `result` is its result.json, or what is known of it without one."""

    folder: Path
    name: str  # folder below the sweep's, or below what several sweeps have in common
    result: Mapping[str, Any]

    @property
    def status(self) -> str:
        """That of result.json; "waiting" for a run that has not started, "unreadable" for a damaged file."""
        return str(self.result.get("status", "unreadable"))

    @property
    def finished(self) -> bool:
        return self.status in FINISHED and bool(self.result.get("evaluations"))

    @property
    def seed(self) -> int | None:
        return self.result.get("seed")

    @property
    def overrides(self) -> Mapping[str, Any]:
        """What tells the run's cell from the others, by dotted key."""
        return self.result.get("differs") or {}

    @cached_property
    def group_key(self) -> str:
        """Two runs with the same one differ by their seed alone."""
        settings = self.result.get("settings")
        if settings is None:  # it has not come that far
            return str(self.folder.parent)
        told = {key: value for key, value in settings.items() if key not in _NOT_IDENTITY}
        return json.dumps([told, self.result.get("data", {}).get("fingerprint")], sort_keys=True)

    @property
    def verdict(self) -> Verdict | None:
        told = self.result.get("verdict")
        return Verdict(told) if told in list(Verdict) else None

    @property
    def flagged_step(self) -> int | None:
        """Step at which the verdict that the run ended with was known, if that is a doomed one."""
        return self.result["verdict_step"] if self.verdict and self.verdict.doomed else None

    def final(self, metric: str) -> float:
        """loss or accuracy of the last evaluation; nan where there is none."""
        return _number(self.result.get("metrics", {}).get("final", {}), metric)

    def best(self, metric: str) -> float:
        """loss or accuracy of the evaluation with the best accuracy; nan where there is none."""
        return _number(self.result.get("metrics", {}).get("best"), metric)

    @property
    def did_not_learn(self) -> bool | None:
        """Whether a finished run has learned nothing that its test set could tell from the most frequent class.

        Its accuracy is below the 99 % bound of guessing that class (normal approximation). None: not finished.
        """
        if not self.finished:
            return None
        data = self.result["data"]
        share, texts = data["majority"], data["test_texts"]
        return not self.final("accuracy") > share + 2.576 * math.sqrt(share * (1 - share) / texts)

    @property
    def saved_steps(self) -> int:
        """Steps that a doomed run was spared."""
        return int(self.result["steps_planned"] - self.result["steps"]) if self.status == "stopped" else 0

    def history(self) -> History | None:
        """What was measured; None where no file is there, or no whole one, which is told."""
        path = self.folder / HISTORY_FILE
        if not path.exists():
            return None
        try:
            return History.load(path)
        except (OSError, ValueError) as error:
            if not self._warned:
                log.warning(f"{sanitize_line(path)} cannot be read ({sanitize_line(error)}): its run has no curves")
                self._warned.append(path)
            return None

    @cached_property
    def _warned(self) -> list[Path]:
        """Files that have been said to be damaged."""
        return []


@dataclass(frozen=True, eq=False)
class Setting:
    """The runs of one set of settings, by seed."""

    name: str
    overrides: Mapping[str, Any]
    runs: tuple[RunSummary, ...]

    @property
    def finished(self) -> list[RunSummary]:
        return [run for run in self.runs if run.finished]

    @property
    def did_not_learn(self) -> list[RunSummary]:
        return [run for run in self.runs if run.did_not_learn]

    def mean(self, metric: str, *, best: bool = False) -> tuple[float, float, int]:
        """Mean and standard deviation (of the sample; nan for one run) over the finished runs that have the metric, and
        their number."""
        values = [run.best(metric) if best else run.final(metric) for run in self.finished]
        values = [value for value in values if not math.isnan(value)]
        mean = statistics.fmean(values) if values else math.nan
        return mean, statistics.stdev(values) if len(values) > 1 else math.nan, len(values)

    def sort_key(self) -> float:
        """Mean of the last accuracy; cells without one come first."""
        mean = self.mean("accuracy")[0]
        return -1.0 if math.isnan(mean) else mean

    @property
    def seconds(self) -> float:
        """Mean time of the finished runs, from start to end; nan where there is none."""
        times = [run.result["seconds"] for run in self.finished if "seconds" in run.result]
        return statistics.fmean(times) if times else math.nan


@dataclass(frozen=True, eq=False)
class Sweep:
    """All runs of one launch, or of several."""

    folders: tuple[Path, ...]
    settings: tuple[Setting, ...]

    @cached_property
    def runs(self) -> list[RunSummary]:
        return [run for cell in self.settings for run in cell.runs]

    @cached_property
    def swept(self) -> list[str]:
        """Dotted keys that differ between cells, in the order in which they were given."""
        return list(dict.fromkeys(key for cell in self.settings for key in cell.overrides))


def read_sweep(folders: Sequence[Path]) -> Sweep:
    """The runs below the folders, each once, those that have not started included.

    Raises InputError for a folder that holds neither a run nor the plan of any.
    """
    runs: dict[Path, RunSummary] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(
                f"{sanitize_line(folder)} is no folder: give that of a sweep, such as multirun/2026-11-23_07-17-49."
            )
        found = list(_runs(folder, prefix=f"{folder.name}/" if len(folders) > 1 else ""))
        if not found and not (folder / SWEEP_FILE).exists():
            raise InputError(f"{sanitize_line(folder)} holds no run: there is no {RESULT_FILE} in it, nor below it.")
        for run in found:
            runs.setdefault(run.folder.resolve(), run)
    beside: dict[Path, set[str]] = {}  # cells of the runs that say theirs, by folder
    for run in runs.values():
        if "settings" in run.result:
            beside.setdefault(run.folder.parent, set()).add(run.group_key)
    cells: dict[str, list[RunSummary]] = {}
    for run in runs.values():
        known = beside.get(run.folder.parent, set())
        cell = next(iter(known)) if "settings" not in run.result and len(known) == 1 else run.group_key
        cells.setdefault(cell, []).append(run)
    return Sweep(tuple(folders), tuple(_cells(list(cells.values()))))


def wilson_interval(count: int, n: int) -> tuple[float, float]:
    """95 % interval of a share of which `count` of `n` were seen (Wilson 1927, score interval)."""
    if not n:
        return 0.0, 1.0
    z, share = 1.96, count / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _runs(folder: Path, prefix: str) -> Iterable[RunSummary]:
    names = read_sweep_file(folder).get("runs", [])
    started = {str(path.parent.relative_to(folder)): path for path in folder.rglob(RESULT_FILE)}
    for name in dict.fromkeys([*names, *sorted(started)]):
        result = _checked(read_json(started[name])) if name in started else {"status": "waiting"}
        if result.get("status") == "running" and not is_locked(started[name].parent):
            result |= {"status": "interrupted", "error": "killed: its process has ended without a word"}
        yield RunSummary(
            folder / name, sanitize_line(prefix + (name if name != "." else folder.resolve().name), 500), result
        )


_SHAPES: dict[str, type | tuple[type, ...]] = {
    "status": str,
    "seed": int,
    "differs": dict,
    "settings": dict,
    "data": dict,
    "metrics": dict,
    "evaluations": list,
    "steps": int,
    "steps_planned": int,
    "seconds": (int, float),
    "verdict": str,
    "verdict_step": int,
    "cause": str,
    "advice": str,
    "error": str,
}


def _checked(result: dict[str, Any]) -> dict[str, Any]:
    """The result, if it is one that a run leaves; else an empty one, whose run is "unreadable"."""

    def number(value: Any, least: float = 0) -> bool:
        return isinstance(value, int | float) and least <= value < 1e300  # more is none that a sum can take

    def metrics(value: Any) -> bool:
        keys = ("loss", "accuracy")
        return isinstance(value, dict) and all(value.get(key) is None or number(value[key], -1e300) for key in keys)

    told = {key: value for key, value in result.items() if value is not None}
    whole = all(isinstance(told[key], shape) for key, shape in _SHAPES.items() if key in told)
    if whole and told.get("status") in FINISHED:
        data, evaluations = told.get("data", {}), told.get("evaluations", [])
        whole = (
            {"steps", "steps_planned", "seconds", "metrics"} <= told.keys()
            and ("verdict" in told) == ("verdict_step" in told)
            and number(told["seconds"])
            and number(told["steps"])
            and number(told["steps_planned"], max(told["steps"], 1))
            and number(data.get("majority"))
            and data["majority"] <= 1
            and number(data.get("test_texts"), 1)
            and metrics(told["metrics"].get("final"))
            and metrics(told["metrics"].get("best") or {})
            and all(metrics(each) and number(each.get("step")) for each in evaluations)
        )
    return told if whole and "status" in told else {}


def _cells(groups: Sequence[Sequence[RunSummary]]) -> Iterable[Setting]:
    """Named by what differs, where that tells them apart; else by their folders."""
    differs = [next((run.overrides for run in runs if run.overrides), {}) for runs in groups]
    short = short_names(dict.fromkeys(key for each in differs for key in each))
    names = [", ".join(f"{short[key]}={value}" for key, value in each.items()) for each in differs]
    folders = [sorted({str(Path(run.name).parent) for run in runs})[0] for runs in groups]
    folders = [name if name != "." else runs[0].name for name, runs in zip(folders, groups, strict=True)]
    alike = {name for name, count in Counter(names).items() if count > 1 or not name}
    for runs, each, name, folder in zip(groups, differs, names, folders, strict=True):
        seeds = sorted(runs, key=lambda run: (run.seed is None, run.seed or 0, run.name))
        yield Setting(sanitize_line(folder if name in alike else name, 500), each, tuple(seeds))


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Dotted keys without their group, where that is clear."""
    counts = Counter(key.rpartition(".")[2] for key in keys)
    return {key: last if counts[last := key.rpartition(".")[2]] == 1 else key for key in keys}


def _number(metrics: Mapping[str, Any] | None, metric: str) -> float:
    value = (metrics or {}).get(metric)
    return math.nan if value is None else float(value)
