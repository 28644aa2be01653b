"""The table of a sweep that was run in two ways, from the files of its runs."""

import json

import stopped_sweep

from bertmon.metrics import EvalResult
from bertmon.result import RESULT_FILE, DataSummary, RunResult, Status


def write_run(folder, lr, status, steps, accuracy):
    """Write the result of a run as the command line does."""
    run_dir = folder / f"optimizer.lr={lr}" / "seed=0"
    run_dir.mkdir(parents=True)
    overrides = {"optimizer.lr": lr, "optimizer.bias_correction": True, "schedule.warmup_frac": 0.06}
    result = RunResult(status=status, seed=0, steps=steps, total_steps=100, overrides=overrides)
    result.data, result.evaluations = DataSummary("", 1, 300, (), 0.25), [EvalResult(steps, 1.0, accuracy)]
    (run_dir / RESULT_FILE).write_bytes(result.to_json())


def test_table_has_the_cost_and_the_best_run_of_each_way(tmp_path):
    for way, cost, second in (("end", 90, Status.finished), ("doomed", 60, Status.stopped)):
        folder = tmp_path / f"sweep_{way}"
        write_run(folder, 1e-4, Status.finished, 100, 0.7)
        write_run(folder, 2e-3, second, 100 if way == "end" else 30, 0.25)
        (folder / "cost.json").write_text(json.dumps({"clock": cost, "cpu": cost / 2}))
    *_, end, doomed = stopped_sweep.table(tmp_path, ["end", "doomed"])
    best = "70.0 % (optimizer.lr=1e-4, optimizer.bias_correction=true, schedule.warmup_frac=0.06)"
    assert end == f"| all runs to the end | 90 | 45 | 200 | 0 of 2 | {best} |"
    assert doomed == f"| `monitor.on_doomed=stop` | 60 | 30 | 130 | 1 of 2 | {best} |"


def test_way_that_was_measured_is_not_run_again(tmp_path, monkeypatch):
    (tmp_path / "sweep_end").mkdir()
    (tmp_path / "sweep_end" / "cost.json").write_text("{}")
    monkeypatch.setattr(stopped_sweep.subprocess, "run", None)
    stopped_sweep.run(tmp_path, "end")


def test_sweep_has_at_least_24_runs():
    counts = [len(override.split("=", 1)[1].split(",")) for override in stopped_sweep.SWEEP]
    runs = 1
    for count in counts:
        runs *= count
    assert runs >= 24
