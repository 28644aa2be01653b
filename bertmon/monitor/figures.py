"""Snapshot -> matplotlib Figure. Pure: no pyplot, no state, nothing written.

One row a layer, input at the top, output at the bottom; encoder layers take turns between white and grey.
"""

import functools
import io
import re

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image

from bertmon.monitor import Snapshot

HEALTHY_RATIO = 1e-3
"""Rule of thumb for the update/parameter ratio (CS231n, https://cs231n.github.io/neural-networks-3)."""

# Okabe & Ito's palette, told apart by colour-blind readers too (https://jfly.uni-koeln.de/color).
_COLOURS = {
    "linear": "#0072B2",
    "embedding": "#009E73",
    "norm": "#CC79A7",
    "bias": "#E69F00",
    "other": "#56B4E9",
}
_INK, _QUIET, _ALARM, _GRID, _BAND, _PAPER = "#222222", "#777777", "#D55E00", "#D5D7DB", "#EEF0F3", "#FFFFFF"
_ROW_INCHES, _ABOVE_INCHES, _BELOW_INCHES, _WIDTH_INCHES, _DPI = 0.15, 0.7, 0.52, 10.5, 100
_LEFT, _RIGHT = 0.235, 0.975  # edges of the panels, as shares of the width


def gradient_flow(snapshot: Snapshot) -> Figure:
    """Mean, largest and standard deviation of |gradient| and the share of zeros, for each layer."""
    figure, (flow, zeros) = _sheet(snapshot, "Gradient flow", "before clipping", widths=(4, 1))
    mean, largest, spread = (snapshot[name] for name in ("grad_mean", "grad_max", "grad_std"))
    low = _log_axis(flow, np.concatenate([mean, largest, spread]))
    rows = np.arange(len(mean))
    _bars(flow, mean, snapshot.kinds, start=low)
    flow.plot(spread, rows, linestyle="none", marker="o", markersize=3.2, color="white", markeredgecolor=_INK)
    flow.plot(largest, rows, linestyle="none", marker="|", markersize=5.5, color=_INK, markeredgewidth=1.2)
    _name_missing(flow, mean, "gradient")
    flow.set_xlabel("|gradient|")

    _bars(zeros, 100 * snapshot["grad_zero"], snapshot.kinds, start=0)
    zeros.set_xlim(0, 104)
    zeros.xaxis.set_major_locator(FixedLocator([0, 50, 100]))
    zeros.set_xlabel("zeros [%]")

    marks = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker="o",
            markersize=4,
            color="white",
            markeredgecolor=_INK,
            label="std",
        ),
        Line2D([], [], linestyle="none", marker="|", markersize=8, color=_INK, label="max"),
    ]
    _legend(figure, snapshot.kinds, "mean: ", marks)
    return figure


def update_ratio(snapshot: Snapshot) -> Figure:
    """L2 norm of each layer's change in this step over that of the layer itself."""
    figure, (axes,) = _sheet(snapshot, "Update / parameter ratio", "measured over this step", widths=(1,))
    ratio = snapshot["update_ratio"]
    low = _log_axis(axes, np.append(ratio, HEALTHY_RATIO))
    _bars(axes, ratio, snapshot.kinds, start=low)
    axes.axvline(HEALTHY_RATIO, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    _name_missing(axes, ratio, "update" if snapshot.lr else "update: the learning rate is 0")
    axes.set_xlabel("||change|| / ||parameter||")
    rule = Line2D([], [], color=_INK, linewidth=1, linestyle=(0, (4, 3)), label="1e-3, rule of thumb for matrices")
    _legend(figure, snapshot.kinds, "", [rule])
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, in a palette of its own colours: a third of the size of full colour."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    file = io.BytesIO()
    pixels.quantize(palette=_palette(), dither=Image.Dither.NONE).save(file, "png")
    return file.getvalue()


def _palette() -> Image.Image:
    """Grounds, inks, and what lies between them; Pillow rounds colours, so nothing may lie close to a ground."""
    inks = np.array([to_rgb(colour) for colour in (*_COLOURS.values(), _INK, _QUIET, _ALARM, _GRID)])
    grounds = np.array([to_rgb(colour) for colour in (_PAPER, _BAND)])
    shares = np.linspace(0.125, 1, 8)[:, None, None, None]  # of ink, as smoothed edges have them
    blends = ((1 - shares) * grounds[:, None] + shares * inks).reshape(-1, 3)
    apart = np.abs(blends[:, None] - grounds).max(axis=2).min(axis=1) > 0.05
    palette = Image.new("P", (1, 1))
    palette.putpalette((255 * np.concatenate([grounds, blends[apart]])).round().astype(np.uint8).tobytes())
    return palette


def _sheet(snapshot: Snapshot, title: str, remark: str, *, widths: tuple[int, ...]) -> tuple[Figure, list[Axes]]:
    """Axes side by side over the same rows, with labels at the left and a title above."""
    count = len(snapshot.layers)
    height = _ROW_INCHES * count + _ABOVE_INCHES + _BELOW_INCHES
    figure = Figure(figsize=(_WIDTH_INCHES, height), dpi=_DPI, facecolor=_PAPER)
    grid = figure.add_gridspec(
        1,
        len(widths),
        width_ratios=widths,
        wspace=0.06,
        left=_LEFT,
        right=_RIGHT,
        top=1 - _ABOVE_INCHES / height,
        bottom=_BELOW_INCHES / height,
    )
    panels = [figure.add_subplot(grid[0, column]) for column in range(len(widths))]
    bands = _bands(snapshot.layers)
    for axes in panels:
        axes.set_ylim(count - 0.5, -0.5)
        axes.set_yticks([])
        axes.tick_params(axis="x", labelsize=8, colors=_QUIET, length=2)
        axes.xaxis.label.set(fontsize=9, color=_INK)
        axes.grid(axis="x", color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        for side in axes.spines:
            axes.spines[side].set_visible(False)
        axes.add_collection(
            PolyCollection(
                [[(0, top), (1, top), (1, bottom), (0, bottom)] for top, bottom in bands],
                facecolor=_BAND,
                zorder=-1,
                transform=axes.get_yaxis_transform(),
            ),
            autolim=False,
        )
    figure.figimage(_labels(snapshot.layers), xo=0, yo=round(_BELOW_INCHES * _DPI), zorder=1)
    figure.text(
        0.012,
        1 - 0.12 / height,
        f"{title}, step {snapshot.step}",
        fontsize=12,
        color=_INK,
        weight="bold",
        va="top",
    )
    figure.text(
        _RIGHT,
        1 - 0.14 / height,
        f"learning rate {snapshot.lr:.3g}, {remark}",
        fontsize=9,
        color=_QUIET,
        va="top",
        ha="right",
    )
    return figure, panels


@functools.lru_cache(maxsize=4)
def _labels(layers: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    """The column of labels at the left, as pixels: text is what takes the time, and it is the same at every step."""
    width, height = _LEFT * _WIDTH_INCHES, _ROW_INCHES * len(layers)
    column = Figure(figsize=(width, height), dpi=_DPI)
    column.patch.set_alpha(0)
    for row, label in enumerate(layers):
        y = 1 - (row + 0.5) / len(layers)
        column.text(1 - 0.05 / width, y, label, fontsize=7.5, color=_INK, ha="right", va="center_baseline")
    canvas = FigureCanvasAgg(column)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def _bands(layers: tuple[str, ...]) -> list[tuple[float, float]]:
    """First and last edge, in rows, of every second encoder layer."""
    numbers = [int(found[1]) if (found := re.search(r"\.l(?:ayers?)?\.(\d+)\.", label)) else -1 for label in layers]
    rows = {number: [row for row, n in enumerate(numbers) if n == number] for number in set(numbers) if number >= 0}
    return [(min(found) - 0.5, max(found) + 0.5) for number, found in rows.items() if number % 2 == 0]


def _bars(axes: Axes, widths: npt.NDArray[np.float64], kinds: tuple[str, ...], *, start: float) -> None:
    """Horizontal bars from `start` to the finite widths above it, one a row, coloured by kind."""
    drawn = [row for row, width in enumerate(widths) if np.isfinite(width) and width > start]
    axes.add_collection(
        PolyCollection(
            [
                [
                    (start, row - 0.36),
                    (widths[row], row - 0.36),
                    (widths[row], row + 0.36),
                    (start, row + 0.36),
                ]
                for row in drawn
            ],
            facecolor=[_COLOURS[kinds[row]] for row in drawn],
        ),
        autolim=False,
    )


def _log_axis(axes: Axes, values: npt.NDArray[np.float64]) -> float:
    """A logarithmic axis over whole decades that holds every positive value uncut; returns its lower end."""
    positive = values[np.isfinite(values) & (values > 0)]
    exponents = np.log10(positive) if len(positive) else np.array([-1.0, 0.0])
    low, high = int(np.floor(exponents.min() - 0.05)), int(np.ceil(exponents.max() + 0.02))
    axes.set_xscale("log")
    axes.set_xlim(10.0**low, 10.0**high)
    every = max(1, -(-(high - low) // 12))
    axes.xaxis.set_major_locator(FixedLocator([10.0**exponent for exponent in range(low, high + 1, every)]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"1e{round(np.log10(value))}"))
    axes.xaxis.set_minor_locator(LogLocator(subs=range(2, 10)) if high - low <= 3 else NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    return float(10.0**low)


def _name_missing(axes: Axes, values: npt.NDArray[np.float64], what: str) -> None:
    """Say in words where a logarithmic bar cannot be: all zero, infinite, or not a number."""
    if not values.any():
        axes.text(
            0.5,
            0.5,
            f"no {what}",
            transform=axes.transAxes,
            ha="center",
            va="center",
            fontsize=11,
            color=_QUIET,
        )
        return
    for row, value in enumerate(values):
        if not (np.isfinite(value) and value > 0):
            word = "none" if np.isnan(value) else f"{value:g}"
            axes.text(
                0.006,
                row,
                word,
                transform=axes.get_yaxis_transform(),
                va="center",
                fontsize=7,
                color=_QUIET if value == 0 else _ALARM,
            )


def _legend(figure: Figure, kinds: tuple[str, ...], prefix: str, marks: list[Line2D]) -> None:
    patches = [Patch(color=colour, label=prefix + kind) for kind, colour in _COLOURS.items() if kind in kinds]
    figure.legend(
        handles=[*patches, *marks],
        loc="upper left",
        bbox_to_anchor=(0.005, 1 - 0.31 / figure.get_figheight()),
        ncols=len(patches) + len(marks),
        fontsize=8.5,
        frameon=False,
        handlelength=1.2,
        columnspacing=1.4,
        borderaxespad=0.2,
    )
