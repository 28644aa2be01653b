"""Warnings from the planned rates alone: each with a plan that gives it and one that does not."""

import numpy as np
import pytest
from early_signals import peak_table
from labeled_runs import unpack

from bertmon.config import OptimizerConfig
from bertmon.monitor.history import RunPlan
from bertmon.monitor.plan_check import STUDIED_PEAKS, check_plan
from bertmon.optimizer import bias_correction_gain

TOTAL = 675


def plan_of(peak=5.5e-4, warmup_frac=0.1, bias_correction=True, total=TOTAL):
    """Linear warm-up and decay."""
    steps, warmup = np.arange(total), round(warmup_frac * total)
    factor = np.where(steps < warmup, steps / max(warmup, 1), (total - steps) / max(total - warmup, 1))
    config = OptimizerConfig(bias_correction=bias_correction)
    gains = np.array([bias_correction_gain(config, step) for step in range(total)])
    return RunPlan(peak * factor, peak * factor * gains, 1.386, warmup_frac, bias_correction)


def check(plan, beta2=0.999, weight_decay=0.0, studied=True):
    return check_plan(plan, beta2=beta2, weight_decay=weight_decay, studied=studied)


def test_plan_with_bias_correction_and_a_moderate_rate_gives_no_warning():
    assert check(plan_of()) == []


def test_quickstart_plan_that_does_not_learn_gives_warnings_of_its_boost_and_peak():
    boost, peak = check(plan_of(bias_correction=False))
    assert boost == (
        "without bias correction the effective learning rate peaks at 2.1e-3 (step 68), 3.9x the nominal 5.5e-4: "
        "warm-up is shorter than the 2000 steps, 2 / (1 - beta2), in which the boost fades"
    )
    assert peak == (
        "the effective learning rate peaks at 2.1e-3: of 46 small BERTs from random weights with such a peak, 32 did "
        "not learn"
    )


def test_quickstart_plan_that_learns_has_a_peak_below_those_that_did_not():
    sentences = check(plan_of(bias_correction=False, warmup_frac=0.7))
    assert not any("did not learn" in sentence for sentence in sentences)


def test_beta2_changes_the_steps_in_which_the_boost_fades():
    (first, *_) = check(plan_of(bias_correction=False), beta2=0.99)
    assert "shorter than the 200 steps" in first


def test_peaks_of_other_models_are_not_compared_with_the_studied_ones():
    assert check(plan_of(peak=1e-2), studied=False) == []
    (sentence,) = check(plan_of(peak=1e-2))
    assert sentence.endswith("with such a peak, 79 did not learn")


def test_too_small_a_peak_gives_a_warning():
    (sentence,) = check(plan_of(peak=1e-5))
    assert sentence.endswith(
        "peaks at 1e-5: of 63 small BERTs from random weights with so small a peak, 33 did not learn"
    )


def test_warmup_over_the_whole_run_gives_a_warning():
    (sentence,) = check(plan_of(warmup_frac=1.0))
    assert sentence.startswith("the learning rate rises until the last step")


@pytest.mark.parametrize(("weight_decay", "warned"), [(0.0, False), (0.01, True), (1.0, False)])
def test_weight_decay_without_effect_gives_a_warning(weight_decay, warned):
    sentences = check(plan_of(), weight_decay=weight_decay)
    assert [sentence.startswith("weight_decay=") for sentence in sentences] == [True] * warned
    if warned:
        assert "weight_decay=0.01 shrinks weights by 0.19 % in all 675 steps" in sentences[0]


def test_rate_of_zero_gives_only_its_own_warning():
    zero = np.zeros(5)
    assert check(RunPlan(zero, zero, 1.0, 0.0, False)) == ["the learning rate is 0 at every step: no weight will move"]
    assert check(RunPlan(zero[:0], zero[:0], 1.0, 0.0, False)) == []


def test_studied_peaks_match_the_stored_runs():
    assert tuple(peak_table(unpack())) == STUDIED_PEAKS
