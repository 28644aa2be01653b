"""Curves over the steps: a line per setting with a band over its seeds, chance level, and the rules' thresholds."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from bertmon import plot_style
from bertmon.compare.plots import (
    Titles,
    add_accuracy_bar,
    clip_to_axis,
    escape_mathtext,
    label_level,
    legend_on_top,
    powers_of_ten,
    wrap,
)
from bertmon.compare.results import Setting
from bertmon.compare.selection import RunWithHistory
from bertmon.compare.tables import count_verdicts, flagged_steps
from bertmon.monitor.history import FloatArray
from bertmon.notation import format_rate

_MAX_POINTS = 80  # of a curve
_MAX_BANDS = len(plot_style.SETTING_COLORS)  # settings; with more, only lines can be distinguished

Curve = tuple[FloatArray, FloatArray]
"""Steps and values, [n] each."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes: the curve that it shows of a run, and the region below a rule's threshold."""

    title: str
    curve: Callable[[RunWithHistory], Curve]
    logarithmic: bool = False
    threshold: str = ""  # config key below monitor.thresholds
    region: str = ""  # label of the region below the threshold


PANELS = (
    Panel("training loss", lambda run: _smooth(run.history.losses, len(run.history.plan))),
    Panel("test accuracy [%]", lambda run: _accuracies(run)),
    Panel("effective learning rate", lambda run: _rates(run)),
    Panel(
        "gradient depth ratio: first / last layer",
        lambda run: _signal(run, "depth_ratio"),
        True,
        "min_depth_ratio",
        "gradients vanish",
    ),
    Panel(
        "standard deviation of the logits over texts",
        lambda run: _signal(run, "logit_std"),
        True,
        "min_logit_std",
        "ignores the text",
    ),
    Panel(
        "Adam's step / learning rate, linear weights",
        lambda run: _signal(run, "update_per_lr/linear"),
        True,
        "min_update_per_lr",
        "weights have stopped",
    ),
)


def training_curves(curves: Sequence[RunWithHistory], colors: Mapping[Setting, str]) -> tuple[Figure, Titles]:
    """Loss, accuracy, rate and the three signals that verdicts rest on, over the steps."""
    by_setting = {setting: [curve for curve in curves if curve.setting is setting] for setting in colors}
    by_setting = {setting: members for setting, members in by_setting.items() if members}
    few = len(colors) <= _MAX_BANDS
    legend_rows = -(-len(by_setting) // 2) if few else 0
    height = 6.4 + 0.22 * legend_rows
    titles: dict[str, list[str]] = {}
    with plot_style.theme():
        figure = Figure(figsize=(11, height))
        edges = {"left": 0.055, "right": 0.99 if few else 0.92, "bottom": 0.5 / height}
        edges["top"] = 1 - (0.35 + 0.22 * legend_rows) / height
        grid = figure.add_gridspec(2, 3, wspace=0.2, hspace=0.28, **edges)
        for number, panel in enumerate(PANELS):
            axes = figure.add_subplot(grid[divmod(number, 3)])
            for setting, members in by_setting.items():
                _draw(axes, [panel.curve(member) for member in members], colors[setting], panel.logarithmic, bands=few)
                titles |= _name_last_line(axes, f"panel{number}-{len(titles)}", setting.name)
            _finish(axes, panel, curves)
            _mark_verdicts(axes, by_setting if few else {}, colors)
            if number >= 3:
                axes.set_xlabel("step")
        if few:
            _legend(figure, by_setting, colors)
        else:
            add_accuracy_bar(figure, [setting.mean("accuracy")[0] for setting in colors])
    return figure, titles


def _draw(axes: Axes, curves: Sequence[Curve], color: str, logarithmic: bool, *, bands: bool) -> None:
    """One setting: the mean of its runs, geometric on a logarithmic axis, and a band from smallest to largest value.

    bands: if false, only the mean is drawn, since the bands of many settings would hide each other.
    """
    steps = np.concatenate([x for x, _ in curves])
    values = np.concatenate([y for _, y in curves])
    finite = np.isfinite(values)
    if finite.any() and bands and len(curves) > 1:
        seaborn.lineplot(
            x=steps[finite],
            y=values[finite],
            color=color,
            linewidth=1.7,
            estimator=_geometric_mean if logarithmic else "mean",
            errorbar=("pi", 100),
            err_kws={"alpha": 0.18, "linewidth": 0},
            ax=axes,
        )
        return
    if not bands:
        curves = [_mean(curves, logarithmic)]
    for x, y in curves:
        style = "-" if np.isfinite(y).sum() > 1 else "."  # a single point has no line
        axes.plot(x, y, style, color=color, linewidth=1.7 if bands else 1.0)


def _finish(axes: Axes, panel: Panel, curves: Sequence[RunWithHistory]) -> None:
    """Title, scale, chance line and the region below a threshold."""
    axes.set_title(panel.title)
    axes.set(xlabel="", ylabel="")
    if not any(np.isfinite(np.asarray(line.get_ydata(), dtype=float)).any() for line in axes.lines):
        axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, fontsize=9, ha="center")
    longest = max(len(curve.history.plan) for curve in curves)
    axes.set_xlim(-0.02 * longest, 1.02 * longest)
    if panel.logarithmic:
        axes.set_yscale("log")
        _shade(axes, panel, curves)
        powers_of_ten(axes.yaxis)
    elif panel.title == "effective learning rate":
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_rate(value)))
    elif panel.title == "training loss":
        _chance(axes, {curve.history.plan.chance_loss for curve in curves}, "chance")
    else:
        data = [curve.run.result.data for curve in curves if curve.run.result and curve.run.result.data]
        _chance(axes, {100 * each.majority_share for each in data}, "most frequent class")
        low, high = axes.get_ylim()
        axes.set_ylim(max(min(low, high - 20), 0), max(high, min(low + 20, 100)))


def _chance(axes: Axes, levels: set[float], label: str) -> None:
    for level in sorted(levels)[:3]:
        axes.axhline(level, color=plot_style.TEXT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    if levels:
        label_level(axes, label, max(levels), above=True)


def _shade(axes: Axes, panel: Panel, curves: Sequence[RunWithHistory]) -> None:
    """The region below the threshold, if all runs have the same one."""
    key = f"monitor.thresholds.{panel.threshold}"
    thresholds = {float(curve.run.values[key]) for curve in curves if key in curve.run.values}
    if len(thresholds) != 1:
        return
    (threshold,) = thresholds
    low, high = axes.get_ylim()
    low = min(low, threshold / 10) if low > 0 else threshold / 10
    axes.axhspan(low, threshold, color=plot_style.ERROR, alpha=0.09, linewidth=0, zorder=0)
    axes.set_ylim(low, max(high, threshold * 10))
    label_level(axes, f"{panel.region} (< {format_rate(threshold)})", threshold, above=False)


def _mark_verdicts(
    axes: Axes, by_setting: Mapping[Setting, Sequence[RunWithHistory]], colors: Mapping[Setting, str]
) -> None:
    """A dotted line at the first doomed verdict of each setting."""
    for setting in by_setting:
        steps = [run.flagged_step for run in setting.runs if run.flagged_step is not None]
        if steps:
            axes.axvline(min(steps), color=colors[setting], linewidth=1.2, linestyle=":", zorder=1)


def _legend(
    figure: Figure, by_setting: Mapping[Setting, Sequence[RunWithHistory]], colors: Mapping[Setting, str]
) -> None:
    handles = []
    for setting, members in by_setting.items():
        seeds = f" ({len(members)} runs)" if len(members) > 1 else ""
        text = f"{setting.name}{seeds}: {count_verdicts([member.run for member in members])}"
        if flagged := flagged_steps([member.run for member in members]):
            text += f" since step {flagged}"
        label = escape_mathtext(wrap(text, 75).split("\n")[0])
        handles.append(Line2D([], [], color=colors[setting], linewidth=2.5, label=label))
    legend_on_top(figure, handles, left=0.045, ncols=2)


def _name_last_line(axes: Axes, gid: str, name: str) -> dict[str, list[str]]:
    if not axes.lines:
        return {}
    axes.lines[-1].set_gid(gid)
    return {gid: [name]}


def _mean(curves: Sequence[Curve], logarithmic: bool) -> Curve:
    """Mean over the runs that have a value at a step."""
    by_step: dict[float, list[float]] = {}
    for steps, values in curves:
        for step, value in zip(steps.tolist(), values.tolist(), strict=True):
            if math.isfinite(value):
                by_step.setdefault(step, []).append(value)
    mean = _geometric_mean if logarithmic else np.mean
    x = sorted(by_step)
    return np.array(x), np.array([float(mean(np.array(by_step[step]))) for step in x])


def _geometric_mean(values: FloatArray) -> float:
    return float(np.exp(np.mean(np.log(values))))


def _smooth(losses: Sequence[float], planned: int) -> Curve:
    """Means over intervals of ten steps or more, at their midpoints; the same for all runs of `planned` steps."""
    values = np.array(losses)
    edges = np.unique(np.linspace(0, planned, min(_MAX_POINTS, 1 + planned // 10) + 1).astype(int))
    edges = edges[: 1 + np.searchsorted(edges, len(values))]  # up to the interval in which the run ended
    intervals = [values[start:end] for start, end in itertools.pairwise(edges)]
    finite = [interval[np.isfinite(interval)] for interval in intervals]  # the last loss of a diverged run is not
    return (edges[:-1] + edges[1:] - 1) / 2, np.array([each.mean() if len(each) else np.nan for each in finite])


def _accuracies(curve: RunWithHistory) -> Curve:
    """The test accuracy of each evaluation, in percent."""
    evaluations = curve.run.result.evaluations if curve.run.result else []
    return np.array([each.step for each in evaluations], dtype=float), np.array(
        [100 * each.accuracy for each in evaluations], dtype=float
    )


def _rates(curve: RunWithHistory) -> Curve:
    plan = curve.history.plan
    steps = np.unique(np.linspace(0, len(plan) - 1, _MAX_POINTS).astype(int))
    return steps.astype(float), plan.effective_lr[steps]


def _signal(curve: RunWithHistory, name: str) -> Curve:
    """The signal's positive values, for a logarithmic axis; of many, every n-th, with n set by the planned steps."""
    shots = curve.history.snapshots
    if len(shots) > 1:
        planned = len(curve.history.plan) // (shots[1].step - shots[0].step)
        shots = shots[:: 1 + planned // _MAX_POINTS]
    points = [(shot.step, shot.signals.get(name, math.nan)) for shot in shots]
    positive = np.array([point for point in points if point[1] > 0], dtype=float).reshape(-1, 2)
    return positive[:, 0], clip_to_axis(positive[:, 1])
