"""What survives what: faults that are done to real sweeps, how often each was tried, and how often it was survived.

    python benchmarks/faults.py [kills]

A sweep of four small runs is begun, hurt, and gone on with by `bertmon resume` until it ends. It has survived if all
its runs ended, with the same histories, results, points and pictures, bit for bit, as in a sweep to which nothing
happened. Moments and places are drawn at random from a fixed seed; how far a process has come by then is not fixed.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bertmon import checkpoint
from bertmon.monitor import HISTORY

SWEEP = [
    "schedule.warmup_frac=0.1,0.7",
    "seed=0,1",
    "-m",
    "model=bert_small",
    "model.num_hidden_layers=2",
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "data.train_per_package=300",
    "train.epochs=4",
    "train.checkpoint_every=20",
    "monitor.every=10",
]


def content(run: Path) -> tuple[Any, ...]:
    """What a run came to: its history, its results, every point and picture of its event files."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
    tags = events.Tags()
    result = json.loads((run / "result.json").read_text())
    return (
        (run / HISTORY).read_bytes(),
        [result[key] for key in ("status", "evaluations", "metrics", "verdict", "verdict_step", "findings", "steps")],
        {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]},
        {tag: [(event.step, event.encoded_image_string) for event in events.Images(tag)] for tag in tags["images"]},
        {tag: [event.step for event in events.Tensors(tag)] for tag in tags["tensors"]},
    )


def contents(sweep: Path) -> dict[str, Any]:
    return {str(path.parent.relative_to(sweep)): content(path.parent) for path in sorted(sweep.rglob("result.json"))}


class Sweep:
    """One sweep that is hurt and gone on with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Begin it, or go on with it once there is something to go on with."""
        begun = (self.folder / "sweep.json").exists()
        command = (
            ["bertmon", "resume", self.folder] if begun else ["bertmon.run", *SWEEP, f"hydra.sweep.dir={self.folder}"]
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder.parent,
        )

    def hurt(self, number: signal.Signals, seconds: float) -> bool:
        """Send a signal after so many seconds; returns whether the sweep was still running."""
        process = self._process
        assert process is not None
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            process.communicate()
            return True
        return False

    def end(self) -> int:
        """Wait until it ends by itself; returns its exit code."""
        assert self._process is not None
        self._process.communicate()
        return self._process.returncode


def signalled(
    whole: dict[str, Any], folder: Path, rng: random.Random, number: signal.Signals, times: int
) -> Iterator[bool]:
    """Sweeps that get the signal at random moments, again and again until each has ended; an answer a signal."""
    done = 0
    while done < times:
        sweep, hurt = Sweep(Path(tempfile.mkdtemp(dir=folder)) / "sweep"), 0
        while True:
            sweep.start()
            if done + hurt >= times or not sweep.hurt(number, rng.uniform(3, 12)):
                break
            hurt += 1
        done += hurt
        survived = sweep.end() == 0 and contents(sweep.folder) == whole
        yield from [survived] * hurt


def damaged(whole: dict[str, Any], folder: Path, rng: random.Random, damage: Callable[[Path], None]) -> bool:
    """A sweep that is killed while a run has a checkpoint, and something in that run's folder is then damaged."""
    sweep = Sweep(Path(tempfile.mkdtemp(dir=folder)) / "sweep")
    sweep.start()
    deadline = time.monotonic() + 120
    while not (found := list(sweep.folder.rglob(checkpoint.NAME))):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert sweep.hurt(signal.SIGKILL, 0.01)
    run = found[0].parent
    if not (run / checkpoint.NAME).exists():  # it had ended just then
        return damaged(whole, folder, rng, damage)
    damage(run)
    sweep.start()
    return sweep.end() == 0 and contents(sweep.folder) == whole


def truncate(name: str, rng: random.Random) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (path,) = run.glob(name)
        os.truncate(path, rng.randrange(path.stat().st_size))

    return damage


def flip(name: str, rng: random.Random) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (path,) = run.glob(name)
        bytes_ = bytearray(path.read_bytes())
        bytes_[rng.randrange(len(bytes_))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes_)

    return damage


def main(kills: int) -> None:
    rng = random.Random(0)
    print("| fault | tried | survived |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        undisturbed = Sweep(folder / "undisturbed")
        undisturbed.start()
        assert undisturbed.end() == 0
        whole = contents(undisturbed.folder)
        assert len(whole) == 4

        def row(fault: str, answers: list[bool]) -> None:
            print(f"| {fault} | {len(answers)} | {sum(answers)} |", flush=True)

        row("SIGKILL at a random moment", list(signalled(whole, folder, rng, signal.SIGKILL, kills)))
        few = max(kills // 10, 1)
        for number in (signal.SIGTERM, signal.SIGINT):
            row(f"{number.name} at a random moment", list(signalled(whole, folder, rng, number, few)))
        for what, files in (("checkpoint", checkpoint.NAME), ("result.json", "result.json")):
            cut = [damaged(whole, folder, rng, truncate(files, rng)) for _ in range(few)]
            row(f"SIGKILL, and the {what} is truncated", cut)
        row(
            "SIGKILL, and a bit of the checkpoint is another",
            [damaged(whole, folder, rng, flip(checkpoint.NAME, rng)) for _ in range(few)],
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
