"""The figures of a step: Snapshot -> matplotlib Figure. Pure: no pyplot, no files.

Figures have the same axes in all runs, so that runs can be compared by eye; an axis is extended only for values above
it, in a run that diverges. figure_canvas draws them fast.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator

from bertmon import plot_style
from bertmon.monitor.figure_canvas import DPI, HEADING_INCHES, Decades, Panel, log_ticks, on_background
from bertmon.monitor.history import FloatArray, Snapshot, WeightTable
from bertmon.notation import format_rate

HEALTHY_RATIO = 1e-3
"""Rule of thumb for the update/parameter ratio (CS231n, https://cs231n.github.io/neural-networks-3)."""

GRADIENT_DECADES, RATIO_DECADES = (-12, 1), (-9, 0)
"""Ends of the axes, as exponents of ten."""

_ROW_INCHES, _ABOVE_INCHES, _BELOW_INCHES, _WIDTH_INCHES = 0.15, 0.7, 0.52, 10.5
_LEFT, _RIGHT = 0.235, 0.975  # edges of the panels, as shares of the width
_DASHES = (0, (4, 3))


def gradient_flow(snapshot: Snapshot) -> Figure:
    """Mean, largest value and standard deviation of |gradient| and the share of zeros, for each weight."""
    mean, largest, std = (snapshot[name] for name in ("grad_mean", "grad_max", "grad_std"))
    decades = axis_decades(GRADIENT_DECADES, mean, largest, std)
    title = _title("Gradient flow", snapshot)
    flow, zeros = on_background(
        gradient_flow_background, snapshot.layers, decades, title=title, remark=_rate(snapshot)
    )  # fmt: skip
    rows, colors = np.arange(len(mean)), [plot_style.KIND_COLORS[kind] for kind in snapshot.layers.kinds]
    text = plot_style.TEXT
    flow.bars(mean, colors)
    std, largest = (np.where(mean > 10.0 ** decades[0], values, np.nan) for values in (std, largest))
    flow.line(std, rows, ls="none", marker="o", ms=3.2, color=plot_style.WHITE, mec=text)
    flow.line(largest, rows, ls="none", marker="|", ms=5.5, color=text, mew=1.2)
    _label_missing(flow, mean, "gradient")
    zeros.bars(100 * snapshot["grad_zero"], colors)
    return flow.figure


def update_ratio(snapshot: Snapshot) -> Figure:
    """L2 norm of each weight's change in this step over the L2 norm of the weight."""
    ratio = snapshot["update_ratio"]
    (panel,) = on_background(
        update_ratio_background,
        snapshot.layers,
        axis_decades(RATIO_DECADES, ratio),
        title=_title("Update / parameter ratio", snapshot),
        remark=_rate(snapshot),
    )
    panel.bars(ratio, [plot_style.KIND_COLORS[kind] for kind in snapshot.layers.kinds])
    ends = [-0.5, len(ratio) - 0.5]
    panel.line([HEALTHY_RATIO, HEALTHY_RATIO], ends, color=plot_style.TEXT, linestyle=_DASHES)
    _label_missing(panel, ratio, "update" if snapshot.lr else "update: the learning rate is 0")
    return panel.figure


def gradient_depth(snapshot: Snapshot) -> Figure | None:
    """Mean |gradient| against the encoder layer, one line per kind of matrix; None for a model without layers."""
    groups = snapshot.layers.matrix_groups
    if not groups:
        return None
    mean = snapshot["grad_mean"]
    decades = axis_decades(GRADIENT_DECADES, *(mean[rows] for rows in groups.values()))
    title = _title("Gradient by depth", snapshot)
    (panel,) = on_background(
        gradient_depth_background, snapshot.layers, decades, title=title, remark=_rate(snapshot)
    )  # fmt: skip
    for index, (group, rows) in enumerate(groups.items()):
        depths = [snapshot.layers.depths[row] or 0 for row in rows]  # matrices in groups have a depth
        style = plot_style.matrix_style(index, plot_style.matrix_name(group))
        panel.line(depths, mean[rows], linewidth=1.6, ms=4.5, **style)
    return panel.figure


def axis_decades(usual: Decades, *values: FloatArray) -> Decades:
    """The usual ends of an axis, the upper one raised in steps of three decades until every finite value fits."""
    joined = np.concatenate(values)
    largest = joined[np.isfinite(joined)].max(initial=0.0)
    low, high = usual
    while largest > 10.0 ** (high - 0.02) and high < 300:
        high += 3
    return low, high


def gradient_flow_background(layers: WeightTable, decades: Decades) -> tuple[Figure, list[Axes]]:
    figure, panels = _rows_background(layers, decades, widths=(4, 1))
    panels[0].set_xlabel("|gradient| before clipping")
    panels[1].set_xlim(0, 104)
    panels[1].xaxis.set_major_locator(FixedLocator([0, 50, 100]))
    panels[1].set_xlabel("zeros [%]")
    marks = [
        Line2D([], [], ls="none", marker="o", ms=4, color=plot_style.WHITE, mec=plot_style.TEXT, label="std"),
        Line2D([], [], ls="none", marker="|", ms=8, color=plot_style.TEXT, label="max"),
    ]
    _legend(figure, [*_kind_patches(layers, "mean: "), *marks])
    return figure, panels


def update_ratio_background(layers: WeightTable, decades: Decades) -> tuple[Figure, list[Axes]]:
    figure, panels = _rows_background(layers, decades, widths=(1,))
    panels[0].set_xlabel("‖change in this step‖ / ‖parameter‖")
    label = "1e-3, rule of thumb for matrices"
    rule = Line2D([], [], color=plot_style.TEXT, linewidth=1, linestyle=_DASHES, label=label)
    _legend(figure, [*_kind_patches(layers, ""), rule])
    return figure, panels


def gradient_depth_background(layers: WeightTable, decades: Decades) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(_WIDTH_INCHES, 4.6), dpi=DPI, facecolor=plot_style.WHITE)
    axes = figure.add_axes((0.075, 0.12, 0.9, 0.7))
    depths = sorted({depth for depth in layers.depths if depth is not None})
    axes.set(yscale="log", ylim=(10.0 ** decades[0], 10.0 ** decades[1]))  # smaller values are drawn on the lower edge
    log_ticks(axes.yaxis, decades)
    axes.set_xlim(depths[0] - 0.4, depths[-1] + 0.4)
    axes.set_xticks(depths[:: 1 + len(depths) // 25])
    axes.set_xlabel("encoder layer (0 is next to the input)")
    axes.set_ylabel("mean |gradient|")
    _style(axes)
    axes.grid(axis="y", color=plot_style.GRID, linewidth=0.6)
    names = map(plot_style.matrix_name, layers.matrix_groups)
    _legend(figure, [Line2D([], [], label=name, **plot_style.matrix_style(i, name)) for i, name in enumerate(names)])
    return figure, [axes]


def _rows_background(layers: WeightTable, decades: Decades, widths: Sequence[int]) -> tuple[Figure, list[Axes]]:
    """A row for each weight, input at the top; encoder layers alternate between white and gray."""
    height = _ROW_INCHES * len(layers) + _ABOVE_INCHES + _BELOW_INCHES
    figure = Figure(figsize=(_WIDTH_INCHES, height), dpi=DPI, facecolor=plot_style.WHITE)
    edges = {"left": _LEFT, "right": _RIGHT, "top": 1 - _ABOVE_INCHES / height, "bottom": _BELOW_INCHES / height}
    grid = figure.add_gridspec(1, len(widths), width_ratios=widths, wspace=0.06, **edges)
    panels = [figure.add_subplot(grid[0, column]) for column in range(len(widths))]
    for axes in panels:
        axes.set_ylim(len(layers) - 0.5, -0.5)
        axes.set_yticks([])
        _style(axes)
        for top, bottom in _bands(layers.depths):
            axes.axhspan(top, bottom, color=plot_style.BAND, linewidth=0, zorder=-1)
    panels[0].set_yticks(range(len(layers)), layers.labels, fontsize=7.5, color=plot_style.TEXT)
    panels[0].tick_params(axis="y", length=0, pad=3)
    panels[0].set(xscale="log", xlim=(10.0 ** decades[0], 10.0 ** decades[1]))
    log_ticks(panels[0].xaxis, decades)
    return figure, panels


def _style(axes: Axes) -> None:
    axes.tick_params(labelsize=8, colors=plot_style.MUTED, length=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(fontsize=9, color=plot_style.TEXT)
    axes.grid(axis="x", color=plot_style.GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _kind_patches(layers: WeightTable, prefix: str) -> list[Patch]:
    kinds = [kind for kind in plot_style.KIND_COLORS if kind in layers.kinds]
    return [Patch(color=plot_style.KIND_COLORS[kind], label=prefix + kind) for kind in kinds]


def _legend(figure: Figure, handles: Sequence[Patch | Line2D]) -> None:
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.005, 1 - (HEADING_INCHES - 0.09) / figure.get_figheight()),
        ncols=len(handles),
        fontsize=8.5,
        frameon=False,
        handlelength=1.8,
        columnspacing=1.4,
        borderaxespad=0.2,
    )


def _bands(depths: Sequence[int | None]) -> list[tuple[float, float]]:
    """Upper and lower edge, in rows, of every second encoder layer."""
    rows: dict[int, list[int]] = {}
    for row, depth in enumerate(depths):
        if depth is not None and depth % 2 == 0:
            rows.setdefault(depth, []).append(row)
    return [(min(members) - 0.5, max(members) + 0.5) for members in rows.values()]


def _title(what: str, snapshot: Snapshot) -> str:
    return f"{what}, step {snapshot.step}"


def _rate(snapshot: Snapshot) -> str:
    """The learning rate of the step, and the effective one if it differs."""
    text = f"learning rate {format_rate(snapshot.lr)}"
    if snapshot.effective_lr != snapshot.lr:
        text += f", effective {format_rate(snapshot.effective_lr)}"
    return text


def _label_missing(panel: Panel, values: FloatArray, what: str) -> None:
    """Write out values that have no bar on a logarithmic axis: zero, below the axis, infinite or not a number."""
    if not values.any():
        x, y = sum(panel.x.pixels) / 2, float(panel.y(len(values) / 2 - 0.5))
        panel.write(x, y, f"no {what}", fontsize=11, color=plot_style.MUTED, ha="center")
        return
    for row, value in enumerate(values):
        if np.isfinite(value) and value > 10.0 ** panel.x.values[0]:
            continue
        text = "none" if np.isnan(value) else format_rate(value)
        color = plot_style.ERROR if not np.isfinite(value) else plot_style.MUTED
        panel.write(panel.x.pixels[0] + 4, float(panel.y(row)), text, fontsize=7, color=color)
