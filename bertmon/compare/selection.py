"""Of many runs and steps, those that a page has room for. Pure but for reading the histories."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bertmon.compare.results import RunSummary, Setting, Sweep
from bertmon.monitor.history import History

_MOST_CURVES = 60
_MOST_BESIDE = 4


@dataclass(frozen=True, slots=True, eq=False)
class RunWithHistory:
    """A run with its history, of at least one snapshot."""

    setting: Setting
    run: RunSummary
    history: History


def select_curves(sweep: Sweep) -> list[RunWithHistory]:
    """Runs whose curves are drawn: all, if they are few; else one of each cell, and of many cells an even choice."""
    if len(sweep.runs) <= _MOST_CURVES:
        every = (_with_history(cell, run) for cell in sweep.settings for run in cell.runs)
        return [found for found in every if found]
    return [
        found for cell in sweep.settings[:: -(-len(sweep.settings) // _MOST_CURVES)] if (found := _representative(cell))
    ]


def select_layer_runs(sweep: Sweep) -> list[RunWithHistory]:
    """Runs whose layers are drawn beside each other: one of each cell, if they are few; else one of that which was
    known to be doomed first, in share of its steps, or else was worst; and one of the best."""
    if len(sweep.settings) <= _MOST_BESIDE:
        return [found for cell in sweep.settings if (found := _representative(cell))]
    best = next(
        (
            found
            for cell in sorted(sweep.settings, key=Setting.sort_key, reverse=True)
            if (found := _representative(cell))
        ),
        None,
    )
    others = sorted(sweep.settings, key=lambda cell: (_flagged_fraction(cell), cell.sort_key()))
    worst = next(
        (found for cell in others if (found := _representative(cell)) and not (best and cell is best.setting)), None
    )
    return [found for found in (worst, best) if found]


def select_steps(beside: Sequence[RunWithHistory]) -> list[int]:
    """First the watched step that tells most, at which a run was first called doomed; then the first and the last.

    A run can be doomed before its first step, by its rates; then there is nothing to see yet.
    """
    if not beside:
        return []
    watched = sorted({shot.step for curve in beside for shot in curve.history.snapshots})
    known = [curve.run.flagged_step for curve in beside if curve.run.flagged_step]
    wanted = min(known, default=watched[len(watched) // 2])
    telling = min(watched, key=lambda step: abs(step - wanted))
    return list(dict.fromkeys([telling, watched[0], watched[-1]]))


def _representative(cell: Setting) -> RunWithHistory | None:
    """The first of the cell's runs that has curves; a doomed one before others."""
    runs = sorted(cell.runs, key=lambda run: run.flagged_step is None)
    return next((found for run in runs if (found := _with_history(cell, run))), None)


def _with_history(cell: Setting, run: RunSummary) -> RunWithHistory | None:
    history = run.history()
    return RunWithHistory(cell, run, history) if history and history.snapshots else None


def _flagged_fraction(cell: Setting) -> float:
    """Share of the steps at which the first of its runs was called doomed; infinite where none was."""
    doomed = [run for run in cell.finished if run.flagged_step is not None]
    return min(((run.flagged_step or 0) / run.result["steps_planned"] for run in doomed), default=math.inf)
