"""Tables of a sweep for the report, Markdown and the console."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bertmon.compare.rates import LR_KEY, rate_windows
from bertmon.compare.results import NOT_STARTED, UNREADABLE, RunSummary, Setting, Sweep, short_names
from bertmon.metrics import wilson_interval
from bertmon.notation import format_duration, format_percent, format_rate
from bertmon.result import RESULT_FILE
from bertmon.sanitize import sanitize_line

TABLE_NOTE = (
    "Mean ± standard deviation over the runs of a setting. Did not learn: runs whose last predictions are no better "
    "than guessing (exact tests), with the 95 % interval of that rate. Flagged at step: the step from which a run had "
    "the doomed verdict that it ended with; median and range. Peak rate: the largest effective learning rate. Best: "
    "accuracy of the best evaluation. Time: mean per run. Saved: steps not trained because runs were stopped."
)


@dataclass(frozen=True, slots=True)
class Table:
    """Text in rows and columns; each cell is a single line."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, header: Iterable[str], rows: Iterable[Iterable[str]]) -> "Table":
        return cls(tuple(map(sanitize_line, header)), tuple(tuple(map(sanitize_line, row)) for row in rows))

    def markdown(self) -> str:
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        return "\n".join("| " + " | ".join(_escape_markdown(cell) for cell in line) + " |" for line in lines)

    def without_empty_columns(self) -> "Table":
        return self._columns([i for i in range(len(self.header)) if any(row[i] for row in self.rows)])

    def fitted(self, width: int, importance: Sequence[str]) -> "Table":
        """Drop columns, the last ones in `importance` first, until `plain` is at most `width` characters wide."""
        keep = list(range(len(self.header)))
        for name in reversed(importance):
            if sum(self._width(i) + 2 for i in keep) - 2 <= width:
                break
            keep = [i for i in keep if self.header[i] != name]
        return self._columns(keep)

    def plain(self) -> str:
        """The table in aligned columns, for a terminal."""
        widths = [self._width(i) for i in range(len(self.header))]
        lines = [self.header, *self.rows]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

    def _width(self, column: int) -> int:
        return max(len(line[column]) for line in [self.header, *self.rows])

    def _columns(self, columns: Sequence[int]) -> "Table":
        rows = tuple(tuple(row[i] for i in columns) for row in self.rows)
        return Table(tuple(self.header[i] for i in columns), rows)


def settings_table(sweep: Sweep, *, intervals: bool = True) -> Table:
    """A row per setting: its values and its outcome. intervals: add the interval of the share that did not learn."""
    header = ["setting"] if needs_names(sweep) else [*short_names(sweep.swept).values()]
    header += ["runs", "test accuracy", "did not learn", "verdict", "flagged at step", "peak rate", "best"]
    header += ["macro F1", "test loss", "time", "saved"]
    return Table.of(header, (_setting_row(sweep, setting, intervals) for setting in listed_settings(sweep)))


def listed_settings(sweep: Sweep) -> list[Setting]:
    """The settings in the table: once a run has ended, without those that have not started."""
    started = [setting for setting in sweep.settings if any(run.status != NOT_STARTED for run in setting.runs)]
    return started if sweep.ended else list(sweep.settings)


def runs_table(sweep: Sweep) -> Table:
    """A row per run."""
    header = ("run", "status", "test accuracy", "test loss", "verdict", "since step", "peak rate", "steps", "time")
    return Table.of(header, map(_run_row, sweep.runs))


def rates_table(sweep: Sweep) -> Table:
    """A row for each combination of the other swept keys: the rates at which all runs learned, and the sensitivity."""
    windows = rate_windows(sweep)
    short = short_names(sweep.swept)
    keys = [key for key in sweep.swept if key != LR_KEY]
    header = [*(short[key] for key in keys), "all runs learned at rates", "of rates", "learning-rate sensitivity"]
    rows = [
        (
            *(sweep.label(key, window.values[key]) for key in keys),
            window.text(),
            f"{len(window.all_learned)} of {len(window.rates)}",
            "" if math.isnan(window.sensitivity) else f"{window.sensitivity:.3f}",
        )
        for window in windows
    ]
    return Table.of(header, rows)


def unfinished_table(sweep: Sweep) -> Table:
    """A row for each run that stopped before its end."""
    rows = [(run.name, run.status, _steps(run), unfinished_reason(run)) for run in sweep.runs if run.unfinished]
    return Table.of(("run", "status", "steps", "why"), rows).without_empty_columns()


def needs_names(sweep: Sweep) -> bool:
    """Whether settings are listed by name: their values are not known, or do not distinguish them."""
    known = [setting.values for setting in sweep.settings if setting.values]
    return not known or len({tuple(map(str, values.values())) for values in known}) < len(known)


def count_verdicts(runs: Sequence[RunSummary]) -> str:
    """The verdict that all runs share, or the number of runs with each verdict."""
    counts = Counter(str(run.verdict or "not monitored") for run in runs)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())


def flagged_steps(runs: Sequence[RunSummary]) -> str:
    """Median and range of the steps at which runs were flagged."""
    steps = [run.flagged_step for run in runs if run.flagged_step is not None]
    if not steps:
        return ""
    middle = f"{statistics.median(steps):.0f}"
    return middle if min(steps) == max(steps) else f"{middle} ({min(steps)} to {max(steps)})"


def format_accuracy(setting: Setting) -> str:
    """Mean and standard deviation of the last test accuracy."""
    mean, deviation, _ = setting.mean("accuracy")
    return format_percent(mean, deviation)


def unfinished_reason(run: RunSummary) -> str:
    if run.status == UNREADABLE:
        return f"{run.run_dir}/{RESULT_FILE} is empty, corrupt, or not the result of a run"
    error = run.result.error if run.result else None
    return (error or "").strip().split("\n")[0]


def _setting_row(sweep: Sweep, setting: Setting, intervals: bool) -> tuple[str, ...]:
    ended, n = setting.ended, len(setting.runs)
    if needs_names(sweep):
        named = [setting.name]
    elif setting.values:
        named = [sweep.label(key, setting.values[key]) for key in sweep.swept]
    else:  # none of its runs has started
        named = [setting.name, *[""] * (len(sweep.swept) - 1)]
    peak = "" if math.isnan(setting.peak_effective_lr) else format_rate(setting.peak_effective_lr)
    if not ended:
        states = Counter(run.status for run in setting.runs)
        state = ", ".join(f"{count} {status}" if n > 1 else status for status, count in states.items())
        return (*named, str(n), state, "", "", "", peak, *[""] * 5)
    loss, loss_deviation, losses = setting.mean("loss")
    best, _, bests = setting.mean("accuracy", best=True)
    saved = sum(run.saved_steps for run in ended)
    return (
        *named,
        str(n) if len(ended) == n else f"{len(ended)} of {n}",
        format_accuracy(setting),
        _failure_rate(setting, intervals),
        count_verdicts(ended),
        flagged_steps(ended),
        peak,
        f"{format_percent(best)}{_of(bests, ended)}" if bests else "",
        format_percent(*setting.mean("f1_macro")[:2]),
        f"{loss:.3f}{_plus_minus(loss_deviation)}{_of(losses, ended)}" if losses else "",
        format_duration(setting.seconds),
        f"{saved} steps" if saved else "",
    )


def _run_row(run: RunSummary) -> tuple[str, ...]:
    result, loss = run.result, run.final("loss")
    peak = run.peak_effective_lr
    return (
        run.name,
        run.status,
        format_percent(run.final("accuracy")),
        "" if math.isnan(loss) else f"{loss:.3f}",
        str(run.verdict or ""),
        str(result.diagnosis.since_step) if result and result.diagnosis else "",
        "" if math.isnan(peak) else format_rate(peak),
        _steps(run),
        format_duration(run.seconds),
    )


def _steps(run: RunSummary) -> str:
    return f"{run.result.steps} of {run.result.total_steps}" if run.result and run.result.total_steps else ""


def _failure_rate(setting: Setting, interval: bool) -> str:
    """How many of the ended runs did not learn, with the interval of that rate."""
    failed, n = len(setting.runs_not_learned), len(setting.ended)
    if not interval:
        return f"{failed} of {n}"
    low, high = wilson_interval(failed, n)
    return f"{failed} of {n} ({100 * low:.0f} to {100 * high:.0f} %)"


def _of(count: int, ended: Sequence[RunSummary]) -> str:
    """The number of runs that a mean includes, if not all: a run that diverged can lack a loss."""
    return f" ({count} of {len(ended)})" if count < len(ended) else ""


def _plus_minus(deviation: float) -> str:
    return "" if math.isnan(deviation) else f" ± {deviation:.3f}"


def _escape_markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>")
