"""The runs and steps that a report has room for. Pure, except that it reads histories."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from bertmon.compare.results import RunSummary, Setting, Sweep
from bertmon.monitor.history import History

_MAX_CURVES = 60
_MAX_SIDE_BY_SIDE = 4


@dataclass(frozen=True, slots=True, eq=False)
class RunWithHistory:
    """A run with its history, which has at least one snapshot."""

    setting: Setting
    run: RunSummary
    history: History


def select_curves(sweep: Sweep) -> list[RunWithHistory]:
    """Runs whose curves are drawn: all if there are few; else the first of each setting, or of each n-th of many."""
    every = -(-len(sweep.settings) // _MAX_CURVES) or 1
    most = len(sweep.runs) if len(sweep.runs) <= _MAX_CURVES else max(_MAX_CURVES // len(sweep.settings), 1)
    curves: list[RunWithHistory] = []
    for setting in sweep.settings[::every]:
        drawn = (curve for run in setting.runs if (curve := _with_history(setting, run)))
        curves += itertools.islice(drawn, most)
    return curves


def select_layer_runs(sweep: Sweep) -> list[RunWithHistory]:
    """Runs whose layers are drawn side by side: one per setting if there are few.

    Else one of the setting that was flagged earliest, as a share of its steps (the worst one if none was flagged), and
    one of the best setting.
    """
    if len(sweep.settings) <= _MAX_SIDE_BY_SIDE:
        return [curve for setting in sweep.settings if (curve := _representative(setting))]
    best = _first_with_history(sorted(sweep.settings, key=Setting.sort_key, reverse=True))
    others = [setting for setting in sweep.settings if best is None or setting is not best.setting]
    worst = _first_with_history(sorted(others, key=lambda setting: (_flagged_fraction(setting), setting.sort_key())))
    return [curve for curve in (worst, best) if curve]


def select_steps(curves: Sequence[RunWithHistory]) -> list[int]:
    """The watched step nearest to the first flag (the median one if there is no flag), then the first and the last.

    Flags at step 0 are ignored: a run can be doomed by its planned rates alone, before there is anything to see.
    """
    if not curves:
        return []
    watched = sorted({shot.step for curve in curves for shot in curve.history.snapshots})
    flagged = [curve.run.flagged_step for curve in curves if curve.run.flagged_step]
    target = min(flagged, default=watched[len(watched) // 2])
    nearest = min(watched, key=lambda step: abs(step - target))
    return list(dict.fromkeys([nearest, watched[0], watched[-1]]))


def _first_with_history(settings: Sequence[Setting]) -> RunWithHistory | None:
    return next((curve for setting in settings if (curve := _representative(setting))), None)


def _representative(setting: Setting) -> RunWithHistory | None:
    """The first of the setting's runs that has a history; flagged runs take precedence."""
    runs = sorted(setting.runs, key=lambda run: run.flagged_step is None)
    return next((curve for run in runs if (curve := _with_history(setting, run))), None)


def _with_history(setting: Setting, run: RunSummary) -> RunWithHistory | None:
    history = run.history
    return RunWithHistory(setting, run, history) if history and history.snapshots else None


def _flagged_fraction(setting: Setting) -> float:
    """The smallest share of the steps after which a run was flagged; infinite if none was."""
    fractions = [run.flagged_fraction for run in setting.ended if run.flagged_step is not None]
    return min(fractions, default=math.inf)
