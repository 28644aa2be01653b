"""Watching on two CPU processes, started by torchrun with gloo: the numbers of one process with the same batches."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from watched_training import scalar_steps

from bertmon.monitor.history import HISTORY_FILE, History

pytest.importorskip("accelerate")
pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("distributed_trainings.py")
TESTS = PROGRAM.parents[1]


def run(kind, folder, world):
    folder.mkdir()
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {
        "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    done = subprocess.run(
        [sys.executable, *start, str(PROGRAM), kind, str(folder), str(world)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return History.load(folder / "watched" / HISTORY_FILE)


@pytest.mark.parametrize("kind", ["trainer", "plain", "accelerate"])
def test_two_processes_have_the_gradients_of_one(tmp_path, kind):
    one, two = run(kind, tmp_path / "one", 1), run(kind, tmp_path / "two", 2)
    assert len(two.losses) == 12
    assert two.plan.lr == pytest.approx(one.plan.lr)
    assert two.grad_norms == pytest.approx(one.grad_norms, rel=1e-3)
    for first, second in zip(two.snapshots, one.snapshots, strict=True):
        assert first["update_ratio"] == pytest.approx(second["update_ratio"], rel=0.1, nan_ok=True)
        large = second["grad_mean"] > 1e-6
        assert first["grad_mean"][large] == pytest.approx(second["grad_mean"][large], rel=1e-2)
    # the Trainer's callback has the first process's losses, Watch the mean over processes
    assert two.losses == pytest.approx(one.losses, abs=0.1 if kind == "trainer" else 1e-4)
    assert scalar_steps(tmp_path / "two" / "watched", "depth_ratio") == [0, 2, 4, 6, 8, 10]
    assert len([*(tmp_path / "two" / "watched").glob("events*")]) == 1
    assert np.isfinite(two.snapshots[0].logit_std)


def test_doomed_training_on_two_processes_stops_in_both(tmp_path):
    history = run("doomed_trainer", tmp_path / "doomed", 2)
    assert len(history.losses) < 12
