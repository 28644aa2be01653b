"""One run on two processes, as torchrun starts them, beside the same run on one."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import results
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bertmon.monitor.history import HISTORY_FILE, STATISTICS, History
from bertmon.training import checkpoint


@pytest.fixture
def bertmon(tmp_path):
    """Starts bertmon in tmp_path, on so many processes; returns the process."""
    environment = os.environ | {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }

    def start(processes, *arguments):
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
        command = [sys.executable, "-m", *(torchrun if processes > 1 else []), "bertmon.run", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)

    return start


def ended(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


# 40 texts in batches of 13: the last batch has one text, so that one of two processes has none of its own
SETUP = ["train.batch_size=13", "train.epochs=3", "train.checkpoint_every=4", "monitor.every=1", "train.log_every=1"]


def assert_close(there, expected):
    """Equal but for the order in which numbers were added up."""
    np.testing.assert_allclose(there.losses, expected.losses, rtol=1e-4)
    np.testing.assert_allclose(there.grad_norms, expected.grad_norms, rtol=1e-3)
    assert [shot.step for shot in there.snapshots] == [shot.step for shot in expected.snapshots]
    for shot, other in zip(there.snapshots, expected.snapshots, strict=True):
        assert shot.layers == other.layers
        assert shot.logit_std == pytest.approx(other.logit_std, rel=1e-2, nan_ok=True)
        for statistic in STATISTICS:
            tolerance = {"rtol": 1e-2, "atol": 1e-6 * np.nanmax(other[statistic])}
            np.testing.assert_allclose(shot[statistic], other[statistic], **tolerance)


def test_two_processes_come_to_what_one_comes_to(bertmon, files, tmp_path):
    sweep = ["schedule.warmup_frac=0.1,0.7", "-m", *files, *SETUP]
    ended(bertmon(1, *sweep, "hydra.sweep.dir=one"))
    output = ended(bertmon(2, *sweep, "hydra.sweep.dir=two"))
    assert output.count("step 4 of 12: loss/test") == 2  # one process speaks, in each of two runs
    assert output.count("Report: ") == 1
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert list(one) == list(two)
    for name in one:
        assert (one[name]["processes"], two[name]["processes"]) == (1, 2)
        histories = [History.load(tmp_path / sweep / name / HISTORY_FILE) for sweep in ("two", "one")]
        assert_close(*histories)
        for evaluation, other in zip(two[name]["evaluations"], one[name]["evaluations"], strict=True):
            assert evaluation["loss"] == pytest.approx(other["loss"], rel=1e-4)
            assert evaluation["accuracy"] == other["accuracy"]
        assert len(list((tmp_path / "two" / name).glob("events.*"))) == 1
        points = EventAccumulator(str(tmp_path / "two" / name)).Reload().Scalars("loss/train")
        assert [point.step for point in points] == list(range(12))
        assert len((tmp_path / "two" / name / "run.log").read_text().split("goes on")) == 1


def test_two_processes_go_on_where_a_signal_ended_them(bertmon, files, tmp_path):
    long = [*files, *SETUP[:1], "train.epochs=40", "train.log_every=1"]
    ended(bertmon(2, *long, "hydra.run.dir=whole"))
    broken = bertmon(2, *long, "hydra.run.dir=broken")
    log = tmp_path / "broken" / "run.log"
    deadline = time.monotonic() + 120
    while not (log.exists() and "step 8 of" in log.read_text()):
        assert broken.poll() is None, broken.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    broken.send_signal(signal.SIGTERM)  # torchrun hands it on
    broken.communicate(timeout=60)
    assert json.loads((tmp_path / "broken/result.json").read_text())["status"] == "interrupted"
    assert (tmp_path / "broken" / checkpoint.CHECKPOINT_FILE).exists()
    ended(bertmon(2, *long, "hydra.run.dir=broken", "resume=broken"))
    assert "goes on at step" in log.read_text()
    assert (tmp_path / "broken" / HISTORY_FILE).read_bytes() == (tmp_path / "whole" / HISTORY_FILE).read_bytes()


def test_a_mistake_is_told_once_and_ends_both(bertmon, files, tmp_path):
    process = bertmon(2, *files, "data.train=nowhere.csv")
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert output.count("data.train=nowhere.csv: there is no such file") == 1
    assert not (tmp_path / "multirun").exists()
