"""A real sweep, run to the end and with doomed runs stopped: wall time, CPU time, steps, and the best run that is left.

    python benchmarks/stopped_sweep.py FOLDER [end | doomed | behind ...]

Fine-tunes a pretrained MiniLM on real 20 newsgroups: 24 runs over learning rates, warm-ups and bias correction, one
after another on one thread, from the command line. FOLDER is that of pretrained_grid.py, which writes the texts. A way
that was measured before is not run again.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from environment import describe

from bertmon.notation import format_percent, format_value
from bertmon.result import RESULT_FILE, RunResult

SWEEP = [
    "data=files",
    "data.train=texts/4_800.csv",
    "data.test=texts/4_test.csv",
    "data.max_length=16",
    "model=pretrained",
    "model.name=minilm",
    "optimizer.lr=3e-5,1e-4,3e-4,6e-4,1e-3,2e-3",
    "optimizer.bias_correction=true,false",
    "schedule.warmup_frac=0.06,0.3",
    "train.batch_size=8",
    "train.epochs=1",
    "train.eval_every=1000",  # at the end only
    "monitor.every=10",
    "monitor.figures=false",
    "device=cpu",
]

WAYS = {
    "end": ("all runs to the end", []),
    "doomed": ("`monitor.on_doomed=stop`", ["monitor.on_doomed=stop"]),
    "behind": ("`monitor.on_doomed=stop monitor.on_behind=stop`", ["monitor.on_doomed=stop", "monitor.on_behind=stop"]),
}
"""Ways of stopping runs, with their titles in the table and their overrides."""


def command(way: str, folder: str) -> list[str]:
    """The command line of the sweep, as a user would type it."""
    return [sys.executable, "-m", "bertmon.run", "-m", f"hydra.sweep.dir={folder}", *SWEEP, *WAYS[way][1]]


def run(folder: Path, way: str) -> None:
    """Run the sweep one way and write its cost to cost.json, unless that file exists."""
    sweep = folder / f"sweep_{way}"
    if (sweep / "cost.json").exists():
        return
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command(way, sweep.name), cwd=folder, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after, elapsed = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (sweep / "cost.json").write_text(json.dumps({"clock": elapsed, "cpu": cpu}))


def results(folder: Path, way: str) -> dict[str, RunResult]:
    """The ended runs of a sweep, by the settings in which they differ."""
    ended = {path: RunResult.read_ended(path.parent) for path in (folder / f"sweep_{way}").glob(f"*/*/{RESULT_FILE}")}
    return {
        ", ".join(f"{key}={format_value(value)}" for key, value in result.overrides.items()): result
        for result in ended.values()
        if result
    }


def table(folder: Path, ways: Sequence[str]) -> Iterator[str]:
    """One row per way."""
    yield "| how runs are stopped | clock, s | CPU, s | steps | runs stopped | best accuracy of the runs that ended |"
    yield "|---|---|---|---|---|---|"
    for way in ways:
        cost = json.loads((folder / f"sweep_{way}" / "cost.json").read_text())
        runs = results(folder, way)
        complete = {name: run for name, run in runs.items() if run.status == "finished"}
        best = max(complete, key=lambda name: complete[name].final.accuracy)
        steps = sum(run.steps for run in runs.values())
        yield (
            f"| {WAYS[way][0]} | {cost['clock']:.0f} | {cost['cpu']:.0f} | {steps:,} "
            f"| {len(runs) - len(complete)} of {len(runs)} | {format_percent(complete[best].final.accuracy)} ({best}) |"
        )


def main(folder: Path, ways: Sequence[str]) -> None:
    """See the module's docstring."""
    for way in ways:
        run(folder, way)
    print(f"{describe()}\n")
    print("\n".join(table(folder, ways)))


if __name__ == "__main__":
    if not sys.argv[1:] or set(sys.argv[2:]) - set(WAYS):
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve(), sys.argv[2:] or list(WAYS)[:2])
