"""A run's view of its sweep, from the files of other runs."""

import math

import numpy as np
import pytest

from bertmon.metrics import EvalResult
from bertmon.monitor.history import HISTORY_FILE, History, RunPlan
from bertmon.result import RESULT_FILE, DataSummary, RunResult, Status, SweepFile
from bertmon.training.sweep_runs import SweepRuns

NAMES = ("lr=1e-3/seed=0", "lr=1e-3/seed=1", "lr=1e-4/seed=0", "lr=1e-4/seed=1")


@pytest.fixture
def sweep(tmp_path):
    """A sweep of four runs, none of which has started."""
    SweepFile(NAMES).write(tmp_path)
    return tmp_path


def end_run(run_dir, loss, status=Status.finished, fingerprint="data"):
    """Write the files of a run that ended at this loss; chance is 1."""
    run_dir.mkdir(parents=True, exist_ok=True)
    result = RunResult(status=status, steps=50, total_steps=50)
    result.data, result.evaluations = DataSummary(fingerprint, 1, 1, (), 0.5), [EvalResult(50, loss, 0.5)]
    (run_dir / RESULT_FILE).write_bytes(result.to_json())
    history = History(RunPlan(np.ones(50), np.ones(50), 1.0, 0.1, True), [loss] * 50, [1.0] * 50)
    (run_dir / HISTORY_FILE).write_bytes(history.to_bytes())


def test_best_of_a_sweep_follows_the_runs_that_end(sweep):
    runs = SweepRuns(sweep / NAMES[0], "data")
    assert runs.best_loss_reduction() == -math.inf
    end_run(sweep / NAMES[1], 0.75)
    assert runs.best_loss_reduction() == 0.25
    end_run(sweep / NAMES[2], 0.5, Status.stopped)
    assert runs.best_loss_reduction() == 0.5
    end_run(sweep / NAMES[3], math.nan)
    assert runs.best_loss_reduction() == 0.5


def test_best_of_a_sweep_ignores_the_run_itself_unfinished_runs_and_other_data(sweep):
    end_run(sweep / NAMES[0], 0.25)
    end_run(sweep / NAMES[1], 0.25, Status.interrupted)
    end_run(sweep / NAMES[2], 0.25, fingerprint="other data")
    (sweep / NAMES[3]).mkdir(parents=True)
    (sweep / NAMES[3] / RESULT_FILE).write_text("{")
    assert SweepRuns(sweep / NAMES[0], "data").best_loss_reduction() == -math.inf


def test_best_of_a_sweep_reads_an_ended_run_once(sweep):
    end_run(sweep / NAMES[1], 0.75)
    runs = SweepRuns(sweep / NAMES[0], "data")
    assert runs.best_loss_reduction() == 0.25
    end_run(sweep / NAMES[1], 0.0)
    assert runs.best_loss_reduction() == 0.25


def test_best_of_a_sweep_reports_a_corrupt_history_and_ignores_it(sweep, caplog):
    end_run(sweep / NAMES[1], 0.75)
    (sweep / NAMES[1] / HISTORY_FILE).write_bytes(b"no history")
    assert SweepRuns(sweep / NAMES[0], "data").best_loss_reduction() == -math.inf
    assert "seed=1: could not read history.npz" in caplog.text


def test_run_outside_a_sweep_has_no_other_runs(tmp_path):
    end_run(tmp_path / "other", 0.25)
    assert SweepRuns(tmp_path / "run", "data").best_loss_reduction() == -math.inf
