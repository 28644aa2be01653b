"""Scores of recorded signals on runs with known outcomes, and the cost of the signals."""

import math

import pytest
import warning_signals
from conftest import TINY_OVERRIDES
from labeled_runs import Label, unpack
from recorded_signals import Signals


@pytest.fixture(scope="module")
def runs():
    """Two runs that learned and two flagged runs that did not."""
    stored = [run for run in unpack() if run.calibration]
    learned = [run for run in stored if run.label is Label.learned][:2]
    failed = [run for run in stored if run.label is Label.did_not_learn and warning_signals.verdict_step(run)][:2]
    return [*learned, *failed]


def recorded(runs, at):
    """Signals that drop at step `at` of the runs that did not learn."""
    return {
        run.setting: [
            Signals(step, *((8.0, (0.9, 0.5)) if run.label is Label.learned or step < at else (1.0, (0.9, 0.1))), 4)
            for step in (0, 10, 20)
        ]
        for run in runs
    }


def test_threshold_is_the_highest_without_false_alarms(runs):
    for name, signal in warning_signals.signals(recorded(runs, 10)).items():
        threshold = warning_signals.choose_threshold(runs, name, signal)
        expected = {"rate margin": 8.0, "token spread": 0.5}[name.split(",")[0]]
        assert threshold == (0.99 if name.endswith("step 0") else expected)


def test_rows_count_leads_before_the_verdict(runs):
    rows = list(warning_signals.rows(runs, recorded(runs, 10)))
    assert len(rows) == 12
    steps = [warning_signals.verdict_step(run) for run in runs if run.label is Label.did_not_learn]
    lead = sum(step - 10 for step in steps) / 2
    assert rows[0] == f"| rate margin < 8 | calibration | 2 of 2 | 0 of 2 | {lead:+.0f} | 2 of 2 |"


def test_signals_are_compared_at_the_steps_of_the_verdict():
    series = warning_signals.series(
        [Signals(0, 4.0, (0.5,), 3), Signals(5, math.nan, (0.1,), 0), Signals(10, 2.0, (0.25,), 3)]
    )
    assert series["rate margin"] == [(0, 4.0), (10, 2.0)]
    assert series["token spread, last layer, over that of step 0"] == [(0, 1.0), (10, 0.5)]


def test_cost_is_measured_in_training_steps(files):
    lines = list(warning_signals.cost(["experiment=quickstart", *files, *TINY_OVERRIDES, "device=cpu"], repeats=2))
    assert [line.split(":")[0] for line in lines] == ["a step", "rate margin", "token spread"]
