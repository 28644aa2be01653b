"""The monitor: the steps at which it measures, its measurements, and its verdicts."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from conftest import RecordingLog

from bertmon.config import MonitorConfig, VerdictThresholds
from bertmon.model import NamedWeight
from bertmon.monitor.diagnosis import Verdict
from bertmon.monitor.history import History, RunPlan, WeightTable
from bertmon.monitor.monitor import Monitor, PendingScalars, subsample
from bertmon.monitor.probe import LogitProbe


def plan(steps=5, lr=0.5):
    return RunPlan(np.full(steps, lr), np.full(steps, 2 * lr), chance_loss=1.0, warmup_frac=0.1, bias_correction=False)


class FixedProbe:
    """A probe that returns the given values; None means that nothing was measured."""

    def __init__(self, *values):
        self._values = list(values)
        self.next_step = 0
        self.steps = []

    def logit_std(self, step, batch, logits):
        self.steps.append(step)
        value = self._values.pop(0) if len(self._values) > 1 else self._values[0]
        return None if value is None else torch.tensor(float(value))


def linear_weight(values=((1.0, 1.0), (1.0, 1.0)), label="weight", depth=None):
    parameter = torch.nn.Parameter(torch.tensor(values))
    return parameter, {label: NamedWeight(parameter, "linear", depth)}


def record(monitor, loss=1.0, grad_norm=1.0):
    monitor.record(torch.tensor(loss), torch.tensor(grad_norm))


# --- measuring -----------------------------------------------------------------------------------


def test_monitor_measures_gradients_before_clipping_and_the_update_after_it():
    parameter, weights = linear_weight([[3.0, 4.0]], "enc.l.3.weight", 3)
    log = RecordingLog()
    monitor = Monitor(weights, History(plan()), MonitorConfig(every=2), log, probe=FixedProbe(0.25))
    for step in range(5):
        parameter.grad = torch.tensor([[30.0, 0.0]])
        with monitor.update(step, None):
            torch.nn.utils.clip_grad_norm_([parameter], 1.0)
            with torch.no_grad():
                parameter.sub_(0.5 * parameter.grad)
        record(monitor, grad_norm=30.0)
        if monitor.due(step):
            assert monitor.flush()
    assert [snapshot.step for snapshot in log.snapshots] == [0, 2, 4]
    assert log.snapshots == monitor.history.snapshots
    first = log.snapshots[0]
    assert (first.lr, first.effective_lr, first.logit_std) == (0.5, 1.0, 0.25)
    assert first.layers == WeightTable(("enc.l.3.weight",), ("linear",), (3,))
    assert first.values[0].tolist() == pytest.approx([15, 30, 15, 0.5, 0.5 / 5, 5 / 2**0.5])
    assert {tag: [step for step, _ in points] for tag, points in log.points.items()} == {
        "logit_std": [0, 2, 4],
        "update_per_lr/linear": [0, 2, 4],
    }
    assert log.points["logit_std"][0] == (0, 0.25)
    assert log.points["update_per_lr/linear"][0] == (0, pytest.approx(0.5 / 2**0.5))
    assert monitor.history.grad_norms == [30.0] * 5


def test_monitor_of_a_parameter_without_a_gradient_has_nan():
    live, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    live.grad = torch.ones(2)
    weights = {"unused": NamedWeight(unused, "linear", None), "live": NamedWeight(live, "norm", None)}
    log = RecordingLog()
    monitor = Monitor(weights, History(plan()), MonitorConfig(every=1), log, probe=None)
    with monitor.update(0, None):
        pass
    record(monitor)
    monitor.flush()
    assert np.isnan(log.snapshots[0].values[0]).all()
    assert log.snapshots[0].values[1].tolist() == pytest.approx([1, 1, 0, 0, 0, 1], abs=1e-7)


def test_monitor_without_a_probe_or_a_probe_without_a_value_has_no_logit_std():
    for probe in (None, FixedProbe(None)):
        parameter, weights = linear_weight()
        parameter.grad = torch.ones(2, 2)
        log = RecordingLog()
        monitor = Monitor(weights, History(plan()), MonitorConfig(every=1), log, probe=probe)
        with monitor.update(0, None):
            pass
        record(monitor)
        monitor.flush()
        assert math.isnan(log.snapshots[0].logit_std)
        assert "logit_std" not in log.points


def test_monitor_of_a_step_after_a_divergence_measures_nothing():
    parameter, weights = linear_weight()
    parameter.grad = torch.ones(2, 2)
    log = RecordingLog()
    monitor = Monitor(weights, History(plan()), MonitorConfig(every=1), log, probe=None)
    record(monitor, loss=math.nan)
    with monitor.update(1, None):
        pass
    record(monitor)
    assert not monitor.flush()
    assert log.snapshots == []
    assert len(monitor.history.losses) == 1
    assert monitor.diagnosis.verdict is Verdict.diverged


def test_final_verdict_includes_the_losses_after_the_last_measurement():
    """A run that learns between its last measured step and its end."""
    parameter, weights = linear_weight()
    monitor = Monitor(weights, History(plan(40)), MonitorConfig(every=30), RecordingLog(), probe=FixedProbe(0.25))
    for step in range(40):
        parameter.grad = torch.ones_like(parameter)
        with monitor.update(step, None):
            pass
        record(monitor, loss=1.0 if step <= 30 else 0.1)
        if step in (30, 35):
            monitor.flush()
            assert monitor.diagnosis.verdict is Verdict.slow
    monitor.flush()
    assert monitor.diagnosis.verdict is Verdict.healthy
    assert monitor.diagnosis.since_step == 39


def test_monitor_that_is_off_is_never_due_but_records_losses():
    parameter, weights = linear_weight()
    log, probe = RecordingLog(), FixedProbe(1.0)
    monitor = Monitor(weights, History(plan()), MonitorConfig(every=1, enabled=False), log, probe=probe)
    assert not any(monitor.due(step) for step in range(5))
    for step in range(3):
        parameter.grad = torch.full((2, 2), 2.0)
        with monitor.update(step, None):
            parameter.data -= 0.1
        record(monitor, loss=3.0 - step, grad_norm=4.0)
    assert monitor.flush()
    assert monitor.log_means() == {
        "loss/train": 2.0,
        "learning_rate": 0.5,
        "effective_learning_rate": 1.0,
        "grad_norm": 4.0,
    }
    assert (monitor.history.losses, monitor.history.grad_norms) == ([3.0, 2.0, 1.0], [4.0] * 3)
    assert log.points["loss/train"] == [(2, 2.0)]
    assert (monitor.history.snapshots, log.snapshots, log.texts, probe.steps) == ([], [], [], [])
    assert (monitor.diagnosis, monitor.doomed) == (None, False)


@pytest.mark.parametrize(("loss", "grad_norm"), [(math.nan, 1.0), (1.0, math.inf)])
def test_monitor_that_is_off_logs_a_value_that_is_not_finite(caplog, loss, grad_norm):
    monitor = Monitor({}, History(plan()), MonitorConfig(enabled=False), RecordingLog(), probe=None)
    record(monitor)
    record(monitor, loss, grad_norm)
    record(monitor)
    assert not monitor.flush()
    assert len(monitor.history.losses) == 2
    assert caplog.messages == ["step 1: the loss or a gradient is not finite; training stops"]
    assert monitor.diagnosis is None
    monitor.report_divergence("loss/test", math.nan, 2)
    assert monitor.diagnosis is None


def test_pending_scalars_are_flushed_in_order_up_to_the_first_non_finite_one():
    history, pending = History(plan()), PendingScalars()
    assert pending.flush_to(history)
    for loss in (1.0, 2.0):
        pending.add(torch.tensor(loss), torch.tensor(loss / 2))
    assert pending.flush_to(history)
    assert (history.losses, history.grad_norms) == ([1.0, 2.0], [0.5, 1.0])
    for norm in (3.0, math.nan, 4.0):
        pending.add(torch.tensor(1.0), torch.tensor(norm))
    assert not pending.flush_to(history)
    assert history.losses == [1.0, 2.0, 1.0, 1.0]
    assert pending.flush_to(history)  # later values were dropped
    assert len(history.losses) == 4


def test_log_means_without_a_new_step_writes_nothing():
    log = RecordingLog()
    monitor = Monitor({}, History(plan()), MonitorConfig(), log, probe=None, max_grad_norm=2.0)
    assert monitor.log_means() == {}
    for loss, norm in ((1.0, 1.0), (2.0, 3.0)):
        record(monitor, loss, norm)
        monitor.flush()
        assert monitor.log_means()["loss/train"] == loss
        assert monitor.log_means() == {}
    assert log.points["loss/train"] == [(0, 1.0), (1, 2.0)]
    assert log.points["clipped"] == [(0, 0.0), (1, 1.0)]


# --- verdicts ------------------------------------------------------------------------------------


def test_monitor_starts_undecided_and_writes_each_change_of_verdict_once(caplog):
    parameter, weights = linear_weight()
    # every update counts as too small, so the standard deviation of the logits decides
    thresholds = VerdictThresholds(min_logit_std=1e-2, min_update_per_lr=1e3)
    logit_stds = [1, 1, 1e-6, 1e-6, 1e-6, *(20 * [1])]
    log = RecordingLog()
    config = MonitorConfig(every=1, thresholds=thresholds)
    monitor = Monitor(weights, History(plan(30)), config, log, probe=FixedProbe(*logit_stds))
    caplog.set_level(logging.INFO)
    assert monitor.diagnosis.verdict is Verdict.undecided
    for step in range(len(logit_stds)):
        parameter.grad = torch.ones(2, 2)
        with monitor.update(step, None):
            parameter.data -= 0.1
        record(monitor, loss=0.5 if step > 4 else 1.0)  # from chance to learned
        monitor.flush()
        assert monitor.doomed is (2 <= step < 24)
    assert [(tag, text.split(" - ")[0], step) for tag, text, step in log.texts] == [
        ("verdict", "step 2: collapsed", 2),
        ("verdict", "step 24: healthy", 24),
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert caplog.messages == [text for _, text, _ in log.texts]
    assert monitor.diagnosis.verdict is Verdict.healthy


def test_divergence_reported_between_two_steps_is_the_verdict():
    log = RecordingLog()
    monitor = Monitor({}, History(plan()), MonitorConfig(), log, probe=None)
    monitor.report_divergence("loss/test", math.inf, 3)
    assert monitor.doomed
    assert str(monitor.diagnosis).startswith("step 3: diverged - loss/test is inf. Likely cause: a learning rate of 1 ")
    assert log.texts == [("verdict", str(monitor.diagnosis), 3)]


# --- resuming ------------------------------------------------------------------------------------


def test_monitor_restored_from_json_continues_unchanged():
    def monitored(history, log):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Dropout(0.5))
        probe = LogitProbe(model, model)
        weights = {"weight": NamedWeight(model[0].weight, "linear", None)}
        return model, Monitor(weights, history, MonitorConfig(every=1), log, probe=probe)

    def train(model, monitor, steps):
        for step in steps:
            model[0].weight.grad = torch.full((2, 2), float(step))
            with monitor.update(step, torch.eye(2)), torch.no_grad():
                model[0].weight.sub_(1e-3 * model[0].weight.grad)
            record(monitor, loss=1.0 + step)
            monitor.flush()
            if step % 4 == 0:
                monitor.log_means()

    expected_log, log = RecordingLog(), RecordingLog()
    model, expected = monitored(History(plan(30)), expected_log)
    train(model, expected, range(25))

    model, first = monitored(History(plan(30)), log)
    train(model, first, range(14))
    state = json.loads(json.dumps(first.state_dict()))
    weight = model[0].weight.detach().clone()
    model, second = monitored(first.history, log)
    second.load_state_dict(state)
    with torch.no_grad():
        model[0].weight.copy_(weight)
    train(model, second, range(14, 25))

    assert second.history.losses == expected.history.losses
    assert second.history.snapshots == expected.history.snapshots
    measured = [shot.step for shot in second.history.snapshots if not math.isnan(shot.logit_std)]
    assert measured == [0, 10, 20]
    assert (log.points, log.texts, log.snapshots) == (expected_log.points, expected_log.texts, expected_log.snapshots)
    assert second.diagnosis == expected.diagnosis
    assert second.state_dict() == expected.state_dict()


def test_monitor_state_keeps_a_verdict_with_its_findings():
    monitors = [Monitor({}, History(plan()), MonitorConfig(), RecordingLog(), probe=None) for _ in range(2)]
    monitors[0].report_divergence("loss/test", math.inf, 3)
    monitors[1].load_state_dict(json.loads(json.dumps(monitors[0].state_dict())))
    assert monitors[1].diagnosis == monitors[0].diagnosis


# --- which weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("skip_prob", [0.0, 0.5, 0.99])
def test_subsample_keeps_the_ends_and_is_the_same_for_every_run(skip_prob):
    labels = [f"layer{number}" for number in range(200)]
    sample = subsample(labels, skip_prob)
    np.random.seed(1)
    assert sample == subsample(labels, skip_prob)
    assert (sample[0], sample[-1]) == ("layer0", "layer199")
    assert sample == [label for label in labels if label in sample]
    assert len(sample) == pytest.approx(200 * (1 - skip_prob), abs=20)
    assert subsample(["only"], skip_prob) == ["only"]
