"""Of many runs and steps, those that a page has room for. Pure but for reading the histories."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bertmon.compare import Cell, Run, Sweep
from bertmon.monitor import History

_MOST_CURVES = 60
_MOST_BESIDE = 4


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """A run with its history, of at least one snapshot."""

    cell: Cell
    run: Run
    history: History


def curves(sweep: Sweep) -> list[Curves]:
    """Runs whose curves are drawn: all, if they are few; else one of each cell, and of many cells an even choice."""
    if len(sweep.runs) <= _MOST_CURVES:
        every = (_curves(cell, run) for cell in sweep.cells for run in cell.runs)
        return [found for found in every if found]
    return [found for cell in sweep.cells[:: -(-len(sweep.cells) // _MOST_CURVES)] if (found := _first(cell))]


def beside(sweep: Sweep) -> list[Curves]:
    """Runs whose layers are drawn beside each other: one of each cell, if they are few; else one of that which was
    known to be doomed first, in share of its steps, or else was worst; and one of the best."""
    if len(sweep.cells) <= _MOST_BESIDE:
        return [found for cell in sweep.cells if (found := _first(cell))]
    best = next((found for cell in sorted(sweep.cells, key=Cell.rank, reverse=True) if (found := _first(cell))), None)
    others = sorted(sweep.cells, key=lambda cell: (_known(cell), cell.rank()))
    worst = next((found for cell in others if (found := _first(cell)) and not (best and cell is best.cell)), None)
    return [found for found in (worst, best) if found]


def steps(beside: Sequence[Curves]) -> list[int]:
    """First the watched step that tells most, at which a run was first called doomed; then the first and the last.

    A run can be doomed before its first step, by its rates; then there is nothing to see yet.
    """
    if not beside:
        return []
    watched = sorted({shot.step for curve in beside for shot in curve.history.snapshots})
    known = [curve.run.doomed_at for curve in beside if curve.run.doomed_at]
    wanted = min(known, default=watched[len(watched) // 2])
    telling = min(watched, key=lambda step: abs(step - wanted))
    return list(dict.fromkeys([telling, watched[0], watched[-1]]))


def _first(cell: Cell) -> Curves | None:
    """The first of the cell's runs that has curves; a doomed one before others."""
    runs = sorted(cell.runs, key=lambda run: run.doomed_at is None)
    return next((found for run in runs if (found := _curves(cell, run))), None)


def _curves(cell: Cell, run: Run) -> Curves | None:
    history = run.history()
    return Curves(cell, run, history) if history and history.snapshots else None


def _known(cell: Cell) -> float:
    """Share of the steps at which the first of its runs was called doomed; infinite where none was."""
    doomed = [run for run in cell.finished if run.doomed_at is not None]
    return min(((run.doomed_at or 0) / run.result["steps_planned"] for run in doomed), default=math.inf)
