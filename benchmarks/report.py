"""What a report costs: seconds and memory against the number of runs.

    python benchmarks/report.py [most runs]

Each run is one of the labelled runs of benchmarks/verdicts.py, with its own history, beside a result.json as a run
leaves it. Every size is measured in a process of its own, from its start to its exit, as `bertmon compare` is.
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import verdicts

from bertmon.config import VerdictThresholds
from bertmon.monitor.diagnosis import diagnose
from bertmon.monitor.history import HISTORY_FILE

COMPARE = """
import re, sys
from bertmon.compare.__main__ import main
main(sys.argv[1:])
print(re.search("VmHWM.*", open("/proc/self/status").read())[0])  # rusage would count this process, too
"""


def leave(runs: list[verdicts.Run], count: int, folder: Path) -> None:
    """Runs as a sweep over settings and seeds leaves them."""
    stored = [run.history.to_bytes() for run in runs]
    said = [diagnose(run.history, VerdictThresholds()) for run in runs]
    for number in range(count):
        at = number % len(runs)
        run, diagnosis = runs[at], said[at]
        steps, seed = len(run.history.losses), number // len(runs)
        evaluation = {"step": steps, "loss": run.history.losses[-1], "accuracy": run.accuracy}
        result = {
            "status": "ok",
            "seed": seed,
            "differs": {"setting": at},
            "settings": {"setting": at, "overrides": run.overrides},
            "data": {"fingerprint": "", "test_texts": run.test_texts, "majority": run.majority},
            "steps": steps,
            "steps_planned": steps,
            "metrics": {"final": evaluation, "best": evaluation},
            "evaluations": [evaluation],
            "verdict": diagnosis.verdict,
            "verdict_step": diagnosis.since_step,
            "cause": diagnosis.cause,
            "advice": diagnosis.advice,
            "seconds": 30.0,
        }
        target = folder / f"setting={at}/seed={seed}"
        target.mkdir(parents=True)
        (target / "result.json").write_text(json.dumps(result))
        (target / HISTORY_FILE).write_bytes(stored[at])


def main(most: int) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    print(f"{platform.machine()}, Python {platform.python_version()}, {commit.stdout.strip()}\n")
    print("| runs | seconds | peak memory, MB | report.html, MB |\n|---|---|---|---|")
    known = verdicts.unpack()
    for count in (2, 10, 100, 1000, 10000):
        if count > most:
            break
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            leave(known, count, folder)
            started = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", COMPARE, name], check=True, stdout=subprocess.PIPE, text=True)
            seconds = time.perf_counter() - started
            peak = int(done.stdout.splitlines()[-1].split()[1]) / 1000
            size = (folder / "report.html").stat().st_size / 1e6
        print(f"| {count} | {seconds:.1f} | {peak:.0f} | {size:.1f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
