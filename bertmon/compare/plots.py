"""Runs to pictures, and pictures to SVG for a page that is light or dark, or to PNG. Pure.

A setting has one color in all pictures: up to eight have one each, more are colored by their test accuracy.
"""

import io
import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from PIL import Image

from bertmon import plot_style
from bertmon.compare.results import RunSummary, Setting, Sweep
from bertmon.compare.selection import RunWithHistory
from bertmon.monitor.history import Snapshot, WeightTable
from bertmon.sanitize import sanitize_line

Floats = npt.NDArray[np.float64]

_COLORS = plot_style.SETTING_COLORS
_TEXT, _GRID = plot_style.TEXT, plot_style.GRID  # in the report, its own
# Neither end is lost on black or white; what no logarithm shows, such as an update of zero, is red.
_SCALE = ListedColormap(colormaps["viridis"](np.linspace(0.2, 0.95, 256))).with_extremes(bad="#c0392b")
_POINTS = 150  # of a curve


def setting_colors(sweep: Sweep) -> dict[Setting, str]:
    """A color for each setting."""
    if len(sweep.settings) <= len(_COLORS):
        return dict(zip(sweep.settings, _COLORS, strict=False))
    means = [setting.mean("accuracy")[0] for setting in sweep.settings]
    norm = _accuracies(means)
    return {
        setting: to_hex(_SCALE(norm(mean))) if mean == mean else "#7A7A7A"
        for setting, mean in zip(sweep.settings, means, strict=True)
    }


def training_curves(curves: Sequence[RunWithHistory], colors: Mapping[Setting, str]) -> Figure:
    """Loss, accuracy, rates and the two signals that verdicts rest on, over the steps."""
    figure = Figure(figsize=(11, 6.2))
    right = 0.99 if len(colors) <= len(_COLORS) else 0.92
    grid = figure.add_gridspec(2, 3, left=0.045, right=right, bottom=0.08, top=0.95, wspace=0.2, hspace=0.25)
    panels = [figure.add_subplot(grid[row, column]) for row in range(2) for column in range(3)]
    width = 1.6 if len(curves) <= 6 else 1.0 if len(curves) <= 20 else 0.7

    def draw(
        axes: Axes, title: str, lines: Callable[[RunWithHistory], Sequence[tuple[Floats, Floats, str]]], **scale: object
    ) -> None:
        for curve in curves:
            for x, y, style in lines(curve):
                style = style if np.isfinite(y).sum() > 1 else "."  # a single point has no line
                axes.plot(x, y, style, color=colors[curve.setting], linewidth=width, alpha=0.9)
        if not any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
            axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, color=_TEXT, fontsize=9, ha="center")
        _style_axes(axes, title)
        axes.set(**scale)

    draw(panels[0], "training loss", lambda curve: [(*_smooth(curve.history.losses), "-")])
    draw(panels[1], "test loss", lambda curve: [(*_evaluations(curve.run, "loss"), ".-")])
    draw(panels[2], "test accuracy [%]", lambda curve: [(*_evaluations(curve.run, "accuracy", 100), ".-")])
    draw(panels[3], "learning rate, effective (dashed: nominal)", _rates)
    draw(panels[4], "depth profile of the gradients", lambda curve: [_signal(curve, "depth_ratio")], yscale="log")
    draw(panels[5], "spread of the logits", lambda curve: [_signal(curve, "logit_std")], yscale="log")
    longest = max(len(curve.history.plan) for curve in curves)
    for axes in panels[4:]:
        axes.yaxis.set_minor_locator(NullLocator())
    for axes in panels:
        axes.set_xlim(-0.02 * longest, 1.02 * longest)
    for axes in panels[3:]:
        axes.set_xlabel("step", color=_TEXT)
    panels[3].yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e") if value else "0")
    )
    if len(colors) > len(_COLORS):
        means = [setting.mean("accuracy")[0] for setting in colors]
        bar = figure.colorbar(ScalarMappable(_accuracies(means), _SCALE), cax=figure.add_axes((0.94, 0.2, 0.012, 0.6)))
        bar.set_label("last test accuracy of the setting [%]", color=_TEXT, fontsize=9)
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}"))
        bar.ax.tick_params(colors=_TEXT, labelsize=8)
        bar.outline.set_visible(False)
    return figure


def layer_figures(beside: Sequence[RunWithHistory], step: int, colors: Mapping[Setting, str]) -> dict[str, Figure]:
    """Gradients and update ratios of the layers at the step that lies nearest, a panel a run."""
    shots = []
    for curve in beside:
        shot = min(curve.history.snapshots, key=lambda shot: abs(shot.step - step))
        name = curve.setting.name if shot.step == step else f"{curve.setting.name}, step {shot.step}"
        shots.append((name, colors[curve.setting], shot))
    return {
        "gradient_flow": layer_bars(shots, "grad_mean", "|gradient|: mean (bar) and max (mark)"),
        "update_ratio": layer_bars(shots, "update_ratio", "||change|| / ||parameter||"),
    }


def layer_bars(shots: Sequence[tuple[str, str, Snapshot]], statistic: str, title: str) -> Figure:
    """One statistic of each layer, a panel a run (name, color, snapshot); layers are named once where they are one."""
    most = max(len(shot.layers) for _, _, shot in shots)
    heading = max(_wrapped(name, 90 // len(shots)).count("\n") for name, _, _ in shots) * 0.16 + 0.33
    height = 0.145 * most + 0.42 + heading
    figure = Figure(figsize=(11, height))
    alike = len({shot.layers for _, _, shot in shots}) == 1
    left, gap, below, above = 0.2, 0.03 if alike else 0.2, 0.42 / height, heading / height
    width = (0.985 - left - gap * (len(shots) - 1)) / len(shots)
    low, high = _log_limits([_clip_to_axis(shot[statistic]) for _, _, shot in shots])
    for column, (name, color, shot) in enumerate(shots):
        axes = figure.add_axes((left + column * (width + gap), below, width, 1 - below - above))
        values, rows = _clip_to_axis(shot[statistic]), np.arange(len(shot.layers))
        bars = [
            Path([(low, y - 0.37), (x, y - 0.37), (x, y + 0.37), (low, y + 0.37)])
            for x, y in zip(values, rows, strict=True)
            if x > low
        ]
        if bars:  # as one path: a page has thousands of them
            axes.add_patch(PathPatch(Path.make_compound_path(*bars), facecolor=color, linewidth=0))
        if statistic == "grad_mean":
            axes.plot(_clip_to_axis(shot["grad_max"]), rows, "|", color=_TEXT, markersize=4.5, markeredgewidth=1)
        axes.set(xscale="log", xlim=(low, high), ylim=(len(rows) - 0.4, -0.6))
        _style_axes(axes, _wrapped(name, 90 // len(shots)))
        axes.grid(False, axis="y")
        axes.set_xlabel(title, color=_TEXT)
        axes.xaxis.set_minor_locator(NullLocator())
        if column == 0 or not alike:
            axes.set_yticks(
                rows, [_escape_mathtext(sanitize_line(label, 80)) for label in shot.layers.labels], fontsize=7
            )
            axes.tick_params(axis="y", length=0)
        else:
            axes.set_yticks([])
        for row in rows[~(values > 0)]:
            axes.text(
                low,
                row,
                " none" if np.isnan(values[row]) else f" {values[row]:g}",
                fontsize=6.5,
                va="center",
                color=_TEXT,
            )
    return figure


def layer_heatmap(curves: Sequence[RunWithHistory], statistic: str, title: str) -> Figure:
    """One statistic of each layer over the steps, a panel a run, on one scale."""
    values = [
        np.array([_clip_to_axis(shot[statistic]) for shot in curve.history.snapshots]).T for curve in curves
    ]  # [L, K]
    figure = Figure(figsize=(11, 2.9))
    norm: Normalize
    if statistic == "grad_zero":
        values, norm = [100 * value for value in values], Normalize(0, 100)
    else:
        norm = LogNorm(*_log_limits(values))
    grid = figure.add_gridspec(1, len(curves), left=0.05, right=0.92, bottom=0.16, top=0.84, wspace=0.12)
    panels = grid.subplots(squeeze=False)[0]
    image = None
    for axes, curve, value in zip(panels, curves, values, strict=True):
        shots = curve.history.snapshots
        layers = shots[0].layers
        image = axes.imshow(
            np.where(np.isfinite(value), value, np.nan),
            norm=norm,
            cmap=_SCALE,
            aspect="auto",
            interpolation="nearest",
            extent=(
                shots[0].step,
                shots[-1].step + shots[-1].step / max(len(shots) - 1, 1) + 1,
                len(layers) - 0.5,
                -0.5,
            ),
        )
        _style_axes(axes, _wrapped(curve.setting.name, 90 // len(curves)))
        axes.grid(False)
        axes.set_xlabel("step", color=_TEXT)
        ticks = _layer_ticks(layers)
        axes.yaxis.set_major_locator(FixedLocator([row for row, _ in ticks]))
        axes.set_yticklabels([label for _, label in ticks], fontsize=7.5)
    panels[0].set_ylabel("encoder layer", color=_TEXT)
    assert image is not None
    bar = figure.colorbar(image, cax=figure.add_axes((0.935, 0.16, 0.012, 0.68)))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.set_label(title, color=_TEXT, fontsize=9)
    bar.ax.tick_params(colors=_TEXT, labelsize=8)
    bar.outline.set_visible(False)
    return figure


@contextmanager
def suppress_plot_warnings() -> Iterator[None]:
    """Without warnings of characters that a font lacks, and of numbers at the end of floats."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph|Data has no positive values", category=UserWarning)
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        yield


def to_svg(figure: Figure) -> str:
    """As text for a page: as wide as there is room, with the page's own ink, grid (`--grid`) and font."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bertmon"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'<svg ([^>]*?)height="[^"]*" ', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*" ', r"<svg \1", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([^;\"']*?)'[^;\"]*", r"font: \1system-ui, sans-serif", text)
    return text.replace(_TEXT, "currentColor").replace(_GRID, "var(--grid)")


def to_png(figure: Figure) -> bytes:
    """As a picture on white, in few colors: a third of the size."""
    canvas = FigureCanvasAgg(figure)
    figure.set(dpi=100, facecolor="white")
    canvas.draw()
    file = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(32, dither=Image.Dither.NONE).save(file, "png")
    return file.getvalue()


def _style_axes(axes: Axes, title: str) -> None:
    axes.set_title(_escape_mathtext(title), fontsize=9.5, color=_TEXT, loc="left")
    axes.tick_params(colors=_TEXT, labelsize=8, length=2)
    axes.xaxis.label.set_fontsize(9)
    axes.grid(True, color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _escape_mathtext(text: str) -> str:
    """Dollars as they are: matplotlib reads a formula between two."""
    return text.replace("$", r"\$")


def _wrapped(name: str, width: int) -> str:
    """In lines of at most about `width` characters, broken behind commas; at most three of them."""
    lines = [""]
    for part in name.replace(",", ",\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part if len(part) <= width else part[: width - 1] + "…"
    return "\n".join(lines[:3])


def _smooth(losses: Sequence[float]) -> tuple[Floats, Floats]:
    """Means over equal stretches of ten steps or more, at their middle."""
    values = np.array(losses)
    edges = np.unique(np.linspace(0, len(values), min(_POINTS, 1 + len(values) // 10) + 1).astype(int))
    stretches = [values[start:end] for start, end in itertools.pairwise(edges)]
    finite = [stretch[np.isfinite(stretch)] for stretch in stretches]  # a run that diverged has one step that is not
    return (edges[:-1] + edges[1:] - 1) / 2, np.array([each.mean() if len(each) else np.nan for each in finite])


def _evaluations(run: RunSummary, metric: str, factor: float = 1.0) -> tuple[Floats, Floats]:
    evaluations = run.result.evaluations if run.result else []
    points = [(each.step, getattr(each, metric)) for each in evaluations if math.isfinite(getattr(each, metric))]
    steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return steps, factor * values


def _rates(curve: RunWithHistory) -> list[tuple[Floats, Floats, str]]:
    plan = curve.history.plan
    steps = np.unique(np.linspace(0, len(plan) - 1, _POINTS).astype(int))
    return [(steps, plan.effective_lr[steps], "-"), (steps, plan.lr[steps], "--")]


def _signal(curve: RunWithHistory, name: str) -> tuple[Floats, Floats, str]:
    points = [(shot.step, shot.signals.get(name, math.nan)) for shot in curve.history.snapshots]
    known = np.array([point for point in points if point[1] > 0]).reshape(-1, 2)
    return known[:, 0], known[:, 1], "-"


def _accuracies(means: Sequence[float]) -> Normalize:
    known = [mean for mean in means if mean == mean] or [0.0]
    return Normalize(min(known), max(max(known), min(known) + 1e-9))


_HIGHEST = 30  # decade that is drawn; of a run that diverges it is all the same


def _clip_to_axis(values: Floats) -> Floats:
    """What a logarithmic axis can show without an overflow."""
    bounded: Floats = np.minimum(values, 10.0**_HIGHEST)
    return bounded


def _log_limits(values: Sequence[Floats]) -> tuple[float, float]:
    """Powers of ten around every positive value; at most twelve, so that something that has died hides no other."""
    joined = np.concatenate([value.ravel() for value in values])
    positive = joined[np.isfinite(joined) & (joined > 0)]
    if not len(positive):
        return 0.1, 1.0
    top = min(math.ceil(math.log10(positive.max()) + 0.02), _HIGHEST)
    return 10.0 ** max(math.floor(math.log10(positive.min()) - 0.05), top - 12), 10.0**top


def _layer_ticks(layers: WeightTable) -> list[tuple[float, str]]:
    """The middle row of each encoder layer and its number; of many, every second or fourth."""
    rows: dict[int, list[int]] = {}
    for row, depth in enumerate(layers.depths):
        if depth is not None:
            rows.setdefault(depth, []).append(row)
    every = 1 + len(rows) // 13
    return [(float(np.mean(found)), str(depth)) for depth, found in rows.items() if depth % every == 0]
