"""The run whose rate rises until training breaks."""

import dataclasses

import numpy as np
import pytest
from conftest import TINY

from bertmon.errors import InputError
from bertmon.training import rate_range
from bertmon.training.plan import plan_run
from bertmon.training.rate_range import OVERSHOOT, find_cliff, peak_factor, rising_rates


def test_rates_rise_by_the_same_factor_from_the_lowest_to_the_highest():
    rates = rising_rates(1e-4, 2e-2)
    assert len(rates) == 300
    assert rates[[0, -1]] == pytest.approx([1e-4, 2e-2])
    assert np.ptp(rates[1:] / rates[:-1]) < 1e-12


def test_training_that_does_not_break_reaches_the_highest_rate(settings):
    outcome = find_cliff(settings, 1e-5, 1.3e-5)
    assert (outcome.failed, outcome.cliff, outcome.steps) == (False, None, 16)
    assert outcome.last_rate == pytest.approx(1.3e-5, rel=0.01)
    assert len(outcome.plan) == 12  # the plan of the planned run


def test_training_breaks_once_gradients_vanish_towards_the_input(settings):
    settings.model.num_hidden_layers = 6
    settings.optimizer.bias_correction = False  # the rising rate is the effective one anyway
    first, second = (find_cliff(settings, 3e-2, 30.0) for _ in range(2))
    assert first.failed
    assert (first.steps, first.last_rate) == (second.steps, second.last_rate)
    assert 3e-2 < first.last_rate < 30.0
    assert first.cliff == first.last_rate / OVERSHOOT


def test_threshold_that_every_gradient_meets_breaks_at_once(settings):
    settings.monitor.enabled = False
    settings.monitor.thresholds.min_depth_ratio = 1e6
    outcome = find_cliff(settings, 1e-3, 1e-2)
    assert (outcome.failed, outcome.steps, outcome.last_rate) == (True, 1, 1e-3)


def test_vanishing_gradients_of_a_model_that_has_learned_are_no_cliff(settings, monkeypatch):
    settings.monitor.thresholds.min_depth_ratio = 1e6
    monkeypatch.setattr(rate_range, "LEARNED_LOSS_RATIO", 100)  # any loss counts as learned
    assert not find_cliff(settings, 1e-3, 1.1e-3).failed


def test_single_layer_has_no_gradients_to_compare(settings):
    settings.model = dataclasses.replace(TINY, num_hidden_layers=1)
    with pytest.raises(InputError, match="model: expected at least two encoder layers"):
        find_cliff(settings, 1e-3, 1e-2)


@pytest.mark.parametrize("bias_correction", [False, True])
def test_peak_factor_times_the_rate_is_the_peak_of_the_plan(settings, bias_correction):
    settings.schedule.warmup_frac, settings.train.epochs = 0.3, 50
    settings.optimizer.bias_correction = bias_correction
    peak = plan_run(settings, 6, 1.0).effective_lr.max()
    factor = peak_factor(settings, 300, warmup_frac=0.3, bias_correction=bias_correction)
    assert factor * settings.optimizer.lr == pytest.approx(peak)
    assert (factor == pytest.approx(1.0)) is bias_correction
