"""Fast drawing of the figures of a step: a cached background of pixels, with bars, marks and lines on top.

Axes and text take nearly all of matplotlib's time and do not change from step to step. `on_background` draws them once
for each table of weights and range of decades. What is drawn on top uses pixel coordinates from the lower left corner.
"""

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import IdentityTransform
from PIL import Image

from bertmon import plot_style
from bertmon.monitor.history import FloatArray, WeightTable

Decades = tuple[int, int]
"""Exponents of the powers of ten at the two ends of an axis."""
Background = Callable[[WeightTable, Decades], tuple[Figure, list[Axes]]]
"""Draws a figure without data."""

DPI = 100
HEADING_INCHES = 0.4
"""The space that a background reserves at the top for the step's heading."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Pixels at the two ends of an axis, and the values there (their decimal logarithms on a logarithmic axis)."""

    pixels: tuple[float, float]
    values: tuple[float, float]
    logarithmic: bool

    def __call__(self, values: npt.ArrayLike) -> FloatArray:
        """Pixels of the values. A logarithmic axis clips values to its ends; those that it cannot show are nan."""
        shown = np.asarray(values, dtype=np.float64)
        if self.logarithmic:
            shown = np.log10(np.where(np.isfinite(shown) & (shown > 0), shown, np.nan)).clip(*self.values)
        low, high = self.values
        start, end = self.pixels
        pixels: FloatArray = start + (shown - low) / (high - low) * (end - start)
        return pixels


@dataclass(frozen=True, slots=True)
class Panel:
    """Draws on one pair of axes."""

    figure: Figure
    x: Scale
    y: Scale

    def bars(self, values: FloatArray, colors: Sequence[str]) -> None:
        """One horizontal bar per row, from the left edge to the value."""
        left, rows = self.x.pixels[0], self.y(np.arange(len(values)))
        half = 0.36 * abs(float(rows[0] - self.y(1)))
        drawn = [(x, y, color) for x, y, color in zip(self.x(values), rows, colors, strict=True) if x > left]
        corners = [[(left, y - half), (x, y - half), (x, y + half), (left, y + half)] for x, y, _ in drawn]
        colors = [color for *_, color in drawn]
        self.figure.add_artist(PolyCollection(corners, facecolor=colors, transform=IdentityTransform(), zorder=2))

    def line(self, x: npt.ArrayLike, y: npt.ArrayLike, **style: Any) -> None:
        """A line, or marks, through points [n]."""
        style = {"zorder": 3, "linewidth": 1.0} | style
        self.figure.add_artist(Line2D(self.x(x), self.y(y), transform=IdentityTransform(), **style))

    def write(self, x: float, y: float, text: str, **style: Any) -> None:
        """Text at pixels."""
        self.figure.add_artist(Text(x, y, text, va="center_baseline", transform=IdentityTransform(), zorder=4, **style))


def on_background(
    background: Background, layers: WeightTable, decades: Decades, *, title: str, remark: str
) -> list[Panel]:
    """The panels, from left to right, of a new figure with the background and the step's own heading."""
    pixels, scales = _render_background(background, layers, decades)
    height, width, _ = pixels.shape
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=plot_style.WHITE)
    figure.add_artist(_RawImage(pixels))
    panels = [Panel(figure, *scale) for scale in scales]
    panels[0].write(0.012 * width, height - 19, title, fontsize=12, color=plot_style.TEXT, weight="bold")
    panels[0].write(0.975 * width, height - 20, remark, fontsize=9, color=plot_style.MUTED, ha="right")
    return panels


def log_ticks(axis: Axis, decades: Decades) -> None:
    """Ticks of a logarithmic axis at powers of ten, labeled 1e-3; only every n-th one on a long axis."""
    low, high = decades
    every = max(1, -(-(high - low) // 12))
    axis.set_major_locator(FixedLocator([10.0**exponent for exponent in range(low, high + 1, every)]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plot_style.power_of_ten(np.log10(value))))
    axis.set_minor_locator(NullLocator())


def png(figure: Figure) -> bytes:
    """The figure as a PNG file with a palette of its colors, a third of the size of full color."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    file = io.BytesIO()
    pixels.quantize(palette=_palette(), dither=Image.Dither.NONE).save(file, "png")
    return file.getvalue()


class _RawImage(Artist):
    """Pixels [height, width, 4], drawn as is; matplotlib resamples its own images, which takes ten times as long."""

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        super().__init__()
        self._flipped = pixels[::-1]  # the renderer counts rows from below
        self.set_zorder(0)

    def draw(self, renderer: RendererBase) -> None:
        renderer.draw_image(renderer.new_gc(), 0, 0, self._flipped)


@functools.lru_cache(maxsize=16)
def _render_background(
    background: Background, layers: WeightTable, decades: Decades
) -> tuple[npt.NDArray[np.uint8], list[tuple[Scale, Scale]]]:
    """The background as pixels [height, width, 4], and the scales of x and y of each of its panels."""
    figure, panels = background(layers, decades)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    scales = []
    for axes in panels:
        box = axes.get_window_extent()
        x = _scale((box.x0, box.x1), axes.get_xlim(), axes.get_xscale() == "log")
        y = _scale((box.y0, box.y1), axes.get_ylim(), axes.get_yscale() == "log")
        scales.append((x, y))
    return np.asarray(canvas.buffer_rgba()).copy(), scales


def _scale(pixels: tuple[float, float], limits: tuple[float, float], logarithmic: bool) -> Scale:
    low, high = np.log10(limits).tolist() if logarithmic else limits
    return Scale(pixels, (low, high), logarithmic)


@functools.lru_cache(maxsize=1)
def _palette() -> Image.Image:
    """Background colors, inks and their blends; Pillow rounds colors, so no blend may be close to a background."""
    inks = {*plot_style.KIND_COLORS.values(), *plot_style.MATRIX_COLORS}
    inks |= {plot_style.TEXT, plot_style.MUTED, plot_style.ERROR, plot_style.GRID}
    ink_rgb = np.array([to_rgb(color) for color in sorted(inks)])
    background_rgb = np.array([to_rgb(color) for color in (plot_style.WHITE, plot_style.BAND)])
    shares = np.linspace(0.125, 1, 8)[:, None, None, None]  # of ink, for antialiased edges
    blends = ((1 - shares) * background_rgb[:, None] + shares * ink_rgb).reshape(-1, 3)
    distinct = np.abs(blends[:, None] - background_rgb).max(axis=2).min(axis=1) > 0.05
    palette = Image.new("P", (1, 1))
    palette.putpalette((255 * np.concatenate([background_rgb, blends[distinct]])).round().astype(np.uint8).tobytes())
    return palette
