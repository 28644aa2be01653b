"""Of many runs and steps, those that a report has room for. Pure but for reading the histories."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bertmon.compare.results import RunSummary, Setting, Sweep
from bertmon.monitor.history import History

_MAX_CURVES = 60
_MAX_SIDE_BY_SIDE = 4


@dataclass(frozen=True, slots=True, eq=False)
class RunWithHistory:
    """A run with its history, of at least one snapshot."""

    setting: Setting
    run: RunSummary
    history: History


def select_curves(sweep: Sweep) -> list[RunWithHistory]:
    """Runs whose curves are drawn: all, if they are few; else one of each setting, and of many settings every n-th."""
    if len(sweep.runs) <= _MAX_CURVES:
        candidates = [_with_history(setting, run) for setting in sweep.settings for run in setting.runs]
    else:
        every = -(-len(sweep.settings) // _MAX_CURVES)
        candidates = [_representative(setting) for setting in sweep.settings[::every]]
    return [curve for curve in candidates if curve]


def select_layer_runs(sweep: Sweep) -> list[RunWithHistory]:
    """Runs whose layers are drawn side by side: one of each setting, if they are few.

    Else one of the setting that was flagged first, as a share of its steps, or was worst; and one of the best.
    """
    if len(sweep.settings) <= _MAX_SIDE_BY_SIDE:
        return [curve for setting in sweep.settings if (curve := _representative(setting))]
    best = _first_with_history(sorted(sweep.settings, key=Setting.sort_key, reverse=True))
    others = [setting for setting in sweep.settings if best is None or setting is not best.setting]
    worst = _first_with_history(sorted(others, key=lambda setting: (_flagged_fraction(setting), setting.sort_key())))
    return [curve for curve in (worst, best) if curve]


def select_steps(curves: Sequence[RunWithHistory]) -> list[int]:
    """First the watched step that shows most, at which a run was first flagged; then the first and the last.

    A run can be doomed before its first step, by its rates; there is nothing to see yet then.
    """
    if not curves:
        return []
    watched = sorted({shot.step for curve in curves for shot in curve.history.snapshots})
    flagged = [curve.run.flagged_step for curve in curves if curve.run.flagged_step]
    wanted = min(flagged, default=watched[len(watched) // 2])
    nearest = min(watched, key=lambda step: abs(step - wanted))
    return list(dict.fromkeys([nearest, watched[0], watched[-1]]))


def _first_with_history(settings: Sequence[Setting]) -> RunWithHistory | None:
    return next((curve for setting in settings if (curve := _representative(setting))), None)


def _representative(setting: Setting) -> RunWithHistory | None:
    """The first of the setting's runs that has a history; a flagged one before others."""
    runs = sorted(setting.runs, key=lambda run: run.flagged_step is None)
    return next((curve for run in runs if (curve := _with_history(setting, run))), None)


def _with_history(setting: Setting, run: RunSummary) -> RunWithHistory | None:
    history = run.history
    return RunWithHistory(setting, run, history) if history and history.snapshots else None


def _flagged_fraction(setting: Setting) -> float:
    """Share of the steps at which the first of its runs was flagged; infinite if none was."""
    fractions = [run.flagged_fraction for run in setting.ended if run.flagged_step is not None]
    return min(fractions, default=math.inf)
