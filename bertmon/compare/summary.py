"""A sweep in words: plain sentences, and one table for page, mail and console. Pure."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bertmon.compare.results import RunSummary, Setting, Sweep, short_names, wilson_interval
from bertmon.result import FINISHED, RESULT_FILE, UNFINISHED
from bertmon.sanitize import sanitize_line

TABLE_NOTE = (
    "Mean ± standard deviation over the runs of a cell. Failed: accuracy within what guessing the most frequent class "
    "gives (99 %), with the 95 % interval of the rate. Known at step: since when the verdict is known that a doomed "
    "run ended with; median and range. Time: mean of a run. Saved: of all runs that were stopped."
)

_MOST = 3  # cells that are named one by one
_LINES = 40  # of the table on a terminal


@dataclass(frozen=True, slots=True)
class Table:
    """Text in rows and columns, each cell fit for one line."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, heads: Iterable[str], rows: Iterable[Iterable[str]]) -> "Table":
        return cls(tuple(map(sanitize_line, heads)), tuple(tuple(map(sanitize_line, row)) for row in rows))

    def markdown(self) -> str:
        lines = [self.heads, tuple("---" for _ in self.heads), *self.rows]
        return "\n".join("| " + " | ".join(_escaped(cell) for cell in sanitize_line) + " |" for sanitize_line in lines)

    def plain(self) -> str:
        """In columns of one width, for a terminal."""
        lines = [self.heads, *self.rows]
        widths = [max(len(row[column]) for row in lines) for column in range(len(self.heads))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in lines
        )


def _escaped(text: str) -> str:
    """For Markdown."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def settings_table(sweep: Sweep) -> Table:
    """A row a cell: what was swept, and what came of it."""
    heads = ["run"] if _needs_names(sweep) else [*short_names(sweep.swept).values()]
    heads += ["runs", "test accuracy", "best", "test loss", "failed", "verdict", "known at step", "time", "saved"]
    return Table.of(heads, (_row(sweep, cell) for cell in sweep.settings))


def runs_table(sweep: Sweep) -> Table:
    """A row a run."""
    heads = ("run", "status", "test accuracy", "test loss", "verdict", "since step", "steps", "time")
    return Table.of(heads, map(_run, sweep.runs))


def unfinished_table(sweep: Sweep) -> Table:
    """A row for each run that did not come to its end by itself."""
    rows = [(run.name, run.status, _reason(run)) for run in sweep.runs if run.status in (*UNFINISHED, "unreadable")]
    return Table.of(("run", "status", "why"), rows)


def conclusions(sweep: Sweep) -> list[str]:
    """What the sweep says, in plain words."""
    ended = [cell for cell in sweep.settings if cell.finished]
    if not ended:
        return ["No run has ended yet."]
    best = max(ended, key=Setting.sort_key)
    failing = [cell for cell in ended if cell.did_not_learn]
    runs = [run for cell in ended for run in cell.finished]
    found = []
    if all(run.did_not_learn for run in runs) and len(runs) > 1:
        found.append("No run has learned more than guessing the most frequent class gives.")
    elif len(ended) > 1:
        found.append(f"Best: {best.name}, with {format_accuracy(best)} test accuracy{_seeds(best)}.")
    else:
        found.append(f"{best.name}: {format_accuracy(best)} test accuracy{_seeds(best)}.")
    if len(failing) <= _MOST:
        found += [_failure(cell) for cell in failing]
    else:
        wholly = sum(len(cell.did_not_learn) == len(cell.finished) for cell in failing)
        verdicts = _verdicts([run for cell in failing for run in cell.did_not_learn])
        found.append(
            f"In {len(failing)} of {len(ended)} cells runs failed to learn, in {wholly} of them all; "
            f"verdicts on those that failed: {verdicts}."
        )
    if not failing and len(runs) == len(sweep.runs) > 1:
        found.append("No run failed to learn.")
    wrong = [run for run in runs if run.flagged_step is not None and not run.did_not_learn]
    if wrong:
        found.append(f"Called doomed, and yet better than guessing: {_listed([run.name for run in wrong])}.")
    counts = Counter(run.status for run in sweep.runs if not run.finished)
    if counts:
        states = ", ".join(f"{n} {_STATES.get(status, status)}" for status, n in counts.items())
        found.append(f"Not in the numbers: {states}.")
    return [sanitize_line(sentence, 2000) for sentence in found]


def console_summary(sweep: Sweep) -> str:
    """The whole answer, for a terminal."""
    whole = settings_table(sweep)
    lines = [whole.plain()]
    if len(whole.rows) > _LINES:
        best = sorted(range(len(whole.rows)), key=lambda row: -sweep.settings[row].sort_key())[:_LINES]
        lines = [Table(whole.heads, tuple(whole.rows[row] for row in best)).plain()]
        lines.append(f"(the best {_LINES} of {len(whole.rows)} cells)")
    return "\n".join([*lines, *conclusions(sweep)])


def progress_line(sweep: Sweep) -> str:
    """How far a sweep has come when its next run begins, in one line; empty for a single run."""
    waiting, running, ended = (
        [run for run in sweep.runs if run.status in states] for states in (("waiting",), ("running",), FINISHED)
    )
    if len(sweep.runs) < 2 or not waiting:
        return ""
    line = f"run {len(sweep.runs) - len(waiting) + 1} of {len(sweep.runs)}"
    if ended:
        each = statistics.fmean(run.result["seconds"] for run in ended)
        line += f", about {format_duration(each * len(waiting) / (len(running) + 1))} left; so far {_verdicts(ended)}"
    failed = sum(run.status in (*UNFINISHED, "unreadable") for run in sweep.runs)
    return line + (f", {failed} broken off" if failed else "")


def format_accuracy(cell: Setting) -> str:
    """Mean and standard deviation of the last test accuracy."""
    mean, spread, n = cell.mean("accuracy")
    return f"{100 * mean:.1f}{_plus_minus(100 * spread, '.1f')} %" if n else ""


_STATES = {"waiting": "not started"}


def _needs_names(sweep: Sweep) -> bool:
    """Whether cells go by their names: where keys do not tell them apart, or runs do not say theirs."""
    known = [cell.overrides for cell in sweep.settings if cell.overrides]
    values = {tuple(str(differs.get(key)) for key in sweep.swept) for differs in known}
    return not known or len(values) < len(known) or any(differs.keys() != set(sweep.swept) for differs in known)


def _row(sweep: Sweep, cell: Setting) -> tuple[str, ...]:
    ended, n = cell.finished, len(cell.runs)
    if _needs_names(sweep):
        named = [cell.name]
    elif cell.overrides:
        named = [str(cell.overrides[key]) for key in sweep.swept]
    else:  # none of its runs has started
        named = [cell.name, *[""] * (len(sweep.swept) - 1)]
    if not ended:
        states = Counter(_STATES.get(run.status, run.status) for run in cell.runs)
        state = ", ".join(f"{count} {status}" if n > 1 else status for status, count in states.items())
        return (*named, str(n), state, *[""] * 7)
    loss, loss_spread, losses = cell.mean("loss")
    best, _, bests = cell.mean("accuracy", best=True)
    saved = sum(run.saved_steps for run in ended)
    low, high = wilson_interval(len(cell.did_not_learn), len(ended))
    return (
        *named,
        str(n) if len(ended) == n else f"{len(ended)} of {n}",
        format_accuracy(cell),
        f"{100 * best:.1f} %{_of(bests, ended)}" if bests else "",
        f"{loss:.3f}{_plus_minus(loss_spread, '.3f')}{_of(losses, ended)}" if losses else "",
        f"{len(cell.did_not_learn)} of {len(ended)} ({100 * low:.0f} to {100 * high:.0f} %)",
        _verdicts(ended),
        _flag_steps(ended),
        format_duration(cell.seconds),
        f"{saved} steps" if saved else "",
    )


def _of(count: int, ended: Sequence[RunSummary]) -> str:
    """Of how many runs a mean is, where not of all: a run that diverged may have no loss."""
    return f" ({count} of {len(ended)})" if count < len(ended) else ""


def _plus_minus(spread: float, form: str) -> str:
    return "" if math.isnan(spread) else f" ± {spread:{form}}"


def _run(run: RunSummary) -> tuple[str, ...]:
    result = run.result
    known = str(result["verdict_step"]) if run.verdict else ""
    steps = f"{result['steps']} of {result['steps_planned']}" if "steps_planned" in result else ""
    loss, share = run.final("loss"), run.final("accuracy")
    return (
        run.name,
        run.status,
        f"{100 * share:.1f} %" if not math.isnan(share) else "",
        f"{loss:.3f}" if not math.isnan(loss) else "",
        str(run.verdict or ""),
        known,
        steps,
        format_duration(result.get("seconds", math.nan)),
    )


def _failure(cell: Setting) -> str:
    """Which runs failed, since when that was known, and why."""
    failed, ended = cell.did_not_learn, cell.finished
    which = "failed" if len(cell.runs) == 1 else f"{len(failed)} of {len(ended)} runs failed"
    text = f"{cell.name}: {which} to learn"
    called = [run for run in failed if run.flagged_step is not None]
    if not called:
        watched = any(run.verdict for run in failed)
        return text + (", and no rule called it doomed at the end." if watched else ", and it was not watched.")
    some = "" if len(called) == len(failed) else f"{len(called)} of them "
    planned = max(run.result["steps_planned"] for run in called)
    share = 100 * statistics.median((run.flagged_step or 0) / run.result["steps_planned"] for run in called)
    text += f" ({some}{_verdicts(called)}, known since step {_flag_steps(called)} of {planned}, {share:.0f} %)"
    causes = Counter(run.result["cause"] for run in called if run.result.get("cause"))
    advice = Counter(run.result["advice"] for run in called if run.result.get("advice"))
    if causes:
        text += f"; likely cause: {causes.most_common(1)[0][0]}"
    return text + (f". Try {advice.most_common(1)[0][0]}." if advice else ".")


def _verdicts(runs: Sequence[RunSummary]) -> str:
    counts = Counter(str(run.verdict or "not watched") for run in runs)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST]) + (f" and {len(names) - _MOST} more" if len(names) > _MOST else "")


def _flag_steps(runs: Sequence[RunSummary]) -> str:
    """Median and range of the steps at which doomed verdicts were known."""
    steps = [run.flagged_step for run in runs if run.flagged_step is not None]
    if not steps:
        return ""
    middle = f"{statistics.median(steps):.0f}"
    return middle if min(steps) == max(steps) else f"{middle} ({min(steps)} to {max(steps)})"


def _reason(run: RunSummary) -> str:
    if run.status == "unreadable":
        return f"{run.folder}/{RESULT_FILE} is empty, damaged, or not a run's"
    return str(run.result.get("error", "")).strip().split("\n")[0]


def _seeds(cell: Setting) -> str:
    n, seeds = len(cell.finished), len({run.seed for run in cell.finished})
    return "" if n < 2 else f" ({n} seeds)" if n == seeds else f" ({n} runs of {seeds} seeds)"


def format_duration(seconds: float) -> str:
    """In the two units that say most."""
    if math.isnan(seconds):
        return ""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
