"""A sweep in words: plain sentences, and one table for page, mail and console. Pure."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bertmon.compare import Cell, Run, Sweep, wilson

_MOST = 3  # cells that are named one by one
_LINES = 40  # of the table on a terminal


@dataclass(frozen=True, slots=True)
class Table:
    """Text in rows and columns."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [self.heads, tuple("---" for _ in self.heads), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    def plain(self) -> str:
        """In columns of one width, for a terminal."""
        lines = [self.heads, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.heads))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )


def cells(sweep: Sweep) -> Table:
    """A row a cell: what was swept, and what came of it."""
    heads = ["run"] if _named(sweep) else [short(key) for key in sweep.swept]
    heads += ["runs", "test accuracy", "best", "test loss", "failed", "verdict", "known at step", "time", "saved"]
    return Table(tuple(heads), tuple(_row(sweep, cell) for cell in sweep.cells))


def runs(sweep: Sweep) -> Table:
    """A row a run."""
    heads = ("run", "status", "test accuracy", "test loss", "verdict", "since step", "steps", "time")
    return Table(heads, tuple(_run(run) for run in sweep.runs))


def errors(sweep: Sweep) -> Table:
    """A row for each run that did not come to its end by itself."""
    rows = [(run.name, run.status, _reason(run)) for run in sweep.runs if run.status in _BROKEN]
    return Table(("run", "status", "why"), tuple(rows))


def sentences(sweep: Sweep) -> list[str]:
    """What the sweep says, in plain words."""
    found = []
    ended = [cell for cell in sweep.cells if cell.finished]
    if not ended:
        return ["No run has ended yet."]
    best = max(ended, key=lambda cell: cell.mean("accuracy")[0])
    if len(ended) > 1:
        found.append(f"Best: {best.name}, with {accuracy(best)} test accuracy{_seeds(best)}.")
    else:
        found.append(f"{best.name}: {accuracy(best)} test accuracy{_seeds(best)}.")
    failing = [cell for cell in ended if cell.failed]
    if not failing and all(run.finished for run in sweep.runs):
        found.append("No run failed to learn." if len(sweep.runs) > 1 else "")
    elif len(failing) <= _MOST:
        found += [_failure(cell) for cell in failing]
    else:
        runs = [run for cell in failing for run in cell.failed]
        wholly = sum(len(cell.failed) == len(cell.finished) for cell in failing)
        found.append(
            f"In {len(failing)} of {len(ended)} cells runs failed to learn, in {wholly} of them all: {_verdicts(runs)}."
        )
    counts = Counter(run.status for run in sweep.runs if not run.finished)
    if counts:
        found.append("Not in the numbers: " + ", ".join(f"{n} {status}" for status, n in counts.items()) + ".")
    return [sentence for sentence in found if sentence]


def told(sweep: Sweep) -> str:
    """The whole answer, for a terminal."""
    whole = cells(sweep)
    lines = [Table(whole.heads, whole.rows[:_LINES]).plain()]
    if len(whole.rows) > _LINES:
        lines.append(f"... and {len(whole.rows) - _LINES} more cells")
    return "\n".join([*lines, *sentences(sweep)])


def progress(sweep: Sweep) -> str:
    """How far a sweep has come when its next run begins, in one line; empty for a single run."""
    waiting, running, ended = (
        [run for run in sweep.runs if run.status in states]
        for states in (("waiting",), ("running",), ("ok", "stopped", "diverged"))
    )
    if len(sweep.runs) < 2 or not waiting:
        return ""
    line = f"run {len(sweep.runs) - len(waiting) + 1} of {len(sweep.runs)}"
    if ended:
        each = statistics.fmean(run.result["seconds"] for run in ended)
        line += f", about {duration(each * len(waiting) / (len(running) + 1))} left; so far {_verdicts(ended)}"
    failed = sum(run.status in _BROKEN for run in sweep.runs)
    return line + (f", {failed} broken off" if failed else "")


def accuracy(cell: Cell) -> str:
    """Mean and standard deviation of the last test accuracy."""
    mean, spread, _ = cell.mean("accuracy")
    return _share(mean) + ("" if math.isnan(spread) else f" ± {100 * spread:.1f}") + (" %" if mean == mean else "")


def short(key: str) -> str:
    """A dotted key without its group."""
    return key.rpartition(".")[2]


_BROKEN = ("failed", "interrupted", "unreadable")


def _named(sweep: Sweep) -> bool:
    """Whether cells go by their folders' names: where keys do not tell them apart, or are not known of all."""
    values = {tuple(str(cell.differs.get(key)) for key in sweep.swept) for cell in sweep.cells}
    return len(values) < len(sweep.cells) or any(cell.differs.keys() != set(sweep.swept) for cell in sweep.cells)


def _row(sweep: Sweep, cell: Cell) -> tuple[str, ...]:
    ended, n = cell.finished, len(cell.runs)
    named = [cell.name] if _named(sweep) else [str(cell.differs[key]) for key in sweep.swept]
    if not ended:
        states = Counter(run.status for run in cell.runs)
        state = ", ".join(f"{count} {status}" if n > 1 else status for status, count in states.items())
        return (*named, str(n), state, *[""] * 7)
    loss, spread, _ = cell.mean("loss")
    saved = sum(run.saved_steps for run in ended)
    low, high = wilson(len(cell.failed), len(ended))
    return (
        *named,
        str(n) if len(ended) == n else f"{len(ended)} of {n}",
        accuracy(cell),
        f"{_share(cell.mean('accuracy', 'best')[0])} %",
        f"{loss:.3f}" + ("" if math.isnan(spread) else f" ± {spread:.3f}"),
        f"{len(cell.failed)} of {len(ended)} ({100 * low:.0f} to {100 * high:.0f} %)",
        _verdicts(ended),
        _known(ended),
        duration(cell.seconds),
        f"{saved} steps" if saved else "",
    )


def _run(run: Run) -> tuple[str, ...]:
    result = run.result
    known = str(result["verdict_step"]) if run.verdict else ""
    steps = f"{result['steps']} of {result['steps_planned']}" if "steps_planned" in result else ""
    loss = run.final("loss")
    return (
        run.name,
        run.status,
        f"{_share(run.final('accuracy'))} %" if run.finished else "",
        f"{loss:.3f}" if run.finished else "",
        str(run.verdict or ""),
        known,
        steps,
        duration(result.get("seconds", math.nan)),
    )


def _failure(cell: Cell) -> str:
    """Which runs failed, since when that was known, and why."""
    failed, ended = cell.failed, cell.finished
    which = "failed" if len(cell.runs) == 1 else f"{len(failed)} of {len(ended)} runs failed"
    text = f"{cell.name}: {which} to learn"
    called = [run for run in failed if run.doomed_at is not None]
    if not called:
        return text + ", and no rule had called it doomed at the end."
    first = called[0]
    share = 100 * (first.doomed_at or 0) / first.result["steps_planned"]
    text += (
        f" ({_verdicts(called)}, known since step {_known(called)} of {first.result['steps_planned']}, {share:.0f} %)"
    )
    causes = Counter(run.result["cause"] for run in called if run.result.get("cause"))
    advice = Counter(run.result["advice"] for run in called if run.result.get("advice"))
    if causes:
        text += f"; likely cause: {causes.most_common(1)[0][0]}"
    return text + (f". Try {advice.most_common(1)[0][0]}." if advice else ".")


def _verdicts(runs: Sequence[Run]) -> str:
    counts = Counter(str(run.verdict) for run in runs if run.verdict)
    if not counts:
        return "not watched"
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())


def _known(runs: Sequence[Run]) -> str:
    """Median and range of the steps at which doomed verdicts were known."""
    steps = [run.doomed_at for run in runs if run.doomed_at is not None]
    if not steps:
        return ""
    middle = f"{statistics.median(steps):.0f}"
    return middle if min(steps) == max(steps) else f"{middle} ({min(steps)} to {max(steps)})"


def _reason(run: Run) -> str:
    if run.status == "unreadable":
        return f"{run.folder.name}/result.json is empty or damaged"
    return str(run.result.get("error", "")).strip().split("\n")[0]


def _seeds(cell: Cell) -> str:
    n = len(cell.finished)
    return f" ({n} seeds)" if n > 1 else ""


def _share(value: float) -> str:
    return f"{100 * value:.1f}" if value == value else "none"


def duration(seconds: float) -> str:
    """In the two units that say most."""
    if math.isnan(seconds):
        return ""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
