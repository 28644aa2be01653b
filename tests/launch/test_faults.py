"""Real faults in the real processes of a sweep. benchmarks/fault_injection.py injects more and counts the outcomes."""

import json
import subprocess
import sys

import pytest
from conftest import results
from fault_injection import FAILING_RUNS, RunContent

from bertmon.compare.results import read_sweep
from bertmon.training import checkpoint


@pytest.mark.slow
def test_sweep_survives_runs_that_raise_exit_or_run_out_of_memory(bertmon, demo_files, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(FAILING_RUNS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sweep = tmp_path / "sweep"
    warmups = "schedule.warmup_frac=0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8"
    process = bertmon(warmups, "-m", "train.epochs=1", "monitor.figures=false", f"hydra.sweep.dir={sweep}", *demo_files)
    assert process.returncode == 1
    expected = {"0.3": "the cat sat on the keyboard", "0.5": "can't allocate memory", "0.7": "enough"}
    for name, result in results(sweep).items():
        warmup_frac = name.partition("=")[2].partition("/")[0]
        if warmup_frac not in expected:
            assert result["status"] == "finished"
            continue
        reason = expected[warmup_frac]
        assert result["status"] == "failed"
        assert reason in result["error"]
        log = (sweep / name / "run.log").read_text()
        assert "Traceback" in log
        assert reason in log
        later = f"warmup_frac={float(warmup_frac) + 0.1:.1f}/seed=0:"
        assert process.stdout.index(reason) < process.stdout.index(later)  # at once, not at the end
        assert reason in (sweep / "report.html").read_text().replace("&#39;", "'")
    assert "failed: the cat sat on the keyboard" in process.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A folder on its own disk of one megabyte, and a function that changes its mount options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("only root can mount a disk")
    yield folder, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
    subprocess.run(["umount", folder], check=True)


LONG = ["schedule.warmup_frac=0.1,0.7", "-m", "train.epochs=20", "monitor.every=1", "train.checkpoint_every=20"]


@pytest.mark.slow
def test_full_disk_ends_the_launch_and_it_resumes_once_there_is_space(bertmon, demo_files, tmp_path, small_disk):
    disk, remount = small_disk
    assert bertmon(*LONG, f"hydra.sweep.dir={tmp_path / 'whole'}", *demo_files).returncode == 0

    process = bertmon(*LONG, f"hydra.sweep.dir={disk / 'sweep'}", *demo_files)
    assert process.returncode == 1
    assert "Traceback" not in process.stdout + process.stderr
    first = disk / "sweep/warmup_frac=0.1/seed=0"
    (line,) = (line for line in process.stderr.splitlines() if "Once that is fixed" in line)
    assert line.startswith("could not write ")
    assert "No space left on device." in line
    assert f"The last checkpoint is {first / checkpoint.CHECKPOINT_FILE}." in line
    assert line.endswith(f" -m bertmon resume {disk / 'sweep'}")
    checkpoint.Checkpoint(first / checkpoint.CHECKPOINT_FILE)

    remount("size=64m")
    again = bertmon(*LONG, f"resume={disk / 'sweep'}", *demo_files)
    assert again.returncode == 0, again.stderr
    for name in results(tmp_path / "whole"):
        assert RunContent.read(disk / "sweep" / name) == RunContent.read(tmp_path / "whole" / name)


def test_folder_that_cannot_be_created_is_one_error(bertmon, demo_files, small_disk):
    disk, remount = small_disk
    remount("ro")
    process = bertmon(*LONG, f"hydra.sweep.dir={disk / 'sweep'}", *demo_files)
    assert process.returncode == 1
    assert process.stderr == f"could not create {disk / 'sweep'}: Read-only file system.\n"


def test_killed_run_is_reported_as_interrupted(tmp_path):
    code = f"import os, pathlib\nwith recording(pathlib.Path({str(tmp_path)!r})): os.kill(os.getpid(), 9)"
    code = f"from bertmon.result import recording\n{code}"
    subprocess.run([sys.executable, "-c", code], check=False)
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "running"
    (run,) = read_sweep([tmp_path]).runs
    assert run.status == "interrupted"
