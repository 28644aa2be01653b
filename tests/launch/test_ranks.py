"""One run on two processes started by torchrun, compared with the same run on one."""

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import completed, interrupt, results, wait_until
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bertmon.monitor.history import HISTORY_FILE, STATISTICS, History
from bertmon.training import checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture
def bertmon(tmp_path, start_process, start_warm):
    """Start bertmon in tmp_path on a number of processes. Returns the process, or torchrun's for several."""
    cache = str(tmp_path / "cache")

    def start(processes, *arguments):
        if processes == 1:
            return start_warm("bertmon.run", *arguments, cache=cache)
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
        command = [sys.executable, "-m", *torchrun, "bertmon.run", *arguments]
        return start_process(command, XDG_CACHE_HOME=cache, OMP_NUM_THREADS="1")

    return start


@pytest.fixture
def bertmon_with_failing_rank(tmp_path, start_process):
    """Start bertmon in tmp_path on two processes, the second of which fails at its third step."""
    program = str(Path(__file__).parents[1] / "failing_rank.py")

    def start(*arguments):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", program]
        return start_process([*command, *arguments], XDG_CACHE_HOME=str(tmp_path / "cache"), OMP_NUM_THREADS="1")

    return start


def output_of(process):
    outcome = completed(process)
    assert outcome.returncode == 0, outcome
    return outcome.stdout + outcome.stderr


# 40 texts in batches of 13: the last batch has one text, none for the second of two processes
SETUP = ["train.batch_size=13", "train.epochs=3", "train.checkpoint_every=4", "monitor.every=1", "train.log_every=1"]


def assert_close(actual, expected):
    """Assert equality up to the order of additions."""
    np.testing.assert_allclose(actual.losses, expected.losses, rtol=1e-4)
    np.testing.assert_allclose(actual.grad_norms, expected.grad_norms, rtol=1e-3)
    assert [shot.step for shot in actual.snapshots] == [shot.step for shot in expected.snapshots]
    for shot, other in zip(actual.snapshots, expected.snapshots, strict=True):
        assert shot.layers == other.layers
        assert shot.logit_std == pytest.approx(other.logit_std, rel=1e-2, nan_ok=True)
        for statistic in STATISTICS:
            tolerance = {"rtol": 1e-2, "atol": 1e-6 * np.nanmax(other[statistic])}
            np.testing.assert_allclose(shot[statistic], other[statistic], **tolerance)


def test_two_processes_give_the_numbers_of_one(bertmon, demo_files, tmp_path):
    sweep = ["schedule.warmup_frac=0.1,0.7", "-m", *demo_files, *SETUP]
    output_of(bertmon(1, *sweep, "hydra.sweep.dir=one"))
    output = output_of(bertmon(2, *sweep, "hydra.sweep.dir=two"))
    assert output.count("step 4 of 12: loss/test") == 2  # one process prints, in each of two runs
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
        assert len((tmp_path / "two" / name / "run.log").read_text().split("resuming")) == 1


def test_two_processes_resume_after_a_signal(bertmon, demo_files, tmp_path):
    long = [*demo_files, *SETUP[:1], "train.epochs=40", "train.log_every=1", "monitor.figures=false"]
    output_of(bertmon(2, *long, "hydra.run.dir=whole"))
    broken = bertmon(2, *long, "hydra.run.dir=broken")
    log = tmp_path / "broken" / "run.log"
    wait_until(lambda: log.exists() and "step 8 of" in log.read_text(), broken)
    interrupt(broken, signal.SIGTERM)  # torchrun forwards it
    assert json.loads((tmp_path / "broken/result.json").read_text())["status"] == "interrupted"
    assert (tmp_path / "broken" / checkpoint.CHECKPOINT_FILE).exists()
    output_of(bertmon(2, *long, "hydra.run.dir=broken", "resume=broken"))
    assert "resuming at step" in log.read_text()
    assert (tmp_path / "broken" / HISTORY_FILE).read_bytes() == (tmp_path / "whole" / HISTORY_FILE).read_bytes()


def test_invalid_input_is_printed_once_and_ends_both_processes(bertmon, demo_files, tmp_path):
    outcome = completed(bertmon(2, *demo_files, "data.train=nowhere.csv"))
    assert outcome.returncode != 0
    assert (outcome.stdout + outcome.stderr).count("data.train: expected an existing file") == 1
    assert not (tmp_path / "multirun").exists()


def test_failure_of_the_second_process_ends_both(bertmon_with_failing_rank, demo_files, tmp_path):
    outcome = completed(bertmon_with_failing_rank(*demo_files, *SETUP, "hydra.run.dir=failed"))
    assert outcome.returncode != 0
    assert "the second GPU fell off the bus" in outcome.stderr
    assert json.loads((tmp_path / "failed" / "result.json").read_text())["status"] == "failed"
