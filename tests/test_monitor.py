"""The monitor's rooms: stats, watch, figures, writer."""

import io
import math

import numpy as np
import pytest
import torch
from matplotlib.collections import PolyCollection
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bertmon import model
from bertmon.monitor import STATISTICS, Snapshot, figures, stats
from bertmon.monitor.watch import Watch, thinned
from bertmon.monitor.writer import RunWriter

# --- stats ---------------------------------------------------------------------------------------


def plain_statistics(gradient):
    """The definitions, in numpy and float64."""
    size = np.abs(gradient.double().numpy()).ravel()
    return [size.mean(), size.max(), size.std(), (size == 0).mean()]


@pytest.mark.parametrize("scale", [1.0, 1e-10, 1e-30, 1e6])
def test_gradient_statistics_equal_their_definitions(scale):
    torch.manual_seed(0)
    sparse = torch.randn(40, 30) * (torch.rand(40, 30) < 0.2)
    gradients = [gradient * scale for gradient in (torch.randn(7, 5), sparse, torch.randn(9), torch.zeros(3, 3))]
    found = stats.gradient_statistics(gradients).numpy()
    assert found.shape == (4, 4)
    expected = np.array([plain_statistics(gradient) for gradient in gradients])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_one_element_and_constant_gradients_have_no_spread():
    found = stats.gradient_statistics([torch.tensor([3.0]), torch.full((1000,), 0.1)]).numpy()
    assert found[0].tolist() == [3, 3, 0, 0]
    assert found[1, 2] < 1e-8


def test_infinite_and_nan_gradients_show_as_such():
    found = stats.gradient_statistics([torch.tensor([1.0, math.inf]), torch.tensor([1.0, math.nan])]).numpy()
    assert math.isinf(found[0, 0])
    assert math.isinf(found[0, 1])
    assert math.isnan(found[1, 0])
    assert math.isnan(found[1, 1])


def test_update_ratios():
    before = [torch.tensor([3.0, 4.0]), torch.zeros(2), torch.ones(2, 2)]
    after = [torch.tensor([3.0, 4.5]), torch.ones(2), torch.ones(2, 2)]
    assert stats.update_ratios(before, after).tolist()[::2] == [0.1, 0.0]
    assert math.isnan(stats.update_ratios(before, after)[1])


# --- watch ---------------------------------------------------------------------------------------


class Sink:
    def __init__(self):
        self.snapshots = []

    def snapshot(self, snapshot):
        self.snapshots.append(snapshot)


def test_it_measures_gradients_before_clipping_and_the_change_that_was_made():
    parameter = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    sink = Sink()
    watch = Watch({"weight": (parameter, "linear")}, every=2, sink=sink)
    for step in range(5):
        parameter.grad = torch.tensor([[30.0, 0.0]])
        with watch.update(step, lr=0.5):
            torch.nn.utils.clip_grad_norm_([parameter], 1.0)
            with torch.no_grad():
                parameter.sub_(0.5 * parameter.grad)
    assert [snapshot.step for snapshot in sink.snapshots] == [0, 2, 4]
    first = sink.snapshots[0]
    assert (first.lr, first.layers, first.kinds) == (0.5, ("weight",), ("linear",))
    assert first.values[0].tolist() == pytest.approx([15, 30, 15, 0.5, 0.5 / 5])


def test_a_parameter_without_a_gradient_has_no_numbers():
    live, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    live.grad = torch.ones(2)
    sink = Sink()
    with Watch({"unused": (unused, "linear"), "live": (live, "norm")}, every=1, sink=sink).update(0, 0.1):
        pass
    assert np.isnan(sink.snapshots[0].values[0]).all()
    assert sink.snapshots[0].values[1].tolist() == pytest.approx([1, 1, 0, 0, 0], abs=1e-7)


@pytest.mark.parametrize("skip_prob", [0.0, 0.5, 0.99])
def test_thinning_keeps_the_ends_and_is_the_same_for_every_run(skip_prob):
    labels = [f"layer{number}" for number in range(200)]
    kept = thinned(labels, skip_prob)
    np.random.seed(1)
    assert kept == thinned(labels, skip_prob)
    assert (kept[0], kept[-1]) == ("layer0", "layer199")
    assert kept == [label for label in labels if label in kept]
    assert len(kept) == pytest.approx(200 * (1 - skip_prob), abs=20)
    assert thinned(["only"], skip_prob) == ["only"]


# --- figures -------------------------------------------------------------------------------------


def bert_snapshot(layers: int, *, lr=1e-4) -> Snapshot:
    """Plausible numbers for every weight of a BERT with that many layers."""
    config = model.ModelConfig(num_hidden_layers=layers, hidden_size=4, num_attention_heads=1, intermediate_size=4)
    found = model.layers(model.build(config, label_names="ab", vocab_size=100, pad_id=0, max_length=8))
    rng = np.random.default_rng(0)
    mean = 10 ** (np.linspace(-9, -3, len(found)) + rng.normal(0, 0.3, len(found)))
    values = np.stack([mean, 50 * mean, 2 * mean, rng.random(len(found)), 10 ** rng.normal(-3, 1, len(found))], axis=1)
    return Snapshot(30, lr, tuple(found), tuple(layer.kind for layer in found.values()), values)


def bars(axes):
    """Start, end and row of each drawn bar."""
    paths = [path for c in axes.collections if isinstance(c, PolyCollection) and c.zorder > 0 for path in c.get_paths()]
    return [
        (p.vertices[:, 0].min(), p.vertices[:, 0].max(), (p.vertices[:, 1].min() + p.vertices[:, 1].max()) / 2)
        for p in paths
        if len(p.vertices)
    ]


@pytest.mark.parametrize("layers", [1, 2, 12, 24])
@pytest.mark.parametrize("draw", [figures.gradient_flow, figures.update_ratio])
def test_no_bar_is_cut(layers, draw):
    snapshot = bert_snapshot(layers)
    figure = draw(snapshot)
    main = figure.axes[0]
    column = "grad_mean" if draw is figures.gradient_flow else "update_ratio"
    assert [end for _, end, _ in bars(main)] == pytest.approx(snapshot[column].tolist())
    assert [row for _, _, row in bars(main)] == pytest.approx(list(range(len(snapshot.layers))), abs=1e-9)
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert all(start == pytest.approx(low) and end <= high for start, end, _ in bars(axes))
    for line in main.lines:  # std and max
        drawn = line.get_xdata()
        assert main.get_xlim()[0] <= min(drawn)
        assert max(drawn) <= main.get_xlim()[1]


@pytest.mark.parametrize("layers", [1, 24])
def test_every_label_is_whole_and_stands_at_its_row(layers):
    snapshot = bert_snapshot(layers)
    picture = np.asarray(Image.open(io.BytesIO(figures.png(figures.update_ratio(snapshot)))).convert("L"))
    axes = figures.update_ratio(snapshot).axes[0].get_window_extent()
    top = picture.shape[0] - round(axes.y1)
    column = picture[top : top + 15 * len(snapshot.layers), : round(axes.x0) - 2] < 128
    assert not column[:, :5].any()  # nothing runs off the left edge
    for row in range(len(snapshot.layers)):
        ink = np.flatnonzero(column[15 * row : 15 * (row + 1)].any(axis=1))
        assert 6 <= ink.max() - ink.min() <= 13, snapshot.layers[row]  # pixels
        assert abs((ink.max() + ink.min()) / 2 - 7) <= 2.5, snapshot.layers[row]


@pytest.mark.parametrize("layers", [2, 12])
def test_a_picture_stays_small(layers):
    for draw in (figures.gradient_flow, figures.update_ratio):
        content = figures.png(draw(bert_snapshot(layers)))
        assert len(content) < 150_000
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        assert picture.width == 1050
        colours = {colour for _, colour in picture.getcolors()}
        assert {(255, 255, 255), (0xEE, 0xF0, 0xF3), (0x00, 0x72, 0xB2)} <= colours  # paper, band, linear: exact


def test_what_cannot_be_a_bar_is_said_in_words():
    snapshot = bert_snapshot(1, lr=0.0)
    snapshot.values[:, STATISTICS.index("update_ratio")] = 0
    texts = [text.get_text() for text in figures.update_ratio(snapshot).axes[0].texts]
    assert texts == ["no update: the learning rate is 0"]

    snapshot.values[:4, 0] = [0, np.nan, np.inf, 1e-4]
    texts = [text.get_text() for text in figures.gradient_flow(snapshot).axes[0].texts]
    assert texts == ["0", "none", "inf"]


def test_drawing_leaves_the_numbers_and_pyplot_alone():
    import matplotlib.pyplot as plt

    snapshot = bert_snapshot(2)
    before = snapshot.values.copy()
    assert figures.png(figures.gradient_flow(snapshot)) == figures.png(figures.gradient_flow(snapshot))
    assert np.array_equal(snapshot.values, before)
    assert plt.get_fignums() == []


# --- writer --------------------------------------------------------------------------------------


def test_what_is_written_can_be_read_back(tmp_path):
    snapshot = bert_snapshot(1)
    with RunWriter(tmp_path) as writer:
        writer.text("config", "seed: 1\n# no *markdown*")
        writer.scalars(3, {"loss/train": 1.5, "learning_rate": 1e-3})
        writer.snapshot(snapshot)
        writer.hparams({"schedule.warmup_frac": 0.1, "data.train": None, "flag": True}, {"accuracy/test": 0.5})
    assert len(list(tmp_path.iterdir())) == 1  # one event file, no second run beside it

    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    assert set(tags["images"]) == {"gradient_flow", "update_ratio"}
    expected = {f"{statistic}/{layer}" for statistic in STATISTICS for layer in snapshot.layers}
    assert set(tags["scalars"]) == expected | {"loss/train", "learning_rate"}
    for statistic in STATISTICS:
        found = [events.Scalars(f"{statistic}/{layer}")[0] for layer in snapshot.layers]
        assert [point.step for point in found] == [30] * len(found)
        np.testing.assert_allclose([point.value for point in found], snapshot[statistic], rtol=1e-6)
    picture = events.Images("gradient_flow")[0]
    assert picture.step == 30
    assert picture.encoded_image_string == figures.png(figures.gradient_flow(snapshot))
    assert "config/text_summary" in tags["tensors"]


def test_figures_can_be_left_out(tmp_path):
    with RunWriter(tmp_path, draw=False) as writer:
        writer.snapshot(bert_snapshot(1))
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()
    assert tags["images"] == []
    assert tags["scalars"]
