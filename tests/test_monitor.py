"""The monitor's rooms: stats, observer, figures, writer."""

import dataclasses
import logging
import math

import numpy as np
import pytest
import torch
from conftest import bert_snapshot

from bertmon import model
from bertmon.config import MonitorConfig, VerdictThresholds
from bertmon.monitor import stats
from bertmon.monitor.diagnosis import Verdict
from bertmon.monitor.history import History, RunPlan, WeightTable
from bertmon.monitor.monitor import Monitor, subsample

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
