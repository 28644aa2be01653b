"""Watching two CPU processes, started by torchrun with gloo, gives the numbers of one process with the same batches."""

import os
import subprocess
import sys

import distributed_trainings
import numpy as np
import pytest
from conftest import TIMEOUT
from watched_training import scalar_steps

from bertmon.monitor.history import HISTORY_FILE, History

pytest.importorskip("accelerate")
pytest.importorskip("lightning")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Lightning's


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder of all trainings on two processes, started once since that takes most of the time."""
    folder = tmp_path_factory.mktemp("two")
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    process = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *(distributed_trainings.__file__, str(folder)),
        ],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return folder


@pytest.mark.parametrize("kind", ["trainer", "plain", "accelerate", "lightning"])
def test_two_processes_measure_the_gradients_of_one(two_processes, tmp_path, kind):
    distributed_trainings.KINDS[kind](tmp_path, 1)
    one = History.load(tmp_path / "watched" / HISTORY_FILE)
    two = History.load(two_processes / kind / "watched" / HISTORY_FILE)
    assert len(two.losses) == 12
    assert two.plan.lr == pytest.approx(one.plan.lr)
    assert two.grad_norms == pytest.approx(one.grad_norms, rel=1e-3)
    for first, second in zip(two.snapshots, one.snapshots, strict=True):
        assert first["update_ratio"] == pytest.approx(second["update_ratio"], rel=0.1, nan_ok=True)
        large = second["grad_mean"] > 1e-6
        assert first["grad_mean"][large] == pytest.approx(second["grad_mean"][large], rel=1e-2)
    # the callbacks record the first process's losses, Watch the mean over processes
    assert two.losses == pytest.approx(one.losses, abs=1e-4 if kind in ("plain", "accelerate") else 0.1)
    assert scalar_steps(two_processes / kind / "watched", "depth_ratio") == [0, 2, 4, 6, 8, 10]
    assert len([*(two_processes / kind / "watched").glob("events*")]) == 1
    assert np.isfinite(two.snapshots[0].logit_std)


def test_doomed_training_on_two_processes_stops_in_both(two_processes):
    history = History.load(two_processes / "doomed_trainer" / "watched" / HISTORY_FILE)
    assert len(history.losses) < 12
