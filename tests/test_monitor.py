"""The monitor's rooms: stats, observer, figures, writer."""

import dataclasses
import io
import logging
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import bert_snapshot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.text import Text
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bertmon import model
from bertmon.config import MonitorConfig, VerdictThresholds
from bertmon.monitor import figures, stats
from bertmon.monitor.diagnosis import Verdict
from bertmon.monitor.history import STATISTICS, History, RunPlan, Snapshot, WeightTable
from bertmon.monitor.monitor import Monitor, subsample
from bertmon.monitor.tensorboard import RunWriter

# --- stats ---------------------------------------------------------------------------------------


def plain_statistics(gradient):
    """The definitions, in numpy and float64."""
    size = np.abs(gradient.double().numpy()).ravel()
    return [size.mean(), size.max(), size.std(), (size == 0).mean()]


def in_passes(gradients):
    return stats.gradient_statistics_cpu(gradients, stats.GroupedBuffer(gradients))


@pytest.fixture(params=[in_passes, stats.gradient_statistics_foreach])
def statistics(request):
    """Both ways to compute them: that of the CPU, and that of all other devices."""
    return request.param


@pytest.mark.parametrize("scale", [1.0, 1e-10, 1e-30, 1e6, 1e30])
def test_gradient_statistics_equal_their_definitions(statistics, scale):
    torch.manual_seed(0)
    sparse = torch.randn(40, 30) * (torch.rand(40, 30) < 0.2)
    turned = torch.randn(6, 8).T
    gradients = [torch.randn(7, 5), sparse, torch.randn(9), torch.zeros(3, 3), turned, 5 + torch.randn(300, 1000)]
    gradients = [gradient * scale for gradient in gradients]
    found = statistics(gradients).numpy()
    assert found.shape == (6, 4)
    expected = np.array([plain_statistics(gradient) for gradient in gradients])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_gradients_of_other_precision(statistics):
    gradient = torch.randn(50, 40, dtype=torch.bfloat16)
    np.testing.assert_allclose(statistics([gradient])[0], plain_statistics(gradient), rtol=1e-3)


def test_one_element_and_constant_gradients_have_no_spread(statistics):
    found = statistics([torch.tensor([3.0]), torch.full((1000,), 0.1)]).numpy()
    assert found[0].tolist() == [3, 3, 0, 0]
    assert found[1, 2] < 1e-8


def test_infinite_and_nan_gradients_show_as_such(statistics):
    found = statistics([torch.tensor([1.0, math.inf]), torch.tensor([1.0, math.nan])]).numpy()
    assert math.isinf(found[0, 0])
    assert math.isinf(found[0, 1])
    assert math.isnan(found[1, 0])
    assert math.isnan(found[1, 1])


def test_update_statistics():
    parameters = [torch.nn.Parameter(p) for p in (torch.tensor([3.0, 4.0]), torch.zeros(2), torch.ones(2, 2))]
    unused = torch.nn.Parameter(torch.ones(3))
    meter = stats.WeightStatistics([parameters[0], unused, *parameters[1:]])
    for after in (torch.tensor([3.0, 4.5]), torch.ones(2), torch.ones(2, 2)), (torch.zeros(2), torch.zeros(2), None):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        was = [parameter.detach().clone() for parameter in parameters]
        meter.measure_gradients()
        meter.keep_weights()
        with torch.no_grad():
            for parameter, value in zip(parameters, after, strict=True):
                parameter.copy_(parameter if value is None else value)
        rows, values = meter.measure_updates()
        assert rows == [0, 2, 3]
        for old, new, ratio, size in zip(was, parameters, *values[:, 4:].T.tolist(), strict=True):
            change = (new - old).detach().norm().item() / old.norm().item() if old.any() else math.nan
            assert ratio == pytest.approx(change, nan_ok=True)
            assert size == pytest.approx(old.square().mean().sqrt().item())


# --- observer --------------------------------------------------------------------------------------


class Sink:
    def __init__(self):
        self.snapshots, self.points, self.texts = [], {}, []

    def snapshot(self, snapshot):
        self.snapshots.append(snapshot)

    def scalars(self, step, values):
        self.points[step] = dict(values)

    def text(self, tag, text, step):
        self.texts.append((tag, text, step))


def plan(steps=5, lr=0.5):
    return RunPlan(np.full(steps, lr), np.full(steps, 2 * lr), chance_loss=1.0, warmup_frac=0.1, bias_correction=False)


def test_it_measures_gradients_before_clipping_and_the_change_that_was_made():
    parameter = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    sink, history = Sink(), History(plan())
    observer = Monitor(
        {"enc.l.3.weight": model.NamedWeight(parameter, "linear", 3)}, history, MonitorConfig(every=2), sink
    )
    for step in range(5):
        parameter.grad = torch.tensor([[30.0, 0.0]])
        history.losses.append(1.0)
        history.grad_norms.append(30.0)
        if observer.due(step):
            with observer.update(step):
                torch.nn.utils.clip_grad_norm_([parameter], 1.0)
                with torch.no_grad():
                    parameter.sub_(0.5 * parameter.grad)
            observer.set_logit_std(torch.tensor(0.25))
            observer.flush()
    assert [snapshot.step for snapshot in sink.snapshots] == [0, 2, 4]
    assert sink.snapshots == history.snapshots
    first = sink.snapshots[0]
    assert (first.lr, first.effective_lr, first.logit_std) == (0.5, 1.0, 0.25)
    assert first.layers == WeightTable(("enc.l.3.weight",), ("linear",), (3,))
    assert first.values[0].tolist() == pytest.approx([15, 30, 15, 0.5, 0.5 / 5, 5 / 2**0.5])
    assert list(sink.points) == [0, 2, 4]
    assert sink.points[0] == pytest.approx({"logit_std": 0.25, "update_per_lr/linear": 0.5 / 2**0.5})


def test_a_parameter_without_a_gradient_has_no_numbers():
    live, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    live.grad = torch.ones(2)
    sink, history = Sink(), History(plan(), losses=[1.0], grad_norms=[1.0])
    layers = {"unused": model.NamedWeight(unused, "linear", None), "live": model.NamedWeight(live, "norm", None)}
    observer = Monitor(layers, history, MonitorConfig(every=1), sink)
    with observer.update(0):
        pass
    observer.flush()
    assert np.isnan(sink.snapshots[0].values[0]).all()
    assert sink.snapshots[0].values[1].tolist() == pytest.approx([1, 1, 0, 0, 0, 1], abs=1e-7)


def test_a_step_that_training_did_not_come_to_is_not_measured():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    sink = Sink()
    observer = Monitor(
        {"weight": model.NamedWeight(parameter, "linear", None)},
        History(plan(), losses=[math.nan], grad_norms=[1.0]),
        MonitorConfig(every=1),
        sink,
    )
    with observer.update(1):
        pass
    observer.flush()
    assert sink.snapshots == []


def test_a_verdict_is_told_once_for_each_change(caplog):
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    sink, history = Sink(), History(plan(30))
    rules = VerdictThresholds(min_logit_std=1e-2, min_update_per_lr=1e3)  # whatever the steps are, the spread decides
    layers = {"weight": model.NamedWeight(parameter, "linear", None)}
    observer = Monitor(layers, history, MonitorConfig(every=1, thresholds=rules), sink)
    caplog.set_level(logging.INFO)
    for step, spread in enumerate([1, 1, 1e-6, 1e-6, 1e-6] + 20 * [1]):
        parameter.grad = torch.ones(2, 2)
        history.losses.append(0.5 if step > 4 else 1.0)  # from chance to learned
        history.grad_norms.append(1.0)
        with observer.update(step):
            parameter.data -= 0.1
        observer.set_logit_std(torch.tensor(float(spread)))
        observer.flush()
    assert [(tag, text.split(" - ")[0].rstrip("."), step) for tag, text, step in sink.texts] == [
        ("verdict", "step 2: collapsed", 2),
        ("verdict", "step 24: healthy", 24),
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert caplog.messages == [text for _, text, _ in sink.texts]
    assert observer.diagnosis.verdict is Verdict.healthy


@pytest.mark.parametrize("skip_prob", [0.0, 0.5, 0.99])
def test_thinning_keeps_the_ends_and_is_the_same_for_every_run(skip_prob):
    labels = [f"layer{number}" for number in range(200)]
    kept = subsample(labels, skip_prob)
    np.random.seed(1)
    assert kept == subsample(labels, skip_prob)
    assert (kept[0], kept[-1]) == ("layer0", "layer199")
    assert kept == [label for label in labels if label in kept]
    assert len(kept) == pytest.approx(200 * (1 - skip_prob), abs=20)
    assert subsample(["only"], skip_prob) == ["only"]


# --- history -------------------------------------------------------------------------------------


def test_a_history_comes_back_from_its_file(tmp_path):
    snapshot = bert_snapshot(2)
    steps = plan(40, lr=1e-4)
    snapshots = [dataclasses.replace(snapshot, step=step, effective_lr=2e-4, lr=1e-4) for step in (0, 30)]
    history = History(steps, losses=[1.5, math.nan], grad_norms=[0.25, math.inf], snapshots=snapshots)
    (tmp_path / "history.npz").write_bytes(history.to_bytes())
    found = History.load(tmp_path / "history.npz")
    assert [dataclasses.replace(shot, logit_std=1e-3) for shot in found.snapshots] == snapshots
    assert found.snapshots[0].logit_std == pytest.approx(1e-3)
    assert (found.losses[0], found.grad_norms) == (1.5, [0.25, math.inf])
    assert math.isnan(found.losses[1])
    assert np.array_equal(found.plan.effective_lr, steps.effective_lr)
    assert (found.plan.chance_loss, found.plan.warmup_frac, found.plan.bias_correction) == (1.0, 0.1, False)


def test_a_history_may_be_empty(tmp_path):
    (tmp_path / "history.npz").write_bytes(History(plan()).to_bytes())
    found = History.load(tmp_path / "history.npz")
    assert (found.losses, found.snapshots) == ([], [])


def test_families_are_the_matrices_that_every_layer_has():
    families = bert_snapshot(3).layers.matrix_groups
    assert list(families) == [
        "enc.l.*.attention.query",
        "enc.l.*.attention.key",
        "enc.l.*.attention.value",
        "enc.l.*.attention.output.dense",
        "enc.l.*.intermediate.dense",
        "enc.l.*.output.dense",
    ]
    assert [len(rows) for rows in families.values()] == [3] * 6


# --- figures -------------------------------------------------------------------------------------


def plain_figure(kind: str, snapshot: Snapshot):
    """The slow, obvious way to the same picture: matplotlib's own bars and marks, on the axes of a blank sheet."""
    rows = range(len(snapshot.layers))
    colours = [figures._COLOURS[kind] for kind in snapshot.layers.kinds]
    if kind == "gradient_flow":
        shown = np.concatenate([snapshot[name] for name in ("grad_mean", "grad_max", "grad_std")])
        figure, (flow, zeros) = figures.background(kind, snapshot.layers, figures._decades(shown))
        flow.barh(rows, snapshot["grad_mean"], height=0.72, color=colours, left=1e-300)
        flow.plot(snapshot["grad_std"], rows, "o", ms=3.2, color="white", mec=figures._INK)
        flow.plot(snapshot["grad_max"], rows, "|", ms=5.5, color=figures._INK, mew=1.2)
        zeros.barh(rows, 100 * snapshot["grad_zero"], height=0.72, color=colours)
    else:
        decades = figures._decades(np.append(snapshot["update_ratio"], 1e-3))
        figure, (axes,) = figures.background(kind, snapshot.layers, decades)
        axes.barh(rows, snapshot["update_ratio"], height=0.72, color=colours, left=1e-300)
        axes.axvline(1e-3, color=figures._INK, linewidth=1, linestyle=(0, (4, 3)))
    return figure


def pixels(figure):
    return np.asarray(Image.open(io.BytesIO(figures.png(figure))).convert("RGB")).astype(int)


@pytest.mark.parametrize("layers", [1, 12, 24])
@pytest.mark.parametrize("kind", ["gradient_flow", "update_ratio"])
def test_a_figure_is_the_one_that_matplotlib_draws_plainly(layers, kind):
    snapshot = bert_snapshot(layers)
    fast, plain = pixels(getattr(figures, kind)(snapshot)), pixels(plain_figure(kind, snapshot))
    assert fast.shape == plain.shape
    below_heading = slice(45, None)
    differs = np.abs(fast - plain)[below_heading].max(axis=2) > 100
    assert differs.mean() < 0.002  # edges of bars and marks, rounded to another pixel


@pytest.mark.parametrize("layers", [1, 2, 12, 24])
def test_no_bar_and_no_mark_is_cut(layers):
    snapshot = bert_snapshot(layers)
    for column in ("grad_mean", "grad_max", "grad_std"):
        low, high = figures._decades(*(snapshot[name] for name in ("grad_mean", "grad_max", "grad_std")))
        assert 10.0**low < snapshot[column].min()
        assert snapshot[column].max() < 10.0**high
    figure = figures.gradient_flow(snapshot)
    width = figure.get_figwidth() * figure.dpi
    for line in figure.lines:  # std, max
        assert min(line.get_xdata()) > 0.235 * width
        assert max(line.get_xdata()) < 0.975 * width
    bars = [path.vertices for c in figure.findobj(PolyCollection) for path in c.get_paths()]
    assert len(bars) == 2 * len(snapshot.layers)
    assert max(bar[:, 0].max() for bar in bars) < 0.975 * width


@pytest.mark.parametrize("layers", [1, 24])
def test_every_label_is_whole_and_stands_at_its_row(layers):
    snapshot = bert_snapshot(layers)
    figure, (axes,) = figures.background("update_ratio", snapshot.layers, (-5, -1))
    FigureCanvasAgg(figure).draw()
    labels = axes.get_yticklabels()
    assert [label.get_text() for label in labels] == list(snapshot.layers.labels)
    boxes = [label.get_window_extent() for label in labels]
    assert all(upper.y0 >= lower.y1 - 2 for upper, lower in pairwise(boxes))
    assert min(box.x0 for box in boxes) >= 0
    assert all(box.height >= 8 for box in boxes)  # pixels


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
    def words(figure):
        return [text.get_text() for text in figure.findobj(Text) if text.get_fontsize() in (7, 11)]

    snapshot = bert_snapshot(1, lr=0.0)
    snapshot.values[:, STATISTICS.index("update_ratio")] = 0
    assert words(figures.update_ratio(snapshot)) == ["no update: the learning rate is 0"]

    snapshot.values[:4, 0] = [0, np.nan, np.inf, 1e-4]
    figure = figures.gradient_flow(snapshot)
    assert words(figure) == ["0", "none", "inf"]
    figures.png(figure)


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
    expected = {f"{statistic}/{layer}" for statistic in STATISTICS for layer in snapshot.layers.labels}
    assert set(tags["scalars"]) == expected | {"loss/train", "learning_rate"}
    for statistic in STATISTICS:
        found = [events.Scalars(f"{statistic}/{layer}")[0] for layer in snapshot.layers.labels]
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
