"""The selection of runs and steps that a report shows."""

import pytest
from conftest import DEAD, comparison, write_run

from bertmon.compare import selection
from bertmon.compare.results import read_sweep
from bertmon.monitor.history import HISTORY_FILE


def names(curves):
    return [curve.setting.name for curve in curves]


@pytest.mark.parametrize("content", [b"", b"PK", DEAD[: len(DEAD) // 2], b"\x93NUMPY"])
def test_select_curves_leaves_out_a_corrupt_history(tmp_path, content):
    comparison(tmp_path, seeds=1)
    (tmp_path / "warmup_frac=0.1/seed=0" / HISTORY_FILE).write_bytes(content)
    assert names(selection.select_curves(read_sweep([tmp_path]))) == ["warmup_frac=0.7"]


def test_select_curves_of_many_runs_takes_one_of_each_setting(tmp_path):
    for number in range(70):
        write_run(tmp_path / f"{number:02}/seed=0", status="failed", overrides={"n": number}, measured=False)
        write_run(tmp_path / f"{number:02}/seed=1", seed=1, overrides={"n": number})
    assert len(selection.select_curves(read_sweep([tmp_path]))) == 35  # every second setting


def test_select_curves_of_many_seeds_does_not_prefer_those_that_failed(tmp_path):
    for seed in range(40):
        write_run(tmp_path / f"a/seed={seed}", learns=seed != 20, seed=seed, overrides={"n": 0})
        write_run(tmp_path / f"b/seed={seed}", seed=seed, overrides={"n": 1})
    curves = selection.select_curves(read_sweep([tmp_path]))
    assert [curve.run.seed for curve in curves] == [*range(30), *range(30)]
    assert sum(curve.run.did_not_learn for curve in curves) == 1


def test_select_layer_runs_of_many_settings_takes_the_first_flagged_and_the_best(tmp_path):
    for number in range(6):
        flagged = 20 * (3 - number) % 80
        write_run(tmp_path / f"{number}/seed=0", learns=number > 2, overrides={"n": number}, verdict_step=flagged)
    curves = selection.select_layer_runs(read_sweep([tmp_path]))
    assert names(curves) == ["n=2", "n=3"]
    assert selection.select_steps(curves) == [20, 0, 80]


def test_select_layer_runs_without_flags_takes_the_worst_and_the_best(tmp_path):
    for number in range(70):
        accuracy = 0.3 + (0.5 if number == 1 else 0.0)
        write_run(tmp_path / f"{number:02}/seed=0", status="failed", overrides={"n": number}, measured=False)
        write_run(tmp_path / f"{number:02}/seed=1", seed=1, accuracy=accuracy, overrides={"n": number})
    assert names(selection.select_layer_runs(read_sweep([tmp_path]))) == ["n=0", "n=1"]


def test_select_layer_runs_takes_no_run_twice(tmp_path):
    for number in range(6):
        write_run(tmp_path / f"{number}/seed=0", learns=False, overrides={"n": number}, measured=number == 3)
    assert names(selection.select_layer_runs(read_sweep([tmp_path]))) == ["n=3"]


def test_select_steps_of_no_run_is_empty():
    assert selection.select_steps([]) == []
