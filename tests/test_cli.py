"""TensorBoard on the newest sweep."""

import os
import subprocess
import sys

from bertmon import board


def launch(folder, age):
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text("{}")
    os.utime(folder / "sweep.json", (1e9 - age, 1e9 - age))
    return folder


def test_the_newest_is_the_one_that_was_started_last_whatever_its_name(tmp_path):
    assert board.latest_sweep(tmp_path) is None
    assert board.latest_sweep(tmp_path / "nowhere") is None
    (tmp_path / "zzz").mkdir()
    newer = launch(tmp_path / "2026-11-23_07-17-49", age=10)
    launch(tmp_path / "study", age=20)
    assert board.latest_sweep(tmp_path) == newer


def test_it_becomes_tensorboard_on_this_machine_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = launch(tmp_path / "multirun/monday", age=0)
    started = []
    monkeypatch.setattr(os, "execv", lambda path, command: started.append(command))
    board.main([])
    board.main([str(folder), "--port", "7000"])
    common = ["--samples_per_plugin", "images=100", "--host", "localhost"]
    assert started[0][3:] == ["--logdir", "multirun/monday", *common]
    assert started[1][3:] == ["--logdir", str(folder), *common, "--port", "7000"]
    assert capsys.readouterr().out.startswith("TensorBoard on multirun/monday\n")


def test_without_a_launch_it_says_so(tmp_path):
    command = [sys.executable, "-m", "bertmon", "board"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "multirun holds no launch: give its folder, such as multirun/2026-11-23_07-17-49.\n",
    )
