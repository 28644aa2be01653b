"""Snapshot -> matplotlib Figure. Pure: no pyplot, nothing written, nothing remembered but pictures of empty sheets.

One row a layer, input at the top, output at the bottom; encoder layers take turns between white and grey. Axes and text
take nearly all of matplotlib's time, and from step to step they hardly change: `blank` draws them once for each range
of decades, and a figure is such a sheet, as pixels, with bars and marks on top. Coordinates there are pixels from the
lower left corner.
"""

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import IdentityTransform
from PIL import Image

from bertmon.monitor.history import Snapshot, WeightTable

HEALTHY_RATIO = 1e-3
"""Rule of thumb for the update/parameter ratio (CS231n, https://cs231n.github.io/neural-networks-3)."""

# Okabe & Ito's palette, told apart by colour-blind readers too (https://jfly.uni-koeln.de/color).
_COLORS = {
    "linear": "#0072B2",
    "embedding": "#009E73",
    "norm": "#CC79A7",
    "bias": "#E69F00",
    "other": "#56B4E9",
}
_TEXT, _MUTED, _ERROR, _GRID, _BAND, _WHITE = "#222222", "#777777", "#D55E00", "#D5D7DB", "#EEF0F3", "#FFFFFF"
_ROW_INCHES, _ABOVE_INCHES, _BELOW_INCHES, _WIDTH_INCHES, _DPI = 0.15, 0.7, 0.52, 10.5, 100
_LEFT, _RIGHT = 0.235, 0.975  # edges of the panels, as shares of the width
_DASHES = (0, (4, 3))


def gradient_flow(snapshot: Snapshot) -> Figure:
    """Mean, largest and standard deviation of |gradient| and the share of zeros, for each layer."""
    mean, largest, spread = (snapshot[name] for name in ("grad_mean", "grad_max", "grad_std"))
    sheet = _sheet("gradient_flow", snapshot.layers, _decades(mean, largest, spread))
    figure = _figure_on(sheet, snapshot, "Gradient flow", "before clipping")
    flow, zeros = sheet.panels
    flow.bars(figure, mean, snapshot.layers.kinds)
    flow.marks(figure, spread, marker="o", markersize=3.2, color=_WHITE, markeredgecolor=_TEXT)
    flow.marks(figure, largest, marker="|", markersize=5.5, color=_TEXT, markeredgewidth=1.2)
    flow.label_missing(figure, mean, "gradient")
    zeros.bars(figure, 100 * snapshot["grad_zero"], snapshot.layers.kinds)
    return figure


def update_ratio(snapshot: Snapshot) -> Figure:
    """L2 norm of each layer's change in this step over that of the layer itself."""
    ratio = snapshot["update_ratio"]
    sheet = _sheet("update_ratio", snapshot.layers, _decades(ratio, np.array([HEALTHY_RATIO])))
    figure = _figure_on(sheet, snapshot, "Update / parameter ratio", "measured over this step")
    (panel,) = sheet.panels
    panel.bars(figure, ratio, snapshot.layers.kinds)
    panel.line(figure, HEALTHY_RATIO)
    panel.label_missing(figure, ratio, "update" if snapshot.lr else "update: the learning rate is 0")
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, in a palette of its own colours: a third of the size of full colour."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    file = io.BytesIO()
    pixels.quantize(palette=_palette(), dither=Image.Dither.NONE).save(file, "png")
    return file.getvalue()


def background(kind: str, layers: WeightTable, decades: tuple[int, int]) -> tuple[Figure, list[Axes]]:
    """The sheet without data: labels, axes over powers of ten from the first to the last of `decades`, legend."""
    widths = {"gradient_flow": (4, 1), "update_ratio": (1,)}[kind]
    height = _ROW_INCHES * len(layers) + _ABOVE_INCHES + _BELOW_INCHES
    figure = Figure(figsize=(_WIDTH_INCHES, height), dpi=_DPI, facecolor=_WHITE)
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
    for axes in panels:
        axes.set_ylim(len(layers) - 0.5, -0.5)
        axes.set_yticks([])
        axes.tick_params(axis="x", labelsize=8, colors=_MUTED, length=2)
        axes.xaxis.label.set(fontsize=9, color=_TEXT)
        axes.grid(axis="x", color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        for side in axes.spines:
            axes.spines[side].set_visible(False)
        for top, bottom in _bands(layers.depths):
            axes.axhspan(top, bottom, color=_BAND, linewidth=0, zorder=-1)
    panels[0].set_yticks(range(len(layers)), layers.labels, fontsize=7.5, color=_TEXT)
    panels[0].tick_params(axis="y", length=0, pad=3)
    _log_axis(panels[0], *decades)

    marks = []
    if kind == "gradient_flow":
        panels[0].set_xlabel("|gradient|")
        panels[1].set_xlim(0, 104)
        panels[1].xaxis.set_major_locator(FixedLocator([0, 50, 100]))
        panels[1].set_xlabel("zeros [%]")
        marks.append(Line2D([], [], ls="none", marker="o", ms=4, color=_WHITE, mec=_TEXT, label="std"))
        marks.append(Line2D([], [], ls="none", marker="|", ms=8, color=_TEXT, label="max"))
    else:
        panels[0].set_xlabel("||change|| / ||parameter||")
        label = "1e-3, rule of thumb for matrices"
        marks.append(Line2D([], [], color=_TEXT, linewidth=1, linestyle=_DASHES, label=label))
    what = "mean: " if kind == "gradient_flow" else ""
    patches = [Patch(color=colour, label=what + name) for name, colour in _COLORS.items() if name in layers.kinds]
    figure.legend(
        handles=[*patches, *marks],
        loc="upper left",
        bbox_to_anchor=(0.005, 1 - 0.31 / height),
        ncols=len(patches) + len(marks),
        fontsize=8.5,
        frameon=False,
        handlelength=1.2,
        columnspacing=1.4,
        borderaxespad=0.2,
    )
    return figure, panels


@dataclass(frozen=True, slots=True)
class _Panel:
    """Where a value and a row lie on a sheet."""

    left: float
    right: float
    top: float
    low: float  # the value at `left`, or its decadic logarithm
    high: float
    logarithmic: bool

    def x(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Pixels; nan for what a logarithmic axis cannot show."""
        shown = values.astype(np.float64)
        if self.logarithmic:
            shown = np.log10(np.where(np.isfinite(values) & (values > 0), values, np.nan))
        pixels: npt.NDArray[np.float64] = self.left + (shown - self.low) / (self.high - self.low) * (
            self.right - self.left
        )
        return pixels

    def y(self, row: float) -> float:
        return self.top - (row + 0.5) * _ROW_INCHES * _DPI

    def bars(self, figure: Figure, values: npt.NDArray[np.float64], kinds: Sequence[str]) -> None:
        """A bar a row from the left edge to the value, coloured by kind."""
        drawn = [(x, row) for row, x in enumerate(self.x(values)) if x > self.left]
        corners = [
            [(self.left, y - half), (x, y - half), (x, y + half), (self.left, y + half)]
            for x, row in drawn
            for y, half in [(self.y(row), 0.36 * _ROW_INCHES * _DPI)]
        ]
        colours = [_COLORS[kinds[row]] for _, row in drawn]
        figure.add_artist(PolyCollection(corners, facecolor=colours, transform=IdentityTransform(), zorder=2))

    def marks(self, figure: Figure, values: npt.NDArray[np.float64], **style: Any) -> None:
        """A mark a row at the value."""
        rows = [self.y(row) for row in range(len(values))]
        marks = Line2D(self.x(values), rows, linestyle="none", transform=IdentityTransform(), zorder=3, **style)
        figure.add_artist(marks)

    def line(self, figure: Figure, value: float) -> None:
        """A dashed line from top to bottom at the value."""
        (x,) = self.x(np.array([value]))
        line = Line2D([x, x], [self.top, _BELOW_INCHES * _DPI], color=_TEXT, linewidth=1, linestyle=_DASHES, zorder=3)
        line.set_transform(IdentityTransform())
        figure.add_artist(line)

    def label_missing(self, figure: Figure, values: npt.NDArray[np.float64], what: str) -> None:
        """Say in words where a logarithmic bar cannot be: all zero, infinite, or not a number."""
        if not values.any():
            middle = (self.left + self.right) / 2
            _write(figure, middle, self.y(len(values) / 2 - 0.5), f"no {what}", fontsize=11, color=_MUTED, ha="center")
            return
        for row, value in enumerate(values):
            if not (np.isfinite(value) and value > 0):
                word = "none" if np.isnan(value) else f"{value:g}"
                colour = _MUTED if value == 0 else _ERROR
                _write(figure, self.left + 4, self.y(row), word, fontsize=7, color=colour)


@dataclass(frozen=True, slots=True, eq=False)
class _Background:
    """A blank sheet as pixels [height, width, 4], and its panels."""

    pixels: npt.NDArray[np.uint8]
    panels: tuple[_Panel, ...]


@functools.lru_cache(maxsize=16)
def _sheet(kind: str, layers: WeightTable, decades: tuple[int, int]) -> _Background:
    figure, axes = background(kind, layers, decades)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [panel.get_window_extent() for panel in axes]
    ends = [(*decades, True), (*axes[-1].get_xlim(), False)][: len(axes)]
    panels = tuple(_Panel(box.x0, box.x1, box.y1, *end) for box, end in zip(boxes, ends, strict=True))
    return _Background(np.asarray(canvas.buffer_rgba()).copy(), panels)


def _figure_on(sheet: _Background, snapshot: Snapshot, title: str, remark: str) -> Figure:
    """A figure that shows the sheet, with the step's own heading."""
    height, width, _ = sheet.pixels.shape
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=_WHITE)
    figure.add_artist(_RawImage(sheet.pixels))
    heading = f"{title}, step {snapshot.step}"
    _write(figure, 0.012 * width, height - 19, heading, fontsize=12, color=_TEXT, weight="bold")
    remark = f"learning rate {snapshot.lr:.3g}, {remark}"
    _write(figure, _RIGHT * width, height - 20, remark, fontsize=9, color=_MUTED, ha="right")
    return figure


def _write(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    figure.add_artist(Text(x, y, text, va="center_baseline", transform=IdentityTransform(), zorder=4, **style))


class _RawImage(Artist):
    """Pixels [height, width, 4] as they are; matplotlib's own images are resampled first, at ten times the time."""

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        super().__init__()
        self._flipped = pixels[::-1]  # the renderer counts rows from below
        self.set_zorder(0)

    def draw(self, renderer: RendererBase) -> None:
        renderer.draw_image(renderer.new_gc(), 0, 0, self._flipped)


def _bands(depths: Sequence[int | None]) -> list[tuple[float, float]]:
    """First and last edge, in rows, of every second encoder layer."""
    rows: dict[int, list[int]] = {}
    for row, depth in enumerate(depths):
        if depth is not None and depth % 2 == 0:
            rows.setdefault(depth, []).append(row)
    return [(min(found) - 0.5, max(found) + 0.5) for found in rows.values()]


def _decades(*values: npt.NDArray[np.float64]) -> tuple[int, int]:
    """Exponents of the powers of ten between which every positive value lies, none of them at the edge.

    Multiples of three: steps are easier to compare on one axis, and few new sheets have to be drawn.
    """
    joined = np.concatenate(values)
    positive = joined[np.isfinite(joined) & (joined > 0)]
    exponents = np.log10(positive) if len(positive) else np.array([-1.0, -0.5])
    return 3 * int(np.floor((exponents.min() - 0.05) / 3)), 3 * int(np.ceil((exponents.max() + 0.02) / 3))


def _log_axis(axes: Axes, low: int, high: int) -> None:
    axes.set_xscale("log")
    axes.set_xlim(10.0**low, 10.0**high)
    every = max(1, -(-(high - low) // 12))
    axes.xaxis.set_major_locator(FixedLocator([10.0**exponent for exponent in range(low, high + 1, every)]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"1e{round(np.log10(value))}"))
    axes.xaxis.set_minor_locator(LogLocator(subs=range(2, 10)) if high - low <= 3 else NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


@functools.lru_cache(maxsize=1)
def _palette() -> Image.Image:
    """Grounds, inks, and what lies between them; Pillow rounds colours, so nothing may lie close to a ground."""
    inks = np.array([to_rgb(colour) for colour in (*_COLORS.values(), _TEXT, _MUTED, _ERROR, _GRID)])
    grounds = np.array([to_rgb(colour) for colour in (_WHITE, _BAND)])
    shares = np.linspace(0.125, 1, 8)[:, None, None, None]  # of ink, as smoothed edges have them
    blends = ((1 - shares) * grounds[:, None] + shares * inks).reshape(-1, 3)
    apart = np.abs(blends[:, None] - grounds).max(axis=2).min(axis=1) > 0.05
    palette = Image.new("P", (1, 1))
    palette.putpalette((255 * np.concatenate([grounds, blends[apart]])).round().astype(np.uint8).tobytes())
    return palette
