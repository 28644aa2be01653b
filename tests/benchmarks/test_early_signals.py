"""Scores of early signals on some of the stored runs, and the false alarms of the chosen thresholds."""

import early_signals
import numpy as np
import pytest
from early_signals import SIGNALS, choose_threshold, collapse_step, first_below, of_snapshots, score
from labeled_runs import Label, unpack


@pytest.fixture(scope="module")
def runs():
    return unpack()[::4]


@pytest.mark.parametrize("name", SIGNALS)
def test_chosen_threshold_is_the_largest_with_few_false_alarms(runs, name):
    signal = SIGNALS[name]
    threshold = choose_threshold(runs, signal)
    larger = next(at for at in early_signals.GRID if at > threshold)
    shares = [
        result.false_alarms / result.learned for result in (score(runs, signal, at) for at in (threshold, larger))
    ]
    assert shares[0] <= early_signals.MAX_FALSE_ALARMS < shares[1]


def test_score_counts_collapsed_runs_and_their_leads(runs):
    result = score(runs, SIGNALS["eps floor"], np.inf)
    collapsed = [run for run in runs if run.label is Label.did_not_learn and collapse_step(run) is not None]
    assert result.collapsed == len(collapsed) == len(result.leads) > 10
    assert result.leads == tuple(collapse_step(run) for run in collapsed)  # the rule fires at step 0
    assert result.false_alarms == result.learned
    assert score(runs, SIGNALS["eps floor"], 0.0).leads == ()


def test_first_below_is_a_measured_step_or_none(runs):
    assert first_below(runs[0], of_snapshots(lambda shot: float(shot.step != 20)), 0.5) == 20
    assert first_below(runs[0], of_snapshots(lambda shot: np.nan), 0.5) is None
