"""Code that all figures of the report share: colors, axes, and SVG for a light or dark page. Pure.

A setting has the same color in all figures: its own if there are up to eight settings, else one by test accuracy.
"""

import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from xml.sax.saxutils import escape

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from PIL import Image

from bertmon import plot_style
from bertmon.compare.results import Setting, Sweep
from bertmon.monitor.history import FloatArray
from bertmon.notation import format_rate
from bertmon.sanitize import sanitize_line

# Both ends are visible on black and white; values without a logarithm, such as an update of zero, are red.
COLOR_SCALE = ListedColormap(colormaps["viridis"](np.linspace(0.2, 0.95, 256))).with_extremes(bad="#c0392b")

MAX_DECADE = 30
"""The exponent of the largest power of ten that is drawn; larger values, of a run that diverges, are clipped to it."""

Titles = Mapping[str, Sequence[str]]
"""Tooltips by the gid of an artist: one for the whole artist, or one per point."""


def setting_colors(sweep: Sweep) -> dict[Setting, str]:
    """A color for each setting."""
    if has_own_colors(sweep):
        return dict(zip(sweep.settings, plot_style.SETTING_COLORS, strict=False))
    means = [setting.mean("accuracy")[0] for setting in sweep.settings]
    norm = accuracy_norm(means)
    return {
        setting: to_hex(COLOR_SCALE(norm(mean))) if mean == mean else plot_style.GRAY
        for setting, mean in zip(sweep.settings, means, strict=True)
    }


def has_own_colors(sweep: Sweep) -> bool:
    """Whether each setting has a color of its own."""
    return len(sweep.settings) <= len(plot_style.SETTING_COLORS)


def accuracy_norm(means: Sequence[float]) -> Normalize:
    """The range of the color scale."""
    known = [mean for mean in means if mean == mean] or [0.0]
    return Normalize(min(known), max(max(known), min(known) + 1e-9))


def add_accuracy_bar(figure: Figure, means: Sequence[float]) -> None:
    """A color bar at the right edge, where settings are colored by their accuracy."""
    scale = ScalarMappable(accuracy_norm(means), COLOR_SCALE)
    bar = figure.colorbar(scale, cax=figure.add_axes((0.94, 0.2, 0.012, 0.6)))
    bar.set_label("last test accuracy of the setting [%]", fontsize=9)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}"))
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def rate_axis(axes: Axes) -> None:
    """Ticks of a logarithmic x-axis of learning rates: 1e-3, 2e-3, 5e-3."""
    low, high = axes.get_xlim()
    decades = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 300 else (1,)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_rate(value)))
    axes.xaxis.set_minor_locator(NullLocator())


def powers_of_ten(axis: Axis) -> None:
    """Ticks of a logarithmic axis at powers of ten, labeled 1e-3."""
    axis.set_major_locator(LogLocator(numticks=9))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: plot_style.power_of_ten(math.log10(value))))


def label_level(axes: Axes, text: str, level: float, *, above: bool) -> None:
    """Write at the right edge, just above or below a level of y."""
    axes.annotate(
        text,
        (0.99, level),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, 3 if above else -3),
        textcoords="offset points",
        fontsize=8,
        ha="right",
        va="bottom" if above else "top",
    )


def legend_on_top(figure: Figure, handles: Sequence[Artist], *, left: float, top: float = 1.0, ncols: int = 8) -> None:
    """A legend without a frame."""
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(left, top),
        ncols=ncols,
        frameon=False,
        fontsize=9,
        handlelength=2.2 if any(isinstance(h, Line2D) and h.get_linestyle() != "None" for h in handles) else 1.0,
        columnspacing=1.4,
        borderaxespad=0.2,
    )


def clip_to_axis(values: FloatArray) -> FloatArray:
    """The values, clipped so that a logarithmic axis does not overflow."""
    clipped: FloatArray = np.minimum(values, 10.0**MAX_DECADE)
    return clipped


def escape_mathtext(text: str) -> str:
    """The text with dollar signs escaped, between which matplotlib would read a formula."""
    return sanitize_line(text, 500).replace("$", r"\$")


def wrap(name: str, width: int) -> str:
    """The name in at most three lines of about `width` characters, broken after commas."""
    lines = [""]
    for part in name.replace(",", ",\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part if len(part) <= width else part[: width - 1] + "…"
    return "\n".join(line.strip() for line in lines[:3])


@contextmanager
def suppress_plot_warnings() -> Iterator[None]:
    """Suppress warnings about missing glyphs, empty logarithmic axes, overflow, and labels that are numbers."""
    categories = logging.getLogger("matplotlib.category")
    level = categories.level
    categories.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph|Data has no positive values", category=UserWarning)
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        try:
            yield
        finally:
            categories.setLevel(level)


def to_svg(figure: Figure, titles: Titles | None = None) -> str:
    """The figure as SVG text that fills the width of a page and uses its text color, grid color (`--grid`) and font."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bertmon"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    width = re.search(r'viewBox="0 0 ([0-9.]+)', text)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*" ', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*" ', r"<svg \1", text, count=1)
    if width:  # a narrow page scrolls figures instead of shrinking their text
        text = text.replace("<svg ", f'<svg style="min-width: {0.95 * float(width[1]):.0f}px" ', 1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([^;\"']*?)'[^;\"]*", r"font: \1system-ui, sans-serif", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", text)
    for gid, lines in (titles or {}).items():
        text = _add_titles(text, gid, lines)
    return text.replace(plot_style.TEXT, "currentColor").replace(plot_style.GRID, "var(--grid)")


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file on white, in 64 colors: a third of the size of full color."""
    canvas = FigureCanvasAgg(figure)
    figure.set(dpi=100, facecolor="white")
    canvas.draw()
    file = io.BytesIO()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    pixels.quantize(64, dither=Image.Dither.NONE).save(file, "png")
    return file.getvalue()


def _add_titles(svg: str, gid: str, titles: Sequence[str]) -> str:
    """Add an SVG title, which browsers show as a tooltip, to the element with this gid or to each of its points."""
    head = f'<g id="{gid}">'
    before, _, after = svg.partition(head)
    if not after:
        return svg
    if len(titles) == 1:
        return f"{before}{head}<title>{escape(titles[0])}</title>{after}"
    remaining = iter(titles)

    def with_title(use: re.Match[str]) -> str:
        title = next(remaining, None)
        return use[0] if title is None else f"{use[1]}><title>{escape(title)}</title></use>"

    return before + head + re.sub(r"(<use [^>]*?)/>", with_title, after, count=len(titles))
