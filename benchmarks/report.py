"""The cost of a report: seconds and memory by number of runs.

    python benchmarks/report.py [MAX_RUNS]

Each run is one of the labeled runs of benchmarks/labeled_runs.py with its own history and a result.json like that of a
real run. Every size is measured in a separate process, from start to exit, as `bertmon compare` runs.
"""

import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from labeled_runs import LabeledRun, unpack

from bertmon.config import VerdictThresholds
from bertmon.metrics import EvalResult
from bertmon.monitor.diagnosis import diagnose
from bertmon.monitor.history import HISTORY_FILE
from bertmon.result import RESULT_FILE, DataSummary, RunResult, Status

COMPARE = """
import re, sys
from bertmon.compare.__main__ import main
main(sys.argv[1:])
print(re.search("VmHWM.*", open("/proc/self/status").read())[0])  # rusage would count this process, too
"""


def write_runs(runs: list[LabeledRun], count: int, folder: Path) -> None:
    """Write run folders like those of a sweep over settings and seeds."""
    histories = [run.history.to_bytes() for run in runs]
    results = [as_result(run) for run in runs]
    for number in range(count):
        index, seed = number % len(runs), number // len(runs)
        result = replace(results[index], seed=seed, overrides={"setting": index})
        run_dir = folder / f"setting={index}/seed={seed}"
        run_dir.mkdir(parents=True)
        (run_dir / RESULT_FILE).write_bytes(result.to_json())
        (run_dir / HISTORY_FILE).write_bytes(histories[index])


def as_result(run: LabeledRun) -> RunResult:
    """The result of a labeled run."""
    steps = len(run.history.losses)
    return RunResult(
        status=Status.finished,
        seconds=30.0,
        config={"setting": run.setting, "overrides": run.overrides},
        data=DataSummary("", 3600, run.test_texts, (), run.majority_share),
        steps=steps,
        total_steps=steps,
        evaluations=[EvalResult(steps, run.history.losses[-1], run.accuracy)],
        diagnosis=diagnose(run.history, VerdictThresholds()),
    )


def main(max_runs: int) -> None:
    """See the module's docstring."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    print(f"{platform.machine()}, Python {platform.python_version()}, {commit.stdout.strip()}\n")
    print("| runs | seconds | peak memory, MB | report.html, MB |\n|---|---|---|---|")
    labeled = unpack()
    for count in (2, 10, 100, 1000, 10000):
        if count > max_runs:
            break
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_runs(labeled, count, folder)
            started = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", COMPARE, name], check=True, stdout=subprocess.PIPE, text=True)
            seconds = time.perf_counter() - started
            peak = int(done.stdout.splitlines()[-1].split()[1]) / 1000
            size = (folder / "report.html").stat().st_size / 1e6
        print(f"| {count} | {seconds:.1f} | {peak:.0f} | {size:.1f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
