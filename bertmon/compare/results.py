"""The runs of a sweep, grouped by setting. Imports no torch.

A setting is a set of config values; its runs differ only in their seed. Reads the files of runs (result.json,
history.npz) and of a launch (sweep.json), including those of version 0.1. Text is in summary, figures in plots.
"""

import json
import logging
import math
import statistics
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bertmon.config import RENAMED_KEYS, default_identity, run_identity
from bertmon.errors import InputError
from bertmon.monitor.diagnosis import Verdict
from bertmon.monitor.history import HISTORY_FILE, History
from bertmon.notation import format_value
from bertmon.result import RESULT_FILE, SWEEP_FILE, RunResult, Status, is_running, run_names
from bertmon.sanitize import sanitize_line

log = logging.getLogger(__name__)

NOT_STARTED, UNREADABLE = "not started", "unreadable"
"""Statuses in addition to those of RunResult: a run that has not started, and one whose result.json is corrupt."""

_MAX_PLAN_BYTES = 10**9


@dataclass(frozen=True, eq=False)
class RunSummary:
    """One run. `result` is None for a run that has not started, or whose result.json is corrupt."""

    run_dir: Path
    name: str  # path below the sweep's folder; with several sweeps, it starts with that folder's name
    result: RunResult | None
    started: bool = True

    @property
    def status(self) -> str:
        if self.result is None:
            return UNREADABLE if self.started else NOT_STARTED
        return str(self.result.status)

    @property
    def unfinished(self) -> bool:
        """Whether the run stopped before its end."""
        return self.status == UNREADABLE or (self.result is not None and self.result.status.unfinished)

    @property
    def ended(self) -> bool:
        return self.result is not None and self.result.ended

    @property
    def seed(self) -> int | None:
        return self.result.seed if self.result else None

    @property
    def overrides(self) -> Mapping[str, Any]:
        """The values that distinguish the run's setting from the others of its launch, by dotted key."""
        overrides = self.result.overrides if self.result else {}
        return {RENAMED_KEYS.get(key, key): value for key, value in overrides.items()}

    @cached_property
    def values(self) -> Mapping[str, Any]:
        """The config of the run's setting, by dotted key; empty if it is not known yet."""
        if self.result is None or self.result.config is None:
            return {}
        known = run_identity(self.result.config)
        values = default_identity(known) | known  # keys that the run's version did not have yet get their defaults
        del values["seed"]
        return values

    @cached_property
    def group_key(self) -> str:
        """A key that is the same for runs that differ only in their seed."""
        if not self.values:
            return str(self.run_dir.parent)
        fingerprint = self.result.data.fingerprint if self.result and self.result.data else None
        return json.dumps([self.values, fingerprint], sort_keys=True)

    @property
    def verdict(self) -> Verdict | None:
        """The last verdict; None for a run that was not monitored."""
        return self.result.diagnosis.verdict if self.result and self.result.diagnosis else None

    @property
    def flagged_step(self) -> int | None:
        """The step since which the run's final verdict holds, if that verdict is doomed."""
        return self.result.flagged_step if self.result else None

    @property
    def flagged_fraction(self) -> float:
        """`flagged_step` as a fraction of the planned steps; nan if there is none."""
        if self.result is None or self.flagged_step is None or not self.result.total_steps:
            return math.nan
        return self.flagged_step / self.result.total_steps

    def final(self, metric: str) -> float:
        """A metric of the last evaluation, a field of EvalResult; nan if it is not known."""
        return getattr(self.result.final, metric) if self.result and self.result.final else math.nan

    def best(self, metric: str) -> float:
        """A metric of the best evaluation; nan if it is not known."""
        return getattr(self.result.best, metric) if self.result and self.result.best else math.nan

    @property
    def did_not_learn(self) -> bool | None:
        """Whether the last predictions are no better than guessing; None if the run has not ended."""
        return self.result.did_not_learn if self.result else None

    @property
    def constant_prediction(self) -> str | None:
        """The class that a run whose training loss is below chance predicts for every text; None for any other run."""
        if self.verdict is not Verdict.healthy or not self.result or not self.result.final or not self.result.data:
            return None
        label, names = self.result.final.constant_prediction, self.result.data.label_names
        return names[label] if label is not None and label < len(names) else None

    @property
    def has_rare_classes(self) -> bool:
        """Whether the most frequent class has at least twice its equal share of the test texts, or three quarters."""
        data = self.result.data if self.result else None
        return data is not None and data.majority_share >= min(2 / max(len(data.label_names), 1), 0.75)

    @property
    def seconds(self) -> float:
        """Duration from start to end; nan if it is not known."""
        return self.result.seconds if self.result and self.result.seconds is not None else math.nan

    @property
    def saved_steps(self) -> int:
        """Steps that were not trained because the run was stopped."""
        return self.result.saved_steps if self.result else 0

    @property
    def peak_effective_lr(self) -> float:
        """The largest effective learning rate of the whole plan; nan if it is not known."""
        return self._plan[0]

    @property
    def peak_lr(self) -> float:
        """The largest nominal learning rate of the whole plan; nan if it is not known."""
        return self._plan[1]

    @property
    def chance_loss(self) -> float:
        """Loss of a model that ignores the texts; nan if it is not known."""
        return self._plan[2]

    @cached_property
    def _plan(self) -> tuple[float, float, float]:
        """Peak effective rate, peak nominal rate and chance loss, without reading the whole history."""
        path, unknown = self.run_dir / HISTORY_FILE, (math.nan, math.nan, math.nan)
        try:
            if not path.is_file():
                return unknown
            with zipfile.ZipFile(path) as packed:
                sizes = (packed.getinfo(f"{name}.npy").file_size for name in ("effective_lr", "lr", "about"))
                if sum(sizes) > _MAX_PLAN_BYTES:
                    return unknown
            with np.load(path, allow_pickle=False) as stored:
                chance = float(json.loads(str(stored["about"]))["chance_loss"])
                return float(stored["effective_lr"].max()), float(stored["lr"].max()), chance
        except Exception:  # `history` reports a corrupt file; numpy and zipfile raise a dozen kinds of errors
            return unknown

    @cached_property
    def history(self) -> History | None:
        """The measurements; None if the file is missing, or if it is corrupt, which is logged."""
        path = self.run_dir / HISTORY_FILE
        if not path.exists():
            return None
        try:
            return History.load(path)
        except (OSError, ValueError) as error:
            log.warning("could not read %s (%s); this run has no curves", sanitize_line(path), sanitize_line(error))
            return None


@dataclass(frozen=True, eq=False)
class Setting:
    """The runs of one set of config values, by seed."""

    name: str
    values: Mapping[str, Any]  # those that differ between the settings of the sweep, by dotted key
    runs: tuple[RunSummary, ...]

    @cached_property
    def ended(self) -> list[RunSummary]:
        return [run for run in self.runs if run.ended]

    @cached_property
    def runs_not_learned(self) -> list[RunSummary]:
        return [run for run in self.runs if run.did_not_learn]

    def mean(self, metric: str, *, best: bool = False) -> tuple[float, float, int]:
        """Mean and standard deviation (of the sample; nan for one run) over the ended runs that have the metric, and
        their number."""
        values = [run.best(metric) if best else run.final(metric) for run in self.ended]
        values = [value for value in values if not math.isnan(value)]
        mean = statistics.fmean(values) if values else math.nan
        return mean, statistics.stdev(values) if len(values) > 1 else math.nan, len(values)

    def sort_key(self) -> float:
        """Mean objective of the ended runs (RunResult.objective); settings without one come first."""
        objectives = [run.result.objective for run in self.ended if run.result]
        return statistics.fmean(objectives) if objectives else -math.inf

    @property
    def saves_best(self) -> bool:
        """Whether `sort_key` is computed from best evaluations, whose models are saved, instead of last ones."""
        return any(run.result is not None and run.result.saves_best for run in self.ended)

    @property
    def criterion(self) -> str:
        """The metric behind `sort_key` in words; empty for the accuracy on the test texts."""
        result = next((run.result for run in self.ended if run.result), None)
        if result is None or (result.metric == "accuracy" and not result.validations):
            return ""
        name = {"f1_macro": "macro F1", "mcc": "Matthews correlation"}.get(result.metric, result.metric)
        return f"{name} on the {'validation' if result.validations else 'test'} texts"

    @property
    def seconds(self) -> float:
        """Mean time of the ended runs, from start to end; nan if there is none."""
        times = [run.seconds for run in self.ended if not math.isnan(run.seconds)]
        return statistics.fmean(times) if times else math.nan

    @cached_property
    def peak_effective_lr(self) -> float:
        """The peak of the first run that has one: the runs of a setting share their plan."""
        return next((peak for run in self.runs if not math.isnan(peak := run.peak_effective_lr)), math.nan)


@dataclass(frozen=True, eq=False)
class Sweep:
    """All runs of one launch, or of several."""

    folders: tuple[Path, ...]
    settings: tuple[Setting, ...]

    @cached_property
    def runs(self) -> list[RunSummary]:
        return [run for setting in self.settings for run in setting.runs]

    @cached_property
    def ended(self) -> list[RunSummary]:
        return [run for run in self.runs if run.ended]

    @cached_property
    def swept(self) -> list[str]:
        """Dotted keys that differ between settings, starting with the keys that were swept, in their order."""
        return list(dict.fromkeys(key for setting in self.settings for key in setting.values))

    @cached_property
    def values_are_unique(self) -> bool:
        """Whether the swept keys distinguish all settings; they do not if only the data differ."""
        values = [tuple(setting.values.items()) for setting in self.settings if setting.values]
        return len(set(values)) == len(values)

    def label(self, key: str, value: Any) -> str:
        """The text for a value of a swept key."""
        return self._labels[key].get(value, format_value(value))

    @cached_property
    def _labels(self) -> dict[str, dict[Any, str]]:
        return {key: _value_labels([s.values[key] for s in self.settings if key in s.values]) for key in self.swept}

    @cached_property
    def min_test_texts(self) -> tuple[int, int] | None:
        """The smallest number of test texts that is too small, and the number needed; None if all runs have enough."""
        data = [run.result.data for run in self.ended if run.result and run.result.data]
        too_few = {(each.test_texts, each.needed_texts) for each in data if each.needed_texts}
        return min(((texts, needed) for texts, needed in too_few if needed), default=None)


def read_sweep(folders: Sequence[Path]) -> Sweep:
    """The runs below the folders, each once, including those that have not started.

    Raises InputError for a folder that holds neither a run nor a sweep.json.
    """
    runs: dict[Path, RunSummary] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: expected the folder of a sweep, such as multirun/2026-11-23_07-17-49.")
        below = list(_read_runs(folder, prefix=f"{folder.resolve().name}/" if len(folders) > 1 else ""))
        if not below and not (folder / SWEEP_FILE).exists():
            raise InputError(f"{folder}: expected a run, but there is no {RESULT_FILE} in it or below it.")
        for run in below:
            runs.setdefault(run.run_dir.resolve(), run)
    return Sweep(tuple(folders), tuple(_named_settings(_group_runs(list(runs.values())))))


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Dotted keys without their group, if the result is unique."""
    keys = list(keys)
    counts = Counter(key.rpartition(".")[2] for key in keys)
    return {key: last if counts[last := key.rpartition(".")[2]] == 1 else key for key in keys}


def _read_runs(folder: Path, prefix: str) -> Iterable[RunSummary]:
    started = {str(path.parent.relative_to(folder)): path.parent for path in folder.rglob(RESULT_FILE)}
    for name in dict.fromkeys([*run_names(folder), *sorted(started)]):
        run_dir = started.get(name)
        result = RunResult.read(run_dir) if run_dir else None
        if run_dir and result and result.status is Status.running and not is_running(run_dir):
            result = RunResult.read(run_dir)  # it may have ended since
            if result and result.status is Status.running:
                result.status = Status.interrupted
                result.error = "the process died without writing a result (killed?)"
        shown = sanitize_line(prefix + (name if name != "." else folder.resolve().name), 500)
        yield RunSummary(folder / name, shown, result, started=run_dir is not None)


def _group_runs(runs: Sequence[RunSummary]) -> list[list[RunSummary]]:
    """Runs by setting. A run without a known config belongs to the setting of its folder if there is only one."""
    in_folder: dict[Path, set[str]] = {}
    for run in runs:
        if run.values:
            in_folder.setdefault(run.run_dir.parent, set()).add(run.group_key)
    groups: dict[str, list[RunSummary]] = {}
    for run in runs:
        known = in_folder.get(run.run_dir.parent, set())
        key = next(iter(known)) if not run.values and len(known) == 1 else run.group_key
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _named_settings(groups: Sequence[Sequence[RunSummary]]) -> Iterable[Setting]:
    """The settings, named by the keys that differ, or by their folders if no key distinguishes them."""
    known = [next((run for run in runs if run.values), None) for runs in groups]
    keys = _differing_keys([run for run in known if run])
    values = [
        {key: _hashable(run.overrides.get(key, run.values.get(key))) for key in keys} if run else {} for run in known
    ]
    short = short_names(keys)
    labels = {key: _value_labels([each[key] for each in values if key in each]) for key in keys}
    names = [", ".join(f"{short[key]}={labels[key][value]}" for key, value in each.items()) for each in values]
    folders = [min({str(Path(run.name).parent) for run in runs}) for runs in groups]
    folders = [name if name != "." else runs[0].name for name, runs in zip(folders, groups, strict=True)]
    ambiguous = {name for name, count in Counter(names).items() if count > 1 or not name}
    for runs, each, name, folder in zip(groups, values, names, folders, strict=True):
        by_seed = sorted(runs, key=lambda run: (run.seed is None, run.seed or 0, run.name))
        yield Setting(sanitize_line(folder if name in ambiguous else name, 500), each, tuple(by_seed))


def _differing_keys(runs: Sequence[RunSummary]) -> list[str]:
    """The keys that were swept, then all others that differ and that the swept ones do not explain.

    runs: one per setting. `model=bert_small` explains every key below `model`, unless a run of another launch has no
    such choice.
    """
    swept = dict.fromkeys(key for run in runs for key in run.overrides)
    swept = {key: None for key in swept if all(key in run.overrides or key in run.values for run in runs)}
    differing = []
    for key in dict.fromkeys(key for run in runs for key in run.values):
        explained = "experiment" in swept or any(key == other or key.startswith(f"{other}.") for other in swept)
        if not explained and len({json.dumps(run.values.get(key)) for run in runs}) > 1:
            differing.append(key)
    return [*swept, *differing]


def _value_labels(values: Sequence[Any]) -> dict[Any, str]:
    """Labels by value: only the last part of paths, if that distinguishes them."""
    short = {value: format_value(value) for value in values}
    return short if len(set(short.values())) == len(short) else {value: str(value) for value in short}


def _hashable(value: Any) -> Any:
    """The value in a form that can be the key of a dict."""
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    return json.dumps(value) if isinstance(value, dict) else value
