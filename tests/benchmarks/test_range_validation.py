"""The claims of docs/range.md, checked against the stored runs."""

from pathlib import Path

import pytest
import range_validation
from environment import compose_config
from range_validation import RealRun, find_bracket

from bertmon.training.rate_range import OVERSHOOT

ROOT = Path(__file__).parents[2]


def test_range_tables_include_every_table_on_the_page(capsys):
    range_validation.main([])
    printed = capsys.readouterr().out.splitlines()
    rows = [line for line in (ROOT / "docs" / "range.md").read_text().splitlines() if line.startswith("|")]
    assert len(rows) > 25
    assert [row for row in rows if row not in printed] == []


def test_overshoot_matches_the_calibration_shapes():
    predictions = range_validation.read(range_validation.PREDICTIONS, range_validation.Prediction)
    assert range_validation.calibrate(predictions) == pytest.approx(OVERSHOOT, rel=0.05)


def test_predictions_are_close_on_most_shapes_and_better_than_a_constant():
    predictions = range_validation.read(range_validation.PREDICTIONS, range_validation.Prediction)
    misses = [range_validation.outside(run) for run in predictions]
    assert sum(miss <= range_validation.CLOSE for miss in misses) >= 7 / 8 * len(misses)
    constant = [find_bracket(runs).miss(range_validation.CONSTANT) for runs in range_validation.all_runs().values()]
    assert sum(misses) / len(misses) < sum(constant) / len(constant)


def test_bracket_is_where_the_fewest_runs_are_on_the_wrong_side():
    ends = {1e-3: False, 2e-3: True, 3e-3: False, 4e-3: True, 8e-3: True}
    cliff = find_bracket([RealRun("", 0, peak, lost) for peak, lost in ends.items()])
    assert (cliff.low, cliff.high, cliff.wrong, cliff.runs) == (1e-3, 4e-3, 1, 5)
    assert [cliff.miss(rate) for rate in (5e-4, 2e-3, 8e-3)] == [2, 1, 2]


def test_overrides_of_shapes_compose():
    for shape in range_validation.SHAPES[1::7]:  # each takes a tenth of a second
        compose_config(["experiment=quickstart", *shape.overrides.split()])
