"""The runs of the verdict study: their settings and their files."""

import pytest
import verdict_grid
from labeled_runs import read_folder, unpack


def test_settings_match_the_stored_runs():
    runs = unpack()
    assert {run.setting for run in runs} == set(range(verdict_grid.SETTINGS))
    for run in runs:
        assert " ".join(verdict_grid.setting(run.setting)) == run.overrides


@pytest.mark.slow
def test_train_writes_a_readable_run_and_skips_it_the_second_time(tmp_path, files):
    run_dir = tmp_path / "grid" / "042" / "seed=1"
    line = verdict_grid.train(run_dir, files, seed=1)
    assert line.startswith(f"{run_dir}: ")
    (run,) = read_folder(tmp_path / "grid")
    assert (run.setting, run.seed, run.overrides) == (42, 1, " ".join(files))
    assert f": {run.accuracy:.1%} after " in line
    assert [shot.step for shot in run.history.snapshots] == list(range(0, len(run.history.losses), 10))
    assert verdict_grid.train(run_dir, files, seed=1) == f"{run_dir}: finished before"
