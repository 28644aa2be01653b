"""Whether a sweep of many runs in one process grows: memory, open files, threads and processes after each run.

    python benchmarks/load.py [runs]

Tiny runs, each with figures, checkpoints and a report that is written again and again. What stays behind a run, stays
behind each of them: the slope is that of a line through the second half of the runs.
"""

import csv
import os
import subprocess
import sys
import tempfile
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
    """Notes what this process holds after each run."""

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


def main(runs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        noted = Path(folder) / "noted.csv"
        meter = ["+hydra.callbacks.load._target_=load.Meter", f"+hydra.callbacks.load.path={noted}"]
        command = [sys.executable, "-m", "bertmon.run", f"seed=range({runs})", *RUN, *meter]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        assert process.wait() == 0
        rows = list(csv.reader(noted.open()))
    held = np.array([row[: len(COLUMNS)] for row in rows], dtype=float)
    left = {pid for row in rows for pid in row[len(COLUMNS) :] if Path("/proc", pid).exists()}
    assert len(held) == runs
    second = np.arange(runs // 2, runs)
    print(f"| after run | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for run in sorted({1, *range(runs // 5, runs, max(runs // 5, 1)), runs}):
        print(f"| {run} | {' | '.join(f'{value:.0f}' for value in held[run - 1])} |")
    slopes = [np.polyfit(second, column, 1)[0] for column in held[second].T]
    print(f"| a run more | {' | '.join(f'{slope:+.3f}' for slope in slopes)} |")
    print(f"\nProcesses left behind: {len(left)}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
