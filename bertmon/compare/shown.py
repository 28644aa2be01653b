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
    few = len(sweep.runs) <= _MOST_CURVES
    chosen = [(cell, run) for cell in sweep.cells for run in (cell.runs if few else cell.runs[:1])]
    found = ((cell, run, run.history()) for cell, run in chosen[:: -(-len(chosen) // _MOST_CURVES)])
    return [Curves(cell, run, history) for cell, run, history in found if history and history.snapshots]


def beside(curves: Sequence[Curves]) -> list[Curves]:
    """Runs whose layers are drawn beside each other: one of each cell, if they are few; else that which was doomed
    first, in share of its steps, and the best."""
    firsts: dict[Cell, Curves] = {}
    for curve in curves:
        firsts.setdefault(curve.cell, curve)
    if len(firsts) <= _MOST_BESIDE:
        return list(firsts.values())
    doomed = [curve for curve in firsts.values() if curve.run.doomed_at is not None]
    worst = min(doomed, key=_known) if doomed else min(firsts.values(), key=_accuracy)
    return [worst, max(firsts.values(), key=_accuracy)]


def steps(beside: Sequence[Curves]) -> list[int]:
    """First the step that tells most, at which a run was first called doomed; then the first and the last.

    A run can be doomed before its first step, by its rates; then there is nothing to see yet.
    """
    if not beside:
        return []
    watched = sorted({shot.step for curve in beside for shot in curve.history.snapshots})
    known = [curve.run.doomed_at for curve in beside if curve.run.doomed_at]
    telling = min(known, default=watched[len(watched) // 2])
    return list(dict.fromkeys([telling, watched[0], watched[-1]]))


def _known(curve: Curves) -> float:
    return (curve.run.doomed_at or 0) / len(curve.history.plan)


def _accuracy(curve: Curves) -> float:
    accuracy = curve.run.final("accuracy")
    return -1.0 if math.isnan(accuracy) else accuracy
