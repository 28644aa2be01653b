"""Leaks of a sweep with many runs in one process: memory, open files, threads and processes after each run.

    python benchmarks/many_runs.py [runs] [OVERRIDE...]

Tiny runs, each with figures, checkpoints and a report that is refreshed repeatedly. A leak occurs in every run, so the
slope is that of a line through the second half of the runs.
"""

import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.experimental.callback import Callback

RUN = [
    "-m",
    "model=bert_small",
    "model.num_hidden_layers=2",
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "data.train_per_package=40",
    "data.test_per_package=10",
    "train.epochs=1",
    "train.checkpoint_every=5",
    "monitor.every=5",
]
COLUMNS = ("resident MB", "on the device MB", "open files", "threads", "processes")


class Meter(Callback):
    """Hydra callback that writes the resources of this process after each run, as a line of CSV."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def on_job_end(self, config: Any, job_return: Any, **rest: Any) -> None:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        children = [pid for each in Path("/proc/self/task").glob("*/children") for pid in each.read_text().split()]
        resident = int(status["VmRSS"].split()[0]) / 1024
        device = torch.cuda.memory_allocated() / 2**20 if torch.cuda.is_available() else 0
        with self._path.open("a", newline="") as file:
            files = len(os.listdir("/proc/self/fd"))
            csv.writer(file).writerow([resident, device, files, int(status["Threads"]), len(children), *children])


def main(runs: int, overrides: Sequence[str]) -> None:
    """See the module's docstring."""
    with tempfile.TemporaryDirectory() as folder:
        measured = Path(folder) / "measured.csv"
        meter = ["+hydra.callbacks.meter._target_=many_runs.Meter", f"+hydra.callbacks.meter.path={measured}"]
        command = [sys.executable, "-m", "bertmon.run", f"seed=range({runs})", *RUN, *meter, *overrides]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        assert process.wait() == 0
        rows = list(csv.reader(measured.open()))
    resources = np.array([row[: len(COLUMNS)] for row in rows], dtype=float)
    orphans = {pid for row in rows for pid in row[len(COLUMNS) :] if Path("/proc", pid).exists()}
    assert len(resources) == runs
    second_half = np.arange(runs // 2, runs)
    print(f"| after run | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for run in sorted({1, *range(max(runs // 5, 1), runs, max(runs // 5, 1)), runs}):
        print(f"| {run} | {' | '.join(f'{value:.0f}' for value in resources[run - 1])} |")
    slopes = [np.polyfit(second_half, column, 1)[0] for column in resources[second_half].T]
    print(f"| per further run | {' | '.join(f'{slope:+.3f}' for slope in slopes)} |")
    print(f"\nProcesses that outlived the sweep: {len(orphans)}")


if __name__ == "__main__":
    words = sys.argv[1:]
    main(int(next((word for word in words if word.isdigit()), "200")), [word for word in words if "=" in word])
