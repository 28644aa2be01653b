"""The weights of a few runs side by side: gradients over depth, bars of every weight, heat maps over the steps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FixedLocator

from bertmon import plot_style
from bertmon.compare.plots import (
    COLOR_SCALE,
    MAX_DECADE,
    clip_to_axis,
    escape_mathtext,
    legend_on_top,
    powers_of_ten,
    wrap,
)
from bertmon.compare.results import Setting
from bertmon.compare.selection import RunWithHistory
from bertmon.monitor.history import FloatArray, Snapshot, WeightTable

NamedSnapshot = tuple[str, str, Snapshot]
"""Title, color and values of a panel."""


def gradient_depth(curves: Sequence[RunWithHistory], step: int) -> Figure | None:
    """Mean |gradient| against the encoder layer: one line per kind of matrix, one panel per run, a shared y-axis.

    None if no model has layers.
    """
    shots = [(curve, nearest_snapshot(curve, step)) for curve in curves]
    shots = [(curve, shot) for curve, shot in shots if shot.layers.matrix_groups]
    if not shots:
        return None
    names = dict.fromkeys(plot_style.matrix_name(group) for _, shot in shots for group in shot.layers.matrix_groups)
    styles = {name: plot_style.matrix_style(index, name) for index, name in enumerate(names)}
    values = [shot["grad_mean"][rows] for _, shot in shots for rows in shot.layers.matrix_groups.values()]
    titles = [wrap(_depth_title(curve, shot), 96 // len(shots)) for curve, shot in shots]
    heading = 0.55 + 0.16 * max(title.count("\n") for title in titles)
    height = 3.2 + heading
    with plot_style.theme():
        figure = Figure(figsize=(11, height))
        edges = {"left": 0.065, "right": 0.99, "bottom": 0.5 / height, "top": 1 - heading / height}
        grid = figure.add_gridspec(1, len(shots), wspace=0.05, **edges)
        panels = grid.subplots(sharey=True, squeeze=False)[0]
        for axes, (_, shot), name in zip(panels, shots, titles, strict=True):
            _depth_panel(axes, shot, styles)
            axes.set_title("\n".join(map(escape_mathtext, name.split("\n"))))
        panels[0].set(yscale="log", ylim=log_limits(values), ylabel="mean |gradient|")
        powers_of_ten(panels[0].yaxis)
        legend_on_top(figure, [Line2D([], [], label=name, **style) for name, style in styles.items()], left=0.055)
    return figure


def layer_bars(curves: Sequence[RunWithHistory], step: int, colors: Mapping[Setting, str]) -> list[Figure]:
    """Gradients and update ratios of every weight at the step nearest to `step`, one panel per run."""
    shots = []
    for curve in curves:
        shot = nearest_snapshot(curve, step)
        name = curve.setting.name if shot.step == step else f"{curve.setting.name}, step {shot.step}"
        shots.append((name, colors[curve.setting], shot))
    return [
        _bars(shots, "grad_mean", "|gradient|: mean (bar) and max (mark)"),
        _bars(shots, "update_ratio", "‖change‖ / ‖parameter‖"),
    ]


def layer_heatmap(curves: Sequence[RunWithHistory], statistic: str, title: str) -> Figure:
    """One statistic of each weight over the steps, one panel per run, on a shared scale."""
    values = [np.array([clip_to_axis(shot[statistic]) for shot in curve.history.snapshots]).T for curve in curves]
    norm: Normalize
    if statistic == "grad_zero":
        values, norm = [100 * value for value in values], Normalize(0, 100)
    else:
        norm = LogNorm(*log_limits(values))
    with plot_style.theme():
        figure = Figure(figsize=(11, 2.9))
        grid = figure.add_gridspec(1, len(curves), left=0.05, right=0.9, bottom=0.16, top=0.84, wspace=0.12)
        panels = grid.subplots(squeeze=False)[0]
        for axes, curve, value in zip(panels, curves, values, strict=True):
            _heatmap_panel(axes, curve, value, norm, wrap(curve.setting.name, 90 // len(curves)))
        panels[0].set_ylabel("encoder layer")
        bar = figure.colorbar(panels[0].images[0], cax=figure.add_axes((0.912, 0.16, 0.012, 0.68)))
    if isinstance(norm, LogNorm):
        powers_of_ten(bar.ax.yaxis)
    bar.set_label(title, color=plot_style.TEXT, fontsize=9)
    bar.ax.tick_params(colors=plot_style.TEXT, labelsize=8)
    bar.outline.set_visible(False)
    return figure


def nearest_snapshot(curve: RunWithHistory, step: int) -> Snapshot:
    return min(curve.history.snapshots, key=lambda shot: abs(shot.step - step))


def log_limits(values: Sequence[FloatArray]) -> tuple[float, float]:
    """Powers of ten around all positive values, at most twelve apart, so that vanished values do not squeeze others."""
    joined = np.concatenate([value.ravel() for value in values])
    positive = joined[np.isfinite(joined) & (joined > 0)]
    if not len(positive):
        return 0.1, 1.0
    top = min(math.ceil(math.log10(positive.max()) + 0.02), MAX_DECADE)
    return 10.0 ** max(math.floor(math.log10(positive.min()) - 0.05), top - 12), 10.0**top


def _depth_panel(axes: Axes, shot: Snapshot, styles: Mapping[str, Mapping[str, Any]]) -> None:
    for group, rows in shot.layers.matrix_groups.items():
        depths = [shot.layers.depths[row] or 0 for row in rows]  # matrices in groups have a depth
        mean = clip_to_axis(shot["grad_mean"][rows])
        style = styles[plot_style.matrix_name(group)]
        axes.plot(depths, np.where(mean > 0, mean, np.nan), markersize=4, linewidth=1.6, **style)
    axes.set_xlabel("encoder layer (0 is next to the input)")
    axes.xaxis.set_major_locator(FixedLocator(range(0, max(depths) + 1, 1 + len(depths) // 13)))


def _depth_title(curve: RunWithHistory, shot: Snapshot) -> str:
    verdict = f": {curve.run.verdict}" if curve.run.verdict else ""
    return f"{curve.setting.name}{verdict}, step {shot.step}"


def _bars(shots: Sequence[NamedSnapshot], statistic: str, title: str) -> Figure:
    """One statistic of each weight; weights are labeled once if all runs have the same ones."""
    most = max(len(shot.layers) for _, _, shot in shots)
    heading = max(wrap(name, 90 // len(shots)).count("\n") for name, _, _ in shots) * 0.16 + 0.33
    height = 0.145 * most + 0.42 + heading
    same_weights = len({shot.layers for _, _, shot in shots}) == 1
    left, gap = 0.2, 0.03 if same_weights else 0.2
    width = (0.985 - left - gap * (len(shots) - 1)) / len(shots)
    limits = log_limits([clip_to_axis(shot[statistic]) for _, _, shot in shots])
    with plot_style.theme():
        figure = Figure(figsize=(11, height))
        for column, (name, color, shot) in enumerate(shots):
            box = (left + column * (width + gap), 0.42 / height, width, 1 - (0.42 + heading) / height)
            axes = figure.add_axes(box)
            axes.set(xscale="log", xlim=limits, ylim=(len(shot.layers) - 0.4, -0.6), xlabel=title)
            axes.set_title("\n".join(map(escape_mathtext, wrap(name, 90 // len(shots)).split("\n"))))
            axes.grid(False, axis="y")
            powers_of_ten(axes.xaxis)
            _bar_panel(axes, shot, statistic, color, limits[0], labeled=column == 0 or not same_weights)
    return figure


def _bar_panel(axes: Axes, shot: Snapshot, statistic: str, color: str, low: float, *, labeled: bool) -> None:
    values, rows = clip_to_axis(shot[statistic]), np.arange(len(shot.layers))
    bars = [
        Path([(low, y - 0.37), (x, y - 0.37), (x, y + 0.37), (low, y + 0.37)])
        for x, y in zip(values, rows, strict=True)
        if x > low
    ]
    if bars:  # as one path: a page has thousands of them
        axes.add_patch(PathPatch(Path.make_compound_path(*bars), facecolor=color, linewidth=0))
    if statistic == "grad_mean":
        largest = clip_to_axis(shot["grad_max"])
        axes.plot(largest, rows, "|", color=plot_style.TEXT, markersize=4.5, markeredgewidth=1)
    axes.set_yticks([])
    if labeled:
        axes.set_yticks(rows, [escape_mathtext(label[:80]) for label in shot.layers.labels], fontsize=7)
        axes.tick_params(axis="y", length=0)
    for row in rows[~(values > 0)]:
        text = " none" if np.isnan(values[row]) else f" {values[row]:g}"
        axes.text(low, row, text, fontsize=6.5, va="center", color=plot_style.TEXT)


def _heatmap_panel(axes: Axes, curve: RunWithHistory, value: FloatArray, norm: Normalize, title: str) -> None:
    shots = curve.history.snapshots
    layers = shots[0].layers
    end = shots[-1].step + shots[-1].step / max(len(shots) - 1, 1) + 1
    axes.imshow(
        np.where(np.isfinite(value), value, np.nan),
        norm=norm,
        cmap=COLOR_SCALE,
        aspect="auto",
        interpolation="nearest",
        extent=(shots[0].step, end, len(layers) - 0.5, -0.5),
    )
    axes.set_title("\n".join(map(escape_mathtext, title.split("\n"))))
    axes.grid(False)
    axes.set_xlabel("step")
    ticks = _layer_ticks(layers)
    axes.yaxis.set_major_locator(FixedLocator([row for row, _ in ticks]))
    axes.set_yticklabels([label for _, label in ticks], fontsize=7.5)


def _layer_ticks(layers: WeightTable) -> list[tuple[float, str]]:
    """The middle row and the number of each encoder layer, or of every n-th if there are many."""
    rows: dict[int, list[int]] = {}
    for row, depth in enumerate(layers.depths):
        if depth is not None:
            rows.setdefault(depth, []).append(row)
    every = 1 + len(rows) // 13
    return [(float(np.mean(members)), str(depth)) for depth, members in rows.items() if depth % every == 0]
