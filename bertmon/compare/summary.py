"""A sweep in text: conclusions in plain sentences, and tables for the report, Markdown and the console. Pure."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bertmon.compare.advice import advise
from bertmon.compare.rates import LR_KEY, rate_windows
from bertmon.compare.results import UNREADABLE, WAITING, RunSummary, Setting, Sweep, short_names
from bertmon.metrics import wilson_interval
from bertmon.notation import format_duration, format_percent, format_rate
from bertmon.result import RESULT_FILE, Status
from bertmon.sanitize import sanitize_line

TABLE_NOTE = (
    "Mean ± standard deviation over the runs of a setting. Did not learn: exact tests cannot tell the last predictions "
    "from guessing; with the 95 % interval of the rate. Flagged at step: since when the doomed verdict that a run "
    "ended with was known; median and range. Peak rate: the largest effective learning rate. Best: accuracy of the "
    "best evaluation. Time: mean of a run. Saved: steps that all stopped runs were spared."
)

_MAX_NAMED = 3  # settings that are named one by one
_MAX_CONSOLE_ROWS = 40
_STATES = {WAITING: "not started"}
_VERDICT_STYLES = {
    "healthy": "green",
    "undecided": "bright_black",
    "slow": "yellow",
    "not learning": "red",
    "collapsed": "red",
    "diverged": "red",
}


@dataclass(frozen=True, slots=True)
class Table:
    """Text in rows and columns, each cell fit for one line."""

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
        """At most `width` characters wide as `plain`: of the columns named in `importance`, the last ones go first."""
        keep = list(range(len(self.header)))
        for name in reversed(importance):
            if sum(self._width(i) + 2 for i in keep) - 2 <= width:
                break
            keep = [i for i in keep if self.header[i] != name]
        return self._columns(keep)

    def plain(self) -> str:
        """In columns of one width, for a terminal."""
        widths = [self._width(i) for i in range(len(self.header))]
        lines = [self.header, *self.rows]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

    def _width(self, column: int) -> int:
        return max(len(line[column]) for line in [self.header, *self.rows])

    def _columns(self, columns: Sequence[int]) -> "Table":
        rows = tuple(tuple(row[i] for i in columns) for row in self.rows)
        return Table(tuple(self.header[i] for i in columns), rows)


def settings_table(sweep: Sweep, *, intervals: bool = True) -> Table:
    """A row a setting: its values, and what came of it. intervals: of the rates of runs that did not learn."""
    header = ["setting"] if needs_names(sweep) else [*short_names(sweep.swept).values()]
    header += ["runs", "test accuracy", "did not learn", "verdict", "flagged at step", "peak rate", "best"]
    header += ["macro F1", "test loss", "time", "saved"]
    return Table.of(header, (_setting_row(sweep, setting, intervals) for setting in listed_settings(sweep)))


def listed_settings(sweep: Sweep) -> list[Setting]:
    """The settings in the table: once a run has ended, without those that have not started."""
    started = [setting for setting in sweep.settings if any(run.status != WAITING for run in setting.runs)]
    return started if sweep.ended else list(sweep.settings)


def runs_table(sweep: Sweep) -> Table:
    """A row a run."""
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
    """A row for each run that stopped without coming to its end."""
    rows = [(run.name, run.status, _reason(run)) for run in sweep.runs if run.broken]
    return Table.of(("run", "status", "why"), rows)


def conclusions(sweep: Sweep) -> list[str]:
    """What the sweep shows, in plain sentences."""
    unfinished = _unfinished(sweep)
    if not sweep.ended:
        return [unfinished or "No run has ended yet."]
    sentences = [_best(sweep)]
    if sweep.min_test_texts:
        texts, needed = sweep.min_test_texts
        sentences.append(
            f"{texts} test texts are too few to tell learning from guessing: at least {needed} are needed."
        )
    else:
        sentences += _failures(sweep)
    sentences += _windows(sweep)
    if unfinished:
        sentences.append(unfinished)
    return [sanitize_line(sentence, 2000) for sentence in sentences]


def verdict_sentence(run: RunSummary) -> str:
    """The verdict of one run, with its reasons."""
    diagnosis = run.result.diagnosis if run.result else None
    if diagnosis is None:
        return "The run was not watched."
    return f"Verdict: {diagnosis.verdict} since step {diagnosis.since_step}" + (
        f": {text}." if (text := diagnosis.findings_text()) else "."
    )


def console_summary(sweep: Sweep) -> str:
    """The whole answer, for standard output: as wide as the terminal, verdicts in color unless NO_COLOR is set."""
    from rich.console import Console  # here, since a run that ends needs no console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    table = settings_table(sweep, intervals=False).without_empty_columns()
    note, listed = "", listed_settings(sweep)
    if len(table.rows) > _MAX_CONSOLE_ROWS:
        best = sorted(range(len(table.rows)), key=lambda row: -listed[row].sort_key())[:_MAX_CONSOLE_ROWS]
        note = f"(the best {_MAX_CONSOLE_ROWS} of {len(table.rows)} settings)"
        table = Table(table.header, tuple(table.rows[row] for row in best))
    if console.is_terminal:
        importance = ("test accuracy", "verdict", "did not learn", "flagged at step", "runs", "peak rate")
        table = table.fitted(console.width, (*importance, "saved", "time", "test loss", "macro F1", "best"))
    lines = [line for line in ("\n".join([table.plain(), note]), *conclusions(sweep)) if line]
    text = Text("\n".join(line.rstrip("\n") for line in lines))
    for verdict, style in _VERDICT_STYLES.items():
        text.highlight_words([verdict], style)
    with console.capture() as capture:
        console.print(text)
    return capture.get().rstrip("\n")


def progress_line(sweep: Sweep) -> str:
    """How far a sweep has come when its next run starts, in one line; empty for a single run."""
    waiting = [run for run in sweep.runs if run.status == WAITING]
    running = [run for run in sweep.runs if run.status == Status.running]
    if len(sweep.runs) < 2 or not waiting:
        return ""
    line = f"run {len(sweep.runs) - len(waiting) + 1} of {len(sweep.runs)}"
    if times := [run.seconds for run in sweep.ended if not math.isnan(run.seconds)]:
        left = statistics.fmean(times) * len(waiting) / (len(running) + 1)
        line += f", about {format_duration(left)} left; so far {count_verdicts(sweep.ended)}"
    broken = sum(run.broken for run in sweep.runs)
    return line + (f", {broken} unfinished" if broken else "")


def needs_names(sweep: Sweep) -> bool:
    """Whether settings go by their names: no key tells them apart, or runs do not know theirs."""
    known = [setting.values for setting in sweep.settings if setting.values]
    return not known or len({tuple(map(str, values.values())) for values in known}) < len(known)


def count_verdicts(runs: Sequence[RunSummary]) -> str:
    """The one verdict of all runs, or how often there is each."""
    counts = Counter(str(run.verdict or "not watched") for run in runs)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())


def _escape_markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _best(sweep: Sweep) -> str:
    ended = [setting for setting in sweep.settings if setting.ended]
    best = max(ended, key=Setting.sort_key)
    if len(sweep.ended) > 1 and not sweep.min_test_texts and all(run.did_not_learn for run in sweep.ended):
        return "No run learned more than guessing the most frequent class gives."
    result = f"{_accuracy(best)} test accuracy{_seeds(best)}"
    return f"Best: {best.name}, {result}." if len(ended) > 1 else f"{best.name}: {result}."


def _failures(sweep: Sweep) -> list[str]:
    """Which settings did not learn and why, and where verdicts were wrong."""
    failing = [setting for setting in sweep.settings if setting.did_not_learn]
    sentences = []
    if len(failing) <= _MAX_NAMED:
        sentences += [
            f"{_failure(setting)} {advise(sweep, setting, brief=len(failing) > 1)}".strip() for setting in failing
        ]
    else:
        wholly = sum(len(setting.did_not_learn) == len(setting.ended) for setting in failing)
        verdicts = count_verdicts([run for setting in failing for run in setting.did_not_learn])
        which = "no run learned" if wholly == len(failing) else f"some runs did not learn, in {wholly} none did"
        ended = sum(bool(setting.ended) for setting in sweep.settings)
        sentences.append(f"In {len(failing)} of {ended} settings {which}; verdicts on those that did not: {verdicts}.")
        sentences += _cliff(sweep)
    if not failing and len(sweep.ended) == len(sweep.runs) > 1:
        sentences.append("All runs learned.")
    wrong = [run.name for run in sweep.ended if run.flagged_step is not None and not run.did_not_learn]
    if wrong:
        sentences.append(f"False alarms (flagged as doomed but learned): {_join(wrong)}.")
    return sentences


def _cliff(sweep: Sweep) -> list[str]:
    """The peak effective rate that separates the settings, if there is one."""
    known = [setting for setting in sweep.settings if setting.ended and not math.isnan(setting.peak_effective_lr)]
    learned = max((setting.peak_effective_lr for setting in known if not setting.did_not_learn), default=math.inf)
    failed = min((setting.peak_effective_lr for setting in known if setting.did_not_learn), default=0.0)
    if not learned < failed:
        return []
    return [
        f"The peak effective rate tells them apart: up to {format_rate(learned)} all runs learned, from "
        f"{format_rate(failed)} on some or all did not."
    ]


def _failure(setting: Setting) -> str:
    """How many of its runs did not learn, since when that was known, and why."""
    failed = setting.did_not_learn
    which = "did not learn" if len(setting.runs) == 1 else f"{len(failed)} of {len(setting.ended)} runs did not learn"
    text = f"{setting.name}: {which}"
    flagged = [run for run in failed if run.flagged_step is not None]
    if not flagged:
        watched = any(run.verdict for run in failed)
        return text + (", and no rule flagged it by the end." if watched else ", and it was not watched.")
    some = "" if len(flagged) == len(failed) else f"{len(flagged)} of them "
    planned = max(run.result.total_steps or 0 for run in flagged if run.result)
    share = statistics.median(run.flagged_fraction for run in flagged)
    steps = f"step {flagged_steps(flagged)} of {planned}, {100 * share:.0f} %"
    text += f" ({some}{count_verdicts(flagged)}, flagged at {steps})"
    causes = Counter(run.result.diagnosis.cause for run in flagged if run.result and run.result.diagnosis)
    cause = causes.most_common(1)[0][0]
    return text + (f"; likely cause: {cause}." if cause else ".")


def _windows(sweep: Sweep) -> list[str]:
    """At which rates all runs learned, by the other keys."""
    windows = rate_windows(sweep)
    if len(windows) < 2 or len(windows) > 2 * _MAX_NAMED:
        return []
    short = short_names(windows[0].values)
    named = [
        f"{', '.join(f'{short[key]}={sweep.label(key, value)}' for key, value in window.values.items())}: "
        f"{len(window.all_learned)} of {len(window.rates)}"
        for window in windows
    ]
    return [f"Learning rates at which all runs learned: {'; '.join(named)}."]


def _unfinished(sweep: Sweep) -> str:
    counts = Counter(run.status for run in sweep.runs if not run.ended)
    states = ", ".join(f"{n} {_STATES.get(status, status)}" for status, n in counts.items())
    if not states:
        return ""
    if len(sweep.runs) == 1:
        (run,) = sweep.runs
        reason = _reason(run)
        return f"{run.name}: {_STATES.get(run.status, run.status)}" + (f" ({reason})." if reason else ".")
    return f"Excluded: {states}." if sweep.ended else f"No run has ended yet: {states}."


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
        states = Counter(_STATES.get(run.status, run.status) for run in setting.runs)
        state = ", ".join(f"{count} {status}" if n > 1 else status for status, count in states.items())
        return (*named, str(n), state, "", "", "", peak, *[""] * 5)
    loss, loss_deviation, losses = setting.mean("loss")
    best, _, bests = setting.mean("accuracy", best=True)
    saved = sum(run.saved_steps for run in ended)
    return (
        *named,
        str(n) if len(ended) == n else f"{len(ended)} of {n}",
        _accuracy(setting),
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
        f"{result.steps} of {result.total_steps}" if result and result.total_steps else "",
        format_duration(run.seconds),
    )


def _failure_rate(setting: Setting, interval: bool) -> str:
    """Runs that did not learn of those that ended, with the interval of the rate."""
    failed, n = len(setting.did_not_learn), len(setting.ended)
    if not interval:
        return f"{failed} of {n}"
    low, high = wilson_interval(failed, n)
    return f"{failed} of {n} ({100 * low:.0f} to {100 * high:.0f} %)"


def _accuracy(setting: Setting) -> str:
    """Mean and standard deviation of the last test accuracy."""
    mean, deviation, _ = setting.mean("accuracy")
    return format_percent(mean, deviation)


def _of(count: int, ended: Sequence[RunSummary]) -> str:
    """Over how many runs a mean is, where not over all: a run that diverged may have no loss."""
    return f" ({count} of {len(ended)})" if count < len(ended) else ""


def _plus_minus(deviation: float) -> str:
    return "" if math.isnan(deviation) else f" ± {deviation:.3f}"


def flagged_steps(runs: Sequence[RunSummary]) -> str:
    """Median and range of the steps at which doomed verdicts were known."""
    steps = [run.flagged_step for run in runs if run.flagged_step is not None]
    if not steps:
        return ""
    middle = f"{statistics.median(steps):.0f}"
    return middle if min(steps) == max(steps) else f"{middle} ({min(steps)} to {max(steps)})"


def _reason(run: RunSummary) -> str:
    if run.status == UNREADABLE:
        return f"{run.run_dir}/{RESULT_FILE} is empty, corrupt, or not the result of a run"
    error = run.result.error if run.result else None
    return (error or "").strip().split("\n")[0]


def _seeds(setting: Setting) -> str:
    n, seeds = len(setting.ended), len({run.seed for run in setting.ended})
    return "" if n < 2 else f" ({n} seeds)" if n == seeds else f" ({n} runs of {seeds} seeds)"


def _join(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_NAMED]) + (f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else "")
