"""The figures of a step: their contents, their equality with plain matplotlib figures, and their common axes."""

import io
from itertools import pairwise

import numpy as np
import pytest
import seaborn
from conftest import bert_snapshot, weight_table
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from bertmon import plot_style
from bertmon.monitor import figure_canvas, figures
from bertmon.monitor.history import STATISTICS, Snapshot


def plain_figure(kind: str, snapshot: Snapshot):
    """The same figure drawn slowly with matplotlib's own bars and marks, on the axes of the background."""
    rows = range(len(snapshot.layers))
    colors = [plot_style.KIND_COLORS[kind] for kind in snapshot.layers.kinds]
    background = getattr(figures, f"{kind}_background")
    if kind == "gradient_flow":
        figure, (flow, zeros) = background(snapshot.layers, figures.GRADIENT_DECADES)
        flow.barh(rows, snapshot["grad_mean"], height=0.72, color=colors, left=1e-300)
        flow.plot(snapshot["grad_std"], rows, "o", ms=3.2, color="white", mec=plot_style.TEXT)
        flow.plot(snapshot["grad_max"], rows, "|", ms=5.5, color=plot_style.TEXT, mew=1.2)
        zeros.barh(rows, 100 * snapshot["grad_zero"], height=0.72, color=colors)
    elif kind == "update_ratio":
        figure, (axes,) = background(
            snapshot.layers, figures.axis_decades(figures.RATIO_DECADES, snapshot["update_ratio"])
        )
        axes.barh(rows, snapshot["update_ratio"], height=0.72, color=colors, left=1e-300)
        axes.axvline(1e-3, color=plot_style.TEXT, linewidth=1, linestyle=(0, (4, 3)))
    else:
        figure, (axes,) = background(snapshot.layers, figures.GRADIENT_DECADES)
        for index, (group, members) in enumerate(snapshot.layers.matrix_groups.items()):
            style = plot_style.matrix_style(index, plot_style.matrix_name(group))
            axes.plot(range(len(members)), snapshot["grad_mean"][members], linewidth=1.6, markersize=4.5, **style)
    return figure


def pixels(figure):
    return np.asarray(Image.open(io.BytesIO(figure_canvas.png(figure))).convert("RGB")).astype(int)


@pytest.mark.parametrize("layers", [2, 12, 24])
@pytest.mark.parametrize("kind", ["gradient_flow", "update_ratio", "gradient_depth"])
def test_figure_equals_one_drawn_with_plain_matplotlib(layers, kind):
    snapshot = bert_snapshot(layers)
    fast, plain = pixels(getattr(figures, kind)(snapshot)), pixels(plain_figure(kind, snapshot))
    assert fast.shape == plain.shape
    below_heading = slice(45, None)
    differs = np.abs(fast - plain)[below_heading].max(axis=2) > 100
    assert differs.mean() < 0.002  # edges of bars and marks, rounded to another pixel


@pytest.mark.parametrize("layers", [1, 2, 12, 24])
def test_gradient_flow_clips_no_bar_and_no_mark(layers):
    snapshot = bert_snapshot(layers)
    figure = figures.gradient_flow(snapshot)
    width = figure.get_figwidth() * figure.dpi
    for line in figure.lines:  # std, max
        assert min(line.get_xdata()) > 0.235 * width
        assert max(line.get_xdata()) < 0.975 * width
    bars = [path.vertices for c in figure.findobj(PolyCollection) for path in c.get_paths()]
    assert len(bars) == 2 * len(snapshot.layers)
    assert max(bar[:, 0].max() for bar in bars) < 0.975 * width


def test_axes_are_the_same_for_every_run_and_grow_only_for_larger_values():
    tiny, usual, huge = np.array([1e-30, np.nan]), np.array([1e-6, 3.0]), np.array([2e4, np.inf])
    assert figures.axis_decades((-12, 1), tiny) == (-12, 1)
    assert figures.axis_decades((-12, 1), usual) == (-12, 1)
    assert figures.axis_decades((-12, 1), usual, huge) == (-12, 7)
    assert figures.axis_decades((-9, 0), np.array([1.0])) == (-9, 3)  # on the edge it would be clipped


@pytest.mark.parametrize("layers", [1, 24])
def test_labels_are_complete_and_at_their_rows(layers):
    snapshot = bert_snapshot(layers)
    figure, (axes,) = figures.update_ratio_background(snapshot.layers, (-5, -1))
    FigureCanvasAgg(figure).draw()
    labels = axes.get_yticklabels()
    assert [label.get_text() for label in labels] == list(snapshot.layers.labels)
    boxes = [label.get_window_extent() for label in labels]
    assert all(upper.y0 >= lower.y1 - 2 for upper, lower in pairwise(boxes))
    assert min(box.x0 for box in boxes) >= 0
    assert all(box.height >= 8 for box in boxes)  # pixels


@pytest.mark.parametrize("layers", [2, 12])
def test_png_is_small_and_has_exact_colors(layers):
    for draw in (figures.gradient_flow, figures.update_ratio):
        content = figure_canvas.png(draw(bert_snapshot(layers)))
        assert len(content) < 150_000
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        assert picture.width == 1050
        colors = {color for _, color in picture.getcolors()}
        assert {(255, 255, 255), (0xEE, 0xF0, 0xF3), (0x01, 0x73, 0xB2)} <= colors  # paper, band, linear


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_fontsize() in (7, 11)]


def test_values_without_a_bar_are_written_out():
    snapshot = bert_snapshot(1, lr=0.0)
    snapshot.values[:, STATISTICS.index("update_ratio")] = 0
    assert texts(figures.update_ratio(snapshot)) == ["no update: the learning rate is 0"]

    snapshot.values[:5, 0] = [0, np.nan, np.inf, 3e-14, 1e-4]
    figure = figures.gradient_flow(snapshot)
    assert texts(figure) == ["0", "none", "inf", "3e-14"]
    marks = [line for line in figure.findobj(Line2D) if len(line.get_xdata()) == len(snapshot.layers)]
    assert [np.isnan(line.get_xdata()[:5]).tolist() for line in marks] == 2 * [[True, True, False, True, False]]
    figure_canvas.png(figure)


def test_gradient_depth_has_a_line_for_each_kind_of_matrix():
    snapshot = bert_snapshot(3)
    figure = figures.gradient_depth(snapshot)
    lines = figure.findobj(Line2D)
    assert [len(line.get_xdata()) for line in lines] == 6 * [3]
    heights = [line.get_ydata() for line in lines]
    expected = [snapshot["grad_mean"][rows] for rows in snapshot.layers.matrix_groups.values()]
    assert np.array_equal(np.argsort(np.concatenate(heights)), np.argsort(np.concatenate(expected)))


def test_gradient_depth_of_one_layer_is_none():
    layers = weight_table(1)
    snapshot = Snapshot(0, 1e-3, 1e-3, 1.0, layers, np.ones((len(layers), len(STATISTICS))))
    assert figures.gradient_depth(snapshot) is None


def test_drawing_changes_neither_the_snapshot_nor_pyplot():
    import matplotlib.pyplot as plt

    snapshot = bert_snapshot(2)
    before = snapshot.values.copy()
    first, second = (figure_canvas.png(figures.gradient_flow(snapshot)) for _ in range(2))
    assert first == second
    assert np.array_equal(snapshot.values, before)
    assert plt.get_fignums() == []


def test_palette_is_seaborns():
    assert list(plot_style.PALETTE) == [color.lower() for color in seaborn.color_palette("colorblind").as_hex()]
