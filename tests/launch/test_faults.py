"""What a sweep survives: real processes, real faults. benchmarks/fault_injection.py does more of it, and counts."""

import json
import subprocess
import sys

import pytest
from conftest import interrupt_run, results
from fault_injection import FAILING_RUNS, RunContent

from bertmon.compare.results import read_sweep
from bertmon.training import checkpoint
from bertmon.training.run_training import run_training


def test_of_eight_runs_one_raises_one_exits_and_one_needs_a_petabyte(bertmon, files, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(FAILING_RUNS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sweep = tmp_path / "sweep"
    eight = "schedule.warmup_frac=0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8"
    done = bertmon(eight, "-m", "train.epochs=1", f"hydra.sweep.dir={sweep}", *files)
    assert done.returncode == 1
    expected = {"0.3": "the cat sat on the keyboard", "0.5": "can't allocate memory", "0.7": "enough"}
    for name, result in results(sweep).items():
        warmup_frac = name.partition("=")[2].partition("/")[0]
        if warmup_frac not in expected:
            assert result["status"] == "ok"
            continue
        why = expected[warmup_frac]
        assert result["status"] == "failed"
        assert why in result["error"]
        log = (sweep / name / "run.log").read_text()
        assert "Traceback" in log
        assert why in log
        later = f"warmup_frac={float(warmup_frac) + 0.1:.1f}/seed=0:"
        assert done.stdout.index(why) < done.stdout.index(later)  # at once, not at the end
        assert why in (sweep / "report.html").read_text().replace("&#39;", "'")
    assert "failed: the cat sat on the keyboard" in done.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, of one megabyte, and a function that gives mount options anew."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("a disk can be mounted by root alone")
    yield folder, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
    subprocess.run(["umount", folder], check=True)


LONG = ["schedule.warmup_frac=0.1,0.7", "-m", "train.epochs=20", "monitor.every=1", "train.checkpoint_every=20"]


def test_a_disk_without_room_ends_the_launch_and_with_room_it_goes_on(bertmon, files, tmp_path, small_disk):
    disk, remount = small_disk
    assert bertmon(*LONG, f"hydra.sweep.dir={tmp_path / 'whole'}", *files).returncode == 0

    done = bertmon(*LONG, f"hydra.sweep.dir={disk / 'sweep'}", *files)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    first = disk / "sweep/warmup_frac=0.1/seed=0"
    told = next(line for line in done.stderr.splitlines() if "go on:" in line)
    assert "cannot be written: No space left on device." in told
    assert f"{first / checkpoint.CHECKPOINT_FILE} stands." in told
    assert told.endswith(f"go on: python -m bertmon resume {disk / 'sweep'}")
    checkpoint.Checkpoint(first / checkpoint.CHECKPOINT_FILE)

    remount("size=64m")
    again = bertmon(*LONG, f"resume={disk / 'sweep'}", *files)
    assert again.returncode == 0, again.stderr
    for name in results(tmp_path / "whole"):
        assert RunContent.read(disk / "sweep" / name) == RunContent.read(tmp_path / "whole" / name)


def test_a_folder_that_cannot_be_written_is_one_clear_message(bertmon, files, small_disk):
    disk, remount = small_disk
    remount("ro")
    done = bertmon(*LONG, f"hydra.sweep.dir={disk / 'sweep'}", *files)
    assert done.returncode == 1
    assert done.stderr == f"{disk / 'sweep'} cannot be made: Read-only file system.\n"


def test_a_damaged_event_file_is_set_aside(settings, tmp_path, monkeypatch, caplog):
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    settings.train.checkpoint_every = 5
    run_training(settings, tmp_path / "whole", name="run")
    interrupt_run(settings, tmp_path / "broken", monkeypatch, at=6)
    (file,) = (tmp_path / "broken").glob("events.out.tfevents.*")
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    file.write_bytes(damaged)
    (tmp_path / "broken/events.out.tfevents.1.foreign").write_bytes(b"of somebody else")
    settings.resume = str(tmp_path)
    run_training(settings, tmp_path / "broken", name="run")
    assert f"{file} is damaged, and is now damaged." in caplog.text
    assert (tmp_path / "broken" / f"damaged.{file.name.replace('tfevents', 'events')}").read_bytes() == damaged
    there, expected = RunContent.read(tmp_path / "broken"), RunContent.read(tmp_path / "whole")
    assert (there.history, there.result) == (expected.history, expected.result)
    assert there.scalars["loss/train"] == [point for point in expected.scalars["loss/train"] if point[0] > 4]


def test_a_run_that_was_killed_is_not_shown_as_running(tmp_path):
    code = f"import os, pathlib\nwith recorded(pathlib.Path({str(tmp_path)!r})): os.kill(os.getpid(), 9)"
    code = f"from bertmon.result import recorded\n{code}"
    subprocess.run([sys.executable, "-c", code], check=False)
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "running"
    (told,) = read_sweep([tmp_path]).runs
    assert (told.status, told.result["error"]) == ("interrupted", "killed: its process has ended without a word")


def test_processes_that_make_the_same_cache_at_once_all_have_it(tmp_path):
    code = (
        "import pathlib, sys, time\n"
        "from bertmon.storage import cached\n"
        "def make():\n"
        "    time.sleep(0.5)\n"
        "    return bytes(10**7)\n"
        f"print(len(cached(pathlib.Path({str(tmp_path)!r}), 'corpus', make)), cached.__name__)\n"
    )
    makers = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(4)
    ]
    assert [maker.communicate()[0] for maker in makers] == 4 * ["10000000 cached\n"]
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
