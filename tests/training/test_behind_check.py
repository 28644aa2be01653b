"""A run that learns, but cannot catch up with its sweep, ends early; who it is compared with."""

import numpy as np
from conftest import LEARNS, leave_run

from bertmon.config import OnBehind
from bertmon.monitor.diagnosis import Diagnosis, Verdict
from bertmon.monitor.history import HISTORY_FILE, History, RunPlan
from bertmon.result import RunResult, Status
from bertmon.training.behind_check import SweepComparison
from bertmon.training.run_training import run_training

HEALTHY = Diagnosis(Verdict.healthy, 10)


def learning(losses, total=100):
    """A run whose loss has come down to these values, of a plan with a constant rate."""
    plan = RunPlan(np.full(total, 1e-4), np.full(total, 1e-4), 1.0, 0.0, True)
    return History(plan, list(losses), [1.0] * len(losses))


def leave(folder, history, **changes):
    leave_run(folder, learns=True, measured=False, **changes)
    (folder / HISTORY_FILE).write_bytes(history.to_bytes())


def test_sweep_comparison_finds_a_run_behind_one_that_has_ended(tmp_path):
    slow = learning(np.linspace(0.95, 0.9, 60))
    comparison = SweepComparison(tmp_path, tmp_path / "b/seed=0", "f")
    assert comparison.find_behind(slow, HEALTHY) is None  # nothing to compare with
    leave(tmp_path / "a/seed=0", learning(np.linspace(1.0, 0.1, 100)))
    assert "the sweep's best run" in comparison.find_behind(slow, HEALTHY).text
    assert comparison.find_behind(slow, Diagnosis(Verdict.undecided, 0)) is None  # a plateau is never judged
    assert comparison.find_behind(learning(np.linspace(1.0, 0.3, 60)), HEALTHY) is None


def test_sweep_comparison_ignores_other_data_unfinished_and_corrupt_runs(tmp_path):
    fast = learning(np.linspace(1.0, 0.1, 100))
    data = {"fingerprint": "other", "train_texts": 1, "test_texts": 4, "label_names": ["a", "b"], "majority_share": 0.5}
    leave(tmp_path / "a/seed=0", fast, data=data)
    leave(tmp_path / "b/seed=0", fast, status="interrupted")
    leave(tmp_path / "c/seed=0", fast)
    (tmp_path / "c/seed=0" / HISTORY_FILE).write_bytes(LEARNS[:100])
    leave(tmp_path / "me/seed=0", fast)
    comparison = SweepComparison(tmp_path, tmp_path / "me/seed=0", "f")
    assert comparison.find_behind(learning(np.linspace(0.95, 0.9, 60)), HEALTHY) is None


def test_run_that_is_behind_is_stopped(settings, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    settings.monitor.every, settings.train.epochs = 2, 4
    run_dir = tmp_path / "sweep" / "b" / "seed=0"
    run_dir.mkdir(parents=True)
    monkeypatch.setattr(
        "bertmon.training.behind_check.find_behind", lambda history, *_: Behind() if len(history.losses) > 6 else None
    )
    result = run_training(settings, run_dir, name="b/seed=0")
    assert result.status is Status.finished  # on_behind=ignore is the default
    settings.monitor.on_behind = OnBehind.stop
    other = tmp_path / "sweep" / "c" / "seed=0"
    other.mkdir(parents=True)
    result = run_training(settings, other, name="c/seed=0")
    assert (result.status, result.steps, result.total_steps) == (Status.stopped, 7, 24)
    assert "c/seed=0: step 6: behind - far away; stopping" in caplog.text
    assert RunResult.read(other).saved_steps == 17


class Behind:
    text = "far away"
