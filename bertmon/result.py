"""result.json: the record of a run, written even if the run fails. Only RunResult writes and reads it."""

import dataclasses
import json
import logging
import math
import platform
import re
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from bertmon.errors import InputError, storage_errors
from bertmon.metrics import EvalResult, best_evaluation, did_not_learn, texts_needed
from bertmon.monitor.diagnosis import Diagnosis
from bertmon.sanitize import has_control_characters
from bertmon.storage import atomic_write, exclusive, is_locked, read_json

log = logging.getLogger(__name__)

RESULT_FILE = "result.json"
LOCK_FILE = ".lock"
"""Locked while a process works on the run."""
MODEL_DIR = "model"
"""In a run's folder: the saved model, in transformers' format."""
SWEEP_FILE = "sweep.json"
"""In a sweep's folder: its runs and the command that started it."""

_LIBRARIES = ("bertmon", "hydra-core", "numpy", "tokenizers", "torch", "transformers")
_RENAMED_FIELDS = {"differs": "overrides", "seconds_before": "previous_seconds", "steps_planned": "total_steps"}
"""Fields as named by version 0.1, and their current names."""


class Terminated(SystemExit):
    """SIGTERM or a launcher's signal: the run is interrupted. Any other SystemExit is a failure of the run."""


class Status(StrEnum):
    """The state of a run. The states after `interrupted` are final; a run that raised an exception is `failed`."""

    running = "running"
    failed = "failed"
    interrupted = "interrupted"
    finished = "finished"
    stopped = "stopped"  # it was doomed (monitor.on_doomed=stop) or behind (monitor.on_behind=stop)
    diverged = "diverged"  # a loss or gradient became infinite or nan

    @property
    def ended(self) -> bool:
        return self in (Status.finished, Status.stopped, Status.diverged)

    @property
    def unfinished(self) -> bool:
        return self in (Status.failed, Status.interrupted)


@dataclass(frozen=True, slots=True)
class DataSummary:
    """The properties of a run's data that its result depends on."""

    fingerprint: str
    train_texts: int
    test_texts: int
    label_names: tuple[str, ...]
    majority_share: float  # of the test split's most frequent class, in (0, 1]
    validation_texts: int = 0

    @property
    def needed_texts(self) -> int | None:
        """Number of test texts needed to distinguish learning from guessing; None if there are enough."""
        needed = texts_needed(self.majority_share)
        return needed if needed > self.test_texts else None

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of dataclasses.asdict. Raises KeyError, TypeError and ValueError."""
        share = float(fields["majority_share"] if "majority_share" in fields else fields["majority"])
        train_texts, test_texts = int(fields.get("train_texts", 0)), int(fields["test_texts"])
        if not 0 < share <= 1 or test_texts < 1:
            raise ValueError("majority_share or test_texts out of range")
        names = tuple(map(str, fields.get("label_names", ())))
        validation_texts = int(fields.get("validation_texts", 0))
        return cls(str(fields.get("fingerprint", "")), train_texts, test_texts, names, share, validation_texts)


@dataclass(kw_only=True, slots=True)
class RunResult:
    """The settings and outcome of one run. Fields are set while it runs; None means not known yet."""

    status: Status = Status.running
    started: str = ""  # local time, ISO 8601
    seconds: float | None = None  # from start to end, including those before a resume
    previous_seconds: float = 0.0  # of training and evaluation before the last resume
    python: str = ""
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    experiment: str | None = None
    seed: int | None = None
    overrides: dict[str, Any] = field(default_factory=dict)  # that distinguish the run's setting, by dotted key
    config: dict[str, Any] | None = None  # the complete RunConfig
    device: dict[str, Any] = field(default_factory=dict)
    processes: int = 1
    parameters: int | None = None
    data: DataSummary | None = None
    steps: int = 0  # updates done
    total_steps: int | None = None  # updates planned
    evaluations: list[EvalResult] = field(default_factory=list)  # of the test split
    validations: list[EvalResult] = field(default_factory=list)  # of the validation split, at the same steps
    metric: str = "accuracy"  # selects the best evaluation; a field of EvalResult
    model_dir: str | None = None  # of the saved model, relative to the run's folder
    warnings: list[str] = field(default_factory=list)  # about the data
    timings: dict[str, float] = field(default_factory=dict)  # train_seconds, eval_seconds, compile_seconds
    diagnosis: Diagnosis | None = None  # None: the run was not monitored
    error: str | None = None
    traceback: str | None = None

    @property
    def final(self) -> EvalResult | None:
        """The last evaluation."""
        return self.evaluations[-1] if self.evaluations else None

    @property
    def best(self) -> EvalResult | None:
        """The test evaluation at the step whose metric is best, on the validation split if there is one."""
        best = best_evaluation(self.validations or self.evaluations, self.metric)
        return next((each for each in self.evaluations if best and each.step == best.step), None)

    @property
    def ended(self) -> bool:
        """Whether the run reached its end and was evaluated."""
        return self.status.ended and self.final is not None and self.data is not None

    @property
    def did_not_learn(self) -> bool | None:
        """Whether the last predictions are no better than guessing (`metrics.did_not_learn`); None before the end."""
        if not self.ended or self.final is None or self.data is None:
            return None
        return did_not_learn(self.final, self.data.majority_share, self.data.test_texts)

    @property
    def flagged_step(self) -> int | None:
        """Step at which the run received its final verdict, if that verdict means it is doomed."""
        return self.diagnosis.since_step if self.diagnosis and self.diagnosis.verdict.doomed else None

    @property
    def saved_steps(self) -> int:
        """Planned steps that a stopped run did not make."""
        return self.total_steps - self.steps if self.status is Status.stopped and self.total_steps else 0

    @property
    def objective(self) -> float:
        """The objective of a sweeper: the metric of the last evaluation, or of the best one if its model was saved.

        Computed on the validation split if there is one. For a run that diverged, or was stopped as doomed, it is
        limited to the score of guessing: the majority share for accuracy, 0 for other metrics.
        """
        assert self.data is not None
        evaluations = self.validations or self.evaluations
        chosen = best_evaluation(evaluations, self.metric) if self.saves_best else None
        value = float(getattr(chosen or evaluations[-1], self.metric))
        guessing = self.data.majority_share if self.metric == "accuracy" else 0.0
        failed = self.status is Status.diverged or (self.status is Status.stopped and self.flagged_step is not None)
        return min(value, guessing) if failed else value

    @property
    def saves_best(self) -> bool:
        """Whether the saved model is the one of the best evaluation."""
        return ((self.config or {}).get("train") or {}).get("save_model") == "best"

    def to_json(self) -> bytes:
        """The content of result.json. nan and infinity, which JSON lacks, become null."""
        fields = dataclasses.asdict(self)
        diagnosis = fields.pop("diagnosis") or {}
        verdict = {"verdict": diagnosis.pop("verdict", None), "verdict_step": diagnosis.pop("since_step", None)}
        fields |= verdict | {key: diagnosis.get(key) for key in ("findings", "cause", "advice")}
        metrics = {"final": self.final, "best": self.best}
        fields["metrics"] = {name: dataclasses.asdict(each) for name, each in metrics.items() if each}
        content = json.dumps(_nan_to_null(fields), indent=2, allow_nan=False, ensure_ascii=False)
        # put each row of a confusion matrix on one line; JSON strings contain no line breaks that could match
        rows = re.compile(r"\[\n\s+(\d+(?:,\n\s+\d+)*)\n\s+\]")
        return (rows.sub(lambda row: f"[{' '.join(row[1].split())}]", content) + "\n").encode()

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The result in the JSON object of a result.json, also of version 0.1. Raises ValueError if it is invalid."""
        try:
            return cls._from_dict({_RENAMED_FIELDS.get(key, key): value for key, value in fields.items()})
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(f"not the result of a run ({type(error).__name__}: {error})") from None

    @classmethod
    def _from_dict(cls, fields: Mapping[str, Any]) -> Self:
        status = fields["status"]
        result = cls(status=Status.finished if status == "ok" else Status(status))
        result.started = str(fields.get("started", ""))
        result.seconds = _finite_or_none(fields.get("seconds"))
        result.previous_seconds = float(fields.get("previous_seconds") or 0.0)
        result.python, result.machine = str(fields.get("python", "")), str(fields.get("machine", ""))
        result.versions = dict(fields.get("versions") or {})
        result.experiment = fields.get("experiment")
        result.seed = None if fields.get("seed") is None else int(fields["seed"])
        result.overrides = dict(fields.get("overrides") or {})
        config = fields.get("config", fields.get("settings"))
        result.config = None if config is None else dict(config)
        device = fields.get("device") or {}
        result.device = {"type": device} if isinstance(device, str) else dict(device)
        result.processes = int(fields.get("processes", 1))
        result.parameters = None if fields.get("parameters") is None else int(fields["parameters"])
        result.data = DataSummary.from_dict(fields["data"]) if fields.get("data") else None
        result.steps = int(fields.get("steps") or 0)
        result.total_steps = None if fields.get("total_steps") is None else int(fields["total_steps"])
        result.evaluations = [EvalResult.from_dict(each) for each in fields.get("evaluations") or ()]
        result.validations = [EvalResult.from_dict(each) for each in fields.get("validations") or ()]
        result.metric = str(fields.get("metric", "accuracy"))
        getattr(EvalResult(0, 0.0, 0.0), result.metric)
        result.model_dir = _string_or_none(fields.get("model_dir"))
        result.warnings = list(map(str, fields.get("warnings") or ()))
        result.timings = {key: float(value) for key, value in (fields.get("timings") or {}).items()}
        if fields.get("verdict") is not None:
            result.diagnosis = Diagnosis.from_dict({**fields, "since_step": fields["verdict_step"]})
        result.error, result.traceback = (
            None if fields.get(key) is None else str(fields[key]) for key in ("error", "traceback")
        )
        if result.status.ended:
            complete = result.total_steps is not None and result.final is not None and result.data is not None
            if not (complete and 0 <= result.steps <= (result.total_steps or 0)):
                raise ValueError("steps, evaluations or data are missing")
        return result

    @classmethod
    def read(cls, run_dir: Path | str) -> Self | None:
        """The result in a run's folder; None if the file is missing, incomplete, corrupt or not a result."""
        try:
            return cls.from_dict(read_json(Path(run_dir) / RESULT_FILE))
        except ValueError:
            return None

    @classmethod
    def read_ended(cls, run_dir: Path) -> Self | None:
        """The result of a run that has ended; None otherwise."""
        result = cls.read(run_dir)
        return result if result and result.ended else None


@contextmanager
def recording(run_dir: Path, *, resume: bool = False) -> Iterator[RunResult]:
    """Write result.json at the start of the body and again, complete, at its end, even after an exception.

    Yields the RunResult for the body to fill. After an exception, its status is "failed", with the error and its
    traceback; after Ctrl-C or SIGTERM, "interrupted". Exceptions are raised again, but SystemExit as a RuntimeError,
    because it would end the whole sweep.
    resume: the folder can contain an interrupted run.
    Raises InputError if the folder already contains a run or another process is running it, StorageError if it cannot
    be written.
    """
    with exclusive(run_dir / LOCK_FILE, f"{run_dir}: another process is already running this run."):
        path = run_dir / RESULT_FILE
        if resume and RunResult.read_ended(run_dir):
            raise InputError(f"{run_dir}: another process has just ended this run.")
        try:
            path.touch(exist_ok=resume)  # if two runs start at once, one is rejected
        except FileExistsError:
            raise InputError(f"{run_dir} already contains a run: choose another folder or delete it.") from None
        started = time.monotonic()
        result = RunResult(
            started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            python=platform.python_version(),
            machine=platform.platform(),
            versions={name: metadata.version(name) for name in _LIBRARIES},
        )
        _write(path, result)
        try:
            yield result
        except (KeyboardInterrupt, Terminated):
            result.status = Status.interrupted
            log.error("interrupted")
            raise
        except (Exception, SystemExit) as error:
            result.status = Status.failed
            result.error, result.traceback = f"{type(error).__name__}: {error}", traceback.format_exc()
            log.error(str(error) if isinstance(error, InputError) else result.traceback)
            if not isinstance(error, SystemExit):
                raise
            exit_code = error.code
        finally:
            result.seconds = round(time.monotonic() - started + result.previous_seconds, 2)
            _write(path, result)
        if result.status is Status.failed:
            raise RuntimeError(f"the run called sys.exit({exit_code})")


def is_running(run_dir: Path) -> bool:
    """Whether a process is working on the run; True also if that cannot be determined."""
    return is_locked(run_dir / LOCK_FILE)


@dataclass(frozen=True, slots=True)
class Launch:
    """Some runs of a sweep, and the command that started them."""

    runs: tuple[str, ...] = ()  # folders relative to the sweep's; empty if a sweeper chooses them during the sweep
    command: tuple[str, ...] | None = None  # arguments that it was started with
    directory: str | None = None  # where it was started

    @classmethod
    def from_dict(cls, fields: object) -> "Launch | None":
        """The launch with these fields; None if they are not valid."""
        if not isinstance(fields, dict):
            return None
        runs, command, directory = (fields.get(key) for key in ("runs", "command", "directory"))
        if not (isinstance(runs, list) and all(map(_is_below, runs))):
            return None
        if not (isinstance(command, list) and all(isinstance(word, str) for word in command)):
            command = None
        return cls(tuple(runs), None if command is None else tuple(command), _string_or_none(directory))


@dataclass(frozen=True, slots=True)
class SweepFile:
    """The content of sweep.json: all runs in its folder, in starting order, and the commands that start them.

    joined: later launches that added runs; empty if there was only one launch.
    """

    runs: tuple[str, ...] = ()
    command: tuple[str, ...] | None = None
    directory: str | None = None
    joined: tuple[Launch, ...] = ()

    @classmethod
    def read(cls, sweep_dir: Path) -> Self | None:
        """The content of sweep.json; None if the file is missing, incomplete, corrupt or something else."""
        fields = read_json(sweep_dir / SWEEP_FILE)
        combined = Launch.from_dict(fields)
        if combined is None:
            return None
        later = fields.get("joined")
        joined = [Launch.from_dict(each) for each in later] if isinstance(later, list) else []
        return cls(combined.runs, combined.command, combined.directory, tuple(launch for launch in joined if launch))

    @property
    def launches(self) -> tuple[Launch, ...]:
        """All launches, each with its own runs only."""
        others = {run for launch in self.joined for run in launch.runs}
        own = tuple(run for run in self.runs if run not in others)
        return (Launch(own, self.command, self.directory), *self.joined)

    def with_launch(self, launch: Launch) -> "SweepFile":
        """A copy with another launch added, which replaces earlier launches whose runs it includes."""
        runs = set(launch.runs)
        launches = [each for each in self.launches if not runs.issuperset(each.runs)]
        if not any(runs and runs.issubset(each.runs) for each in launches):
            launches.append(launch)
        first, *joined = launches
        all_runs = tuple(dict.fromkeys([*self.runs, *launch.runs]))
        return SweepFile(all_runs, first.command, first.directory, tuple(joined))

    def write(self, sweep_dir: Path) -> None:
        """Write sweep.json. Raises OSError."""
        fields = dataclasses.asdict(self)
        if not self.joined:
            del fields["joined"]
        atomic_write(sweep_dir / SWEEP_FILE, (json.dumps(fields, indent=1) + "\n").encode())


def run_names(sweep_dir: Path) -> Sequence[str]:
    """The planned runs of a sweep; empty if there is no valid sweep.json."""
    sweep = SweepFile.read(sweep_dir)
    return sweep.runs if sweep else ()


def _is_below(name: object) -> bool:
    """Whether `name` is a relative path that stays below its base folder."""
    if not isinstance(name, str) or has_control_characters(name) or Path(name).is_absolute():
        return False
    return all(part != ".." and len(part.encode()) <= 255 for part in Path(name).parts)


def _write(path: Path, result: RunResult) -> None:
    with storage_errors(path):
        atomic_write(path, result.to_json())


def _finite_or_none(value: Any) -> float | None:
    return None if value is None or not math.isfinite(float(value)) else float(value)


def _string_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _nan_to_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nan_to_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
