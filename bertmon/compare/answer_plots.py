"""Figures of a sweep's results: accuracy over one swept key, over two, and over the peak effective rate."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bertmon import plot_style
from bertmon.compare.plots import COLOR_SCALE, Titles, escape_mathtext, label_level, legend_on_top, rate_axis, wrap
from bertmon.compare.results import RunSummary, Sweep, short_names
from bertmon.monitor.history import FloatArray
from bertmon.notation import format_percent, format_rate

_MAX_VALUES = 12  # of a key on an axis
_MAX_FACETS = 4  # values of a third key
_FAILED_SCALE = LinearSegmentedColormap.from_list("failed", ["#eef0f3", plot_style.VERMILION])


def accuracy_over_rate(sweep: Sweep) -> tuple[Figure, Titles] | None:
    """A point per run: last accuracy over the peak effective learning rate, colored by verdict. None for one run."""
    runs = [run for run in sweep.ended if run.peak_effective_lr > 0]
    if len(runs) < 2:
        return None
    with plot_style.theme():
        figure = Figure(figsize=(5.4, 3.6))
        axes = figure.add_axes((0.115, 0.145, 0.865, 0.71))
        verdicts = [_verdict_name(run) for run in runs]
        seaborn.scatterplot(
            x=[run.peak_effective_lr for run in runs],
            y=[100 * run.final("accuracy") for run in runs],
            hue=verdicts,
            palette={name: _verdict_color(name) for name in verdicts},
            s=42 if len(runs) < 100 else 18,
            alpha=0.85,
            linewidth=0.4,
            legend=False,
            ax=axes,
        )
        axes.collections[0].set_gid("rate-points")
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        if high / low < 4:
            axes.set_xlim(low / 2, high * 2)
        rate_axis(axes)
        axes.set(xlabel="peak effective learning rate", ylabel="test accuracy [%]")
        _finish(axes, "accuracy over the peak effective rate, one point per run", runs)
        _verdict_legend(figure, verdicts)
    return figure, {"rate-points": [_run_title(run) for run in runs]}


def accuracy_over_key(sweep: Sweep) -> tuple[Figure, Titles] | None:
    """For one swept key: a column of points for each value, with mean and standard deviation. None for other sweeps."""
    if len(sweep.swept) != 1 or len(sweep.settings) < 2 or not sweep.values_are_unique:
        return None
    (key,) = sweep.swept
    order = _ordered(sweep, key)
    settings = sorted((each for each in sweep.settings if each.values), key=lambda each: order.index(each.values[key]))
    runs = [run for setting in settings for run in setting.ended]
    if not runs or len(order) > _MAX_VALUES:
        return None
    x = [order.index(setting.values[key]) for setting in settings for _ in setting.ended]
    y = [100 * run.final("accuracy") for run in runs]
    with plot_style.theme():
        figure = Figure(figsize=(5.4, 3.6))
        axes = figure.add_axes((0.115, 0.145, 0.865, 0.71))
        titles = _strips(axes, len(order), x, y, runs)
        axes.set_xticks(range(len(order)), [_label(sweep, key, value) for value in order])
        axes.set(xlabel=escape_mathtext(key), ylabel="test accuracy [%]")
        _finish(axes, "accuracy by setting: runs, mean and standard deviation", runs)
        _verdict_legend(figure, [_verdict_name(run) for run in runs])
    return figure, titles


def heat_maps(sweep: Sweep) -> list[Figure]:
    """For two swept keys (a third one in panels): mean accuracy, and how many runs did not learn; else empty."""
    if not 2 <= len(sweep.swept) <= 3 or not sweep.values_are_unique:
        return []
    third = sweep.swept[2] if len(sweep.swept) == 3 else None
    facets = _ordered(sweep, third) if third else [None]
    rows, columns = sorted(sweep.swept[:2], key=lambda key: key != "optimizer.lr")
    sizes = [len(_ordered(sweep, key)) for key in (rows, columns)]
    if min(sizes) < 2 or max(sizes) > _MAX_VALUES or len(facets) > _MAX_FACETS:
        return []
    figures = [_heat_map(sweep, rows, columns, third, value) for value in facets]
    return [figure for figure in figures if figure]


def _heat_map(sweep: Sweep, rows: str, columns: str, third: str | None, facet: Any) -> Figure | None:
    """Two panels with the same axes: mean accuracy, and k/n runs that did not learn. None if no run has ended."""
    cells = [
        setting
        for setting in sweep.settings
        if setting.ended and setting.values and (third is None or setting.values[third] == facet)
    ]
    if not cells:
        return None
    ys, xs = _ordered(sweep, rows), _ordered(sweep, columns)
    accuracy, failed = np.full((2, len(ys), len(xs)), np.nan)
    texts = np.full((2, len(ys), len(xs)), "", dtype=object)
    for setting in cells:
        at = ys.index(setting.values[rows]), xs.index(setting.values[columns])
        mean, deviation, _ = setting.mean("accuracy")
        accuracy[at], failed[at] = 100 * mean, len(setting.runs_not_learned) / len(setting.ended)
        texts[0][at] = f"{100 * mean:.1f}" + ("" if math.isnan(deviation) else f"\n± {100 * deviation:.1f}")
        texts[1][at] = f"{len(setting.runs_not_learned)}/{len(setting.ended)}"
    height = 1.15 + 0.52 * len(ys)
    where = escape_mathtext(f" ({short_names(sweep.swept)[third]}={sweep.label(third, facet)})") if third else ""
    means = [100 * setting.mean("accuracy")[0] for setting in sweep.settings if setting.ended]
    with plot_style.theme():
        figure = Figure(figsize=(11, height))
        grid = figure.add_gridspec(
            1, 2, left=0.09, right=0.99, bottom=0.52 / height, top=1 - 0.38 / height, wspace=0.17
        )
        left, right = grid.subplots(squeeze=False)[0]
        colors = COLOR_SCALE.with_extremes(bad=(0, 0, 0, 0))
        _cells(left, accuracy, texts[0], colors, (min(means), max(means)))
        _cells(right, failed, texts[1], _FAILED_SCALE, (0.0, 1.0))
        for axes, title in ((left, "mean test accuracy [%]"), (right, "runs that did not learn")):
            axes.set_title(title + where)
            axes.set_xticklabels([_label(sweep, columns, value) for value in xs])
            axes.set_yticklabels([_label(sweep, rows, value) for value in ys], rotation=0)
            axes.set_xlabel(escape_mathtext(columns))
        left.set_ylabel(escape_mathtext(rows))
    return figure


def _cells(axes: Axes, values: FloatArray, texts: Any, scale: Colormap, limits: tuple[float, float]) -> None:
    """One heat map [rows, columns], the first row at the bottom; nan is left blank."""
    seaborn.heatmap(
        values,
        cmap=scale,
        vmin=limits[0],
        vmax=limits[1],
        annot=texts,
        fmt="",
        cbar=False,
        linewidths=1.5,
        linecolor="none",
        annot_kws={"fontsize": 9},
        xticklabels=True,
        yticklabels=True,
        ax=axes,
    )
    axes.invert_yaxis()


def _strips(
    axes: Axes, columns: int, x: Sequence[int], y: Sequence[float], runs: Sequence[RunSummary]
) -> dict[str, list[str]]:
    """Columns of points, with mean and standard deviation; x: the column of each run. Returns the points' titles."""
    verdicts = [_verdict_name(run) for run in runs]
    seaborn.swarmplot(
        x=x,
        y=y,
        order=range(columns),
        hue=verdicts,
        palette={name: _verdict_color(name) for name in verdicts},
        size=6 if len(runs) < 100 else 3,
        alpha=0.85,
        linewidth=0.4,
        legend=False,
        warn_thresh=1.0,
        ax=axes,
    )
    titles = {}
    for column, points in enumerate(axes.collections):
        members = [run for run, place in zip(runs, x, strict=True) if place == column]
        points.set_gid(f"strip{column}")
        titles[f"strip{column}"] = [_run_title(run) for run in members]
    if len(runs) > columns:
        seaborn.pointplot(
            x=x,
            y=y,
            order=range(columns),
            errorbar="sd",
            linestyle="none",
            marker="_",
            markersize=26,
            color=plot_style.TEXT,
            err_kws={"linewidth": 1.2, "color": plot_style.TEXT},
            capsize=0.12,
            ax=axes,
        )
    return titles


def _finish(axes: Axes, title: str, runs: Sequence[RunSummary]) -> None:
    """Title, and a line at the majority share."""
    axes.set_title(title, pad=20)
    shares = {100 * run.result.data.majority_share for run in runs if run.result and run.result.data}
    for share in sorted(shares)[:3]:
        axes.axhline(share, color=plot_style.TEXT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, *shares, 100) - 3, min(high + 2, 102))
    if shares:
        label_level(axes, "most frequent class", max(shares), above=False)


def _verdict_legend(figure: Figure, verdicts: Sequence[str]) -> None:
    order = [name for name in (*plot_style.VERDICT_COLORS, "not monitored") if name in verdicts]
    handles = [Line2D([], [], ls="none", marker="o", ms=6, color=_verdict_color(name), label=name) for name in order]
    legend_on_top(figure, handles, left=0.1, top=0.94)


def _verdict_name(run: RunSummary) -> str:
    return str(run.verdict) if run.verdict else "not monitored"


def _verdict_color(name: str) -> str:
    return plot_style.verdict_color(None if name == "not monitored" else name)


def _label(sweep: Sweep, key: str, value: Any) -> str:
    """The label of a tick."""
    return escape_mathtext(wrap(sweep.label(key, value), 30))


def _run_title(run: RunSummary) -> str:
    result = f"{format_percent(run.final('accuracy'))}, {_verdict_name(run)}"
    return f"{run.name}: {result}, peak rate {format_rate(run.peak_effective_lr)}"


def _ordered(sweep: Sweep, key: str) -> list[Any]:
    """The values of a swept key: numbers in ascending order, others in order of appearance."""
    values = list(dict.fromkeys(setting.values[key] for setting in sweep.settings if key in setting.values))
    if all(isinstance(value, int | float) for value in values):
        values.sort()
    return values
