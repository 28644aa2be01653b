"""SeedAveragingLauncher around a stub of a launcher."""

import pytest
from hydra.core.utils import JobReturn, JobStatus

from bertmon.launch.optuna_seeds import SeedAveragingLauncher


class Stub:
    """A launcher that returns values by overrides; an exception is a failed run."""

    def __init__(self, values):
        self.values = values
        self.launched = []

    def launch(self, job_overrides, initial_job_idx):
        self.launched.append((initial_job_idx, [tuple(each) for each in job_overrides]))
        for overrides in job_overrides:
            value = self.values[tuple(overrides)]
            status = JobStatus.FAILED if isinstance(value, Exception) else JobStatus.COMPLETED
            yield JobReturn(overrides=overrides, status=status, _return_value=value)


def test_launch_averages_seeds_and_runs_repeated_trials_once():
    stub = Stub({("a=1", "seed=0"): 0.5, ("a=1", "seed=7"): 0.7, ("a=2", "seed=0"): 0.2, ("a=2", "seed=7"): 0.4})
    launcher = SeedAveragingLauncher(stub, [0, 7])
    ended = launcher.launch([("a=1",), ("a=2",), ("a=1",)], initial_job_idx=3)
    assert [run.return_value for run in ended] == pytest.approx([0.6, 0.3, 0.6])
    assert stub.launched == [(6, list(stub.values))]
    assert launcher.failed == []


def test_launch_with_a_failed_run_returns_its_error():
    launcher = SeedAveragingLauncher(Stub({("a=1", "seed=0"): 0.5, ("a=1", "seed=7"): RuntimeError("fire")}), [0, 7])
    (ended,) = launcher.launch([("a=1",)], initial_job_idx=0)
    with pytest.raises(RuntimeError, match="fire"):
        _ = ended.return_value
    assert len(launcher.failed) == 1
