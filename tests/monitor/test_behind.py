"""Whether a run can still catch up, on losses that are straight lines."""

import math

import numpy as np
import pytest

from bertmon.monitor.behind import BehindThresholds, best_case, find_behind, loss_reduction
from bertmon.monitor.diagnosis import Diagnosis, Verdict
from bertmon.monitor.history import History, RunPlan

TOTAL = 1000
LEARNED = Diagnosis(Verdict.healthy, 10)


def history(losses, lr=None):
    """A run of 1,000 planned steps with a chance loss of 2."""
    rates = np.full(TOTAL, 1e-3) if lr is None else np.asarray(lr)
    return History(RunPlan(rates, rates, 2.0, 0.1, True), list(losses), [1.0] * len(losses))


def falling(per_step, steps):
    """Losses from chance down on a straight line."""
    return history(2.0 - per_step * np.arange(steps))


def test_loss_reduction_is_0_at_chance_and_1_at_zero_loss():
    assert loss_reduction(history([2.0] * 60)) == 0
    assert loss_reduction(history([2.0] * 60 + [0.0] * 50)) == 1  # a twentieth of the run is averaged
    assert loss_reduction(history([2.0] * 60 + [0.0] * 50), 60) == 0
    assert math.isnan(loss_reduction(history([])))


def test_best_case_of_a_straight_line_is_the_line_at_twice_its_slope():
    line = falling(1e-3, 600)
    now = loss_reduction(line)
    assert now == pytest.approx((599 - 24.5) * 1e-3 / 2)
    assert best_case(line) == pytest.approx(now + 2 * 0.5e-3 * 400)
    assert best_case(line, BehindThresholds(speedup=1.0)) == pytest.approx(now + 0.5e-3 * 400)


def test_best_case_counts_remaining_learning_rates_and_not_steps():
    lr = np.concatenate([np.full(600, 1e-3), np.full(400, 1e-4)])
    decayed = history(2.0 - 1e-3 * np.arange(600), lr)
    assert best_case(decayed) == pytest.approx(loss_reduction(decayed) + 2 * 0.5e-3 * 40)


def test_best_case_of_a_rising_loss_is_its_present_reduction():
    rising = history(np.linspace(1.0, 1.5, 600))
    assert best_case(rising) == pytest.approx(loss_reduction(rising))


@pytest.mark.parametrize("run", [falling(1e-3, 250), history([1.0] * 600, lr=np.zeros(TOTAL)), history([])])
def test_best_case_without_a_pace_is_infinite(run):
    assert best_case(run) == math.inf


def test_find_behind_names_a_run_that_cannot_reach_half_of_the_best():
    slow, best = falling(1e-4, 600), 0.9
    finding = find_behind(slow, LEARNED, best)
    assert finding is not None
    assert (finding.signal, finding.step) == ("loss/train", 599)
    assert (finding.value, finding.threshold) == (best_case(slow), 0.45)
    assert finding.text == (
        "even at 2 times its recent pace the loss ends at most 7% below chance; "
        "the loss of the sweep's best run is 90% below"
    )


@pytest.mark.parametrize("verdict", [verdict for verdict in Verdict if verdict is not Verdict.healthy])
def test_find_behind_is_silent_for_a_run_that_has_not_learned(verdict):
    assert find_behind(falling(1e-4, 600), Diagnosis(verdict, 10), 0.9) is None


def test_find_behind_is_silent_while_a_run_can_catch_up_and_without_another_run():
    assert find_behind(falling(1e-3, 600), LEARNED, 0.9) is None
    assert find_behind(falling(1e-4, 600), LEARNED, -math.inf) is None
    assert find_behind(falling(1e-4, 250), LEARNED, 0.9) is None  # no pace yet


def test_find_behind_is_silent_about_the_best_run_itself():
    for per_step in (1e-4, 1e-3):
        for steps in range(1, TOTAL, 50):
            run = falling(per_step, steps)
            assert find_behind(run, LEARNED, loss_reduction(run)) is None
