"""A comparison of two sweeps finds every difference and nothing else."""

import math

import numpy as np
import pytest
import same_numbers

from bertmon.metrics import EvalResult
from bertmon.monitor.history import HISTORY_FILE, History, RunPlan
from bertmon.result import RESULT_FILE, DataSummary, RunResult, Status


@pytest.fixture
def write_sweep(tmp_path):
    """Write a sweep of two seeds; `losses` are the training losses of seed 1."""

    def write(name, losses=(1.5, 1.25), accuracy=0.5, seeds=(0, 1)):
        for seed in seeds:
            run_dir = tmp_path / name / f"seed={seed}"
            run_dir.mkdir(parents=True)
            result = RunResult(status=Status.finished, seed=seed, steps=2, total_steps=2, overrides={"lr": 1e-3})
            result.data = DataSummary("", 10, 10, (), 0.5)
            result.evaluations = [EvalResult(2, math.nan, accuracy if seed else 0.25)]
            (run_dir / RESULT_FILE).write_bytes(result.to_json())
            plan = RunPlan(np.ones(2), np.ones(2), 1.0, 0.1, True)
            history = History(plan, list(losses) if seed else [2.0, 1.0], [1.0, 3.0])
            (run_dir / HISTORY_FILE).write_bytes(history.to_bytes())
        return str(tmp_path / name)

    return write


def test_same_numbers_of_equal_sweeps_exits_with_0(write_sweep, capsys):
    assert same_numbers.main([write_sweep("a"), write_sweep("b")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "lr=0.001 seed=0: equal (2 steps, 1 evaluations)",
        "lr=0.001 seed=1: equal (2 steps, 1 evaluations)",
        "2 and 2 runs: equal",
    ]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"losses": (1.5, float(np.nextafter(np.float32(1.25), 2)))}, "losses[1]: 1.25 and 1.25000011"),
        ({"accuracy": 0.5000001}, "evaluations[0]: (2, nan, 0.5) and (2, nan, 0.5000001)"),
        ({"seeds": (0,)}, "missing after"),
    ],
)
def test_same_numbers_of_different_sweeps_names_the_first_difference_and_exits_with_1(
    write_sweep, capsys, change, difference
):
    assert same_numbers.main([write_sweep("a"), write_sweep("b", **change)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("equal (2 steps, 1 evaluations)")
    assert lines[1].startswith(f"lr=0.001 seed=1: {difference}")
    assert lines[2].endswith("runs: different")


def test_same_numbers_compares_evaluations_at_common_steps():
    seldom, often = (
        same_numbers.Numbers([1.0], [2.0], [(step, 1.0, 0.5) for step in steps]) for steps in ([4], [0, 4])
    )
    assert seldom.first_difference(often) == often.first_difference(seldom) == ""
    assert often.common_evaluations(seldom) == [(4, 1.0, 0.5)]


def test_same_numbers_of_empty_folders_exits_with_1(tmp_path):
    assert same_numbers.main([str(tmp_path), str(tmp_path)]) == 1


def test_same_numbers_runs_the_sweep_in_a_checkout(write_sweep, tmp_path, monkeypatch):
    sweep = write_sweep("a")
    checkout = tmp_path / "checkout"
    (checkout / "bertmon").mkdir(parents=True)
    started = []

    def run(command, cwd, check, stdout):
        started.append((command, cwd))
        target = command[-1].removeprefix("hydra.sweep.dir=")
        assert same_numbers.read_sweep(tmp_path / "a")
        __import__("shutil").copytree(sweep, target)

    monkeypatch.setattr(same_numbers.subprocess, "run", run)
    assert same_numbers.main([sweep, str(checkout), "device=cpu"]) == 0
    ((command, cwd),) = started
    assert cwd == checkout
    assert command[1:-1] == ["-m", "bertmon.run", "-m", "schedule.warmup_frac=0.1,0.7", "seed=0,1,2", "device=cpu"]
