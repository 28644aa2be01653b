"""Which faults a sweep survives: each fault is injected into real sweeps, and the sweeps that survive it are counted.

    python benchmarks/fault_injection.py [kills]

A sweep of four small runs is started, disturbed, and resumed by `bertmon resume` until it ends. It has survived if the
histories, results, scalars and figures of all its runs equal those of an undisturbed sweep, bit for bit. Times and
places of faults are drawn with a fixed seed; the progress of a process at that time is not reproducible.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bertmon.monitor.history import HISTORY_FILE
from bertmon.result import RESULT_FILE, SWEEP_FILE, RunResult, Status
from bertmon.training.checkpoint import CHECKPOINT_FILE

WARMUPS = "schedule.warmup_frac=0.1,0.7"
SWEEP = [
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
EVENTS = "events.out.tfevents.*"
TIMEOUT = 600
"""Longest wait for any file, in seconds."""

FAILING_RUNS = """
import importlib.abc, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "bertmon.training.task":
            sys.meta_path.remove(self)
            import torch
            from bertmon import schedule
            original = schedule.lr_factor
            def lr_factor(step, *, warmup_frac, **rest):
                if warmup_frac == 0.3:
                    raise RuntimeError("the cat sat on the keyboard")
                if warmup_frac == 0.5:
                    torch.empty(2**50)
                if warmup_frac == 0.7:
                    sys.exit("enough")
                return original(step, warmup_frac=warmup_frac, **rest)
            schedule.lr_factor = lr_factor

sys.meta_path.insert(0, Finder())
"""
"""A sitecustomize.py that makes runs raise, allocate a petabyte, or exit, depending on their warm-up."""


@dataclass(frozen=True)
class RunContent:
    """Everything in a run's folder that faults must not change."""

    history: bytes
    result: tuple[Any, ...]  # status, steps, evaluations, diagnosis
    scalars: dict[str, list[tuple[int, float]]]  # by tag: step and value
    images: dict[str, list[tuple[int, bytes]]]
    tensors: dict[str, list[int]]

    @classmethod
    def read(cls, run_dir: Path) -> "RunContent":
        """Read a run's folder. Raises an error if anything is missing."""
        result = RunResult.read(run_dir)
        assert result is not None, run_dir
        events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
        tags = events.Tags()
        return cls(
            (run_dir / HISTORY_FILE).read_bytes(),
            (result.status, result.steps, repr(result.evaluations), result.diagnosis),
            {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]},
            {tag: [(event.step, event.encoded_image_string) for event in events.Images(tag)] for tag in tags["images"]},
            {tag: [event.step for event in events.Tensors(tag)] for tag in tags["tensors"]},
        )


def read_runs(sweep: Path) -> dict[str, RunContent]:
    """The contents of a sweep's runs that have a history, by name."""
    run_dirs = sorted(path.parent for path in sweep.rglob(HISTORY_FILE))
    return {str(run_dir.relative_to(sweep)): RunContent.read(run_dir) for run_dir in run_dirs}


class Sweep:
    """A sweep that is disturbed and resumed, with its own cache next to its folder."""

    def __init__(self, folder: Path, warmups: str = WARMUPS, path: str = "") -> None:
        self.folder = folder
        self.cache = folder.parent / "cache"
        self._warmups = warmups
        self._environment = {**os.environ, "XDG_CACHE_HOME": str(self.cache)}
        if path:
            self._environment["PYTHONPATH"] = path
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the sweep, or resume it if it was started before."""
        launch = ["bertmon.run", self._warmups, *SWEEP, f"hydra.sweep.dir={self.folder}"]
        command = ["bertmon", "resume", self.folder] if (self.folder / SWEEP_FILE).exists() else launch
        self._process = subprocess.Popen(
            [sys.executable, "-m", *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder.parent,
            env=self._environment,
        )

    def wait_for(self, pattern: str) -> Path:
        """Wait until the folder contains a file whose name matches; returns the first one."""
        deadline = time.monotonic() + TIMEOUT
        while not (paths := list(self.folder.rglob(pattern))):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return paths[0]

    def send_signal(self, number: signal.Signals, seconds: float) -> bool:
        """Send a signal after `seconds`; returns whether the sweep was still running."""
        process = self._process
        assert process is not None
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            process.communicate()
            return True
        return False

    def figure_process(self) -> int | None:
        """The ID of the process that draws the sweep's figures, if one is running."""
        assert self._process is not None
        tasks = Path(f"/proc/{self._process.pid}/task")
        children = [pid for each in tasks.glob("*/children") for pid in each.read_text().split()]
        drawing = [pid for pid in children if b"monitor.figure_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return int(drawing[0]) if drawing else None

    def end(self) -> int:
        """Wait until the sweep ends by itself; returns its exit code."""
        assert self._process is not None
        self._process.communicate()
        return self._process.returncode


class Trial:
    """Disturbs sweeps and compares them with an undisturbed one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.rng = random.Random(0)
        undisturbed = self.sweep()
        undisturbed.start()
        assert undisturbed.end() == 0
        self.expected = read_runs(undisturbed.folder)
        assert len(self.expected) == 4

    def sweep(self, **rest: str) -> Sweep:
        """A new sweep, not started yet."""
        return Sweep(Path(tempfile.mkdtemp(dir=self._folder)) / "sweep", **rest)

    def survived(self, sweep: Sweep) -> bool:
        """Whether the sweep ends by itself with the contents of an undisturbed one."""
        return sweep.end() == 0 and read_runs(sweep.folder) == self.expected

    def signaled(self, number: signal.Signals, times: int) -> Iterator[bool]:
        """Send the signal `times` times, at random moments of sweeps that are resumed; one answer per signal."""
        total = 0
        while total < times:
            sweep, sent = self.sweep(), 0
            while True:
                sweep.start()
                if total + sent >= times or not sweep.send_signal(number, self.rng.uniform(3, 12)):
                    break
                sent += 1
            total += sent
            yield from [self.survived(sweep)] * sent

    def killed(self, damage: Callable[[Sweep, Path], None]) -> tuple[Sweep, Path]:
        """A sweep that was killed while a run had a checkpoint, then damaged and resumed; with that run's folder."""
        while True:
            sweep = self.sweep()
            sweep.start()
            checkpoint = sweep.wait_for(CHECKPOINT_FILE)
            assert sweep.send_signal(signal.SIGKILL, 0.01)
            if checkpoint.exists():  # else the run had just ended
                damage(sweep, checkpoint.parent)
                sweep.start()
                return sweep, checkpoint.parent

    def damaged(self, damage: Callable[[Sweep, Path], None]) -> bool:
        sweep, _ = self.killed(damage)
        return self.survived(sweep)

    def without_events(self, damage: Callable[[Sweep, Path], None]) -> bool:
        """Like `damaged`, but some points of the corrupt event file may be missing."""
        sweep, run = self.killed(damage)
        if sweep.end() != 0:
            return False
        name, expected, actual = str(run.relative_to(sweep.folder)), dict(self.expected), read_runs(sweep.folder)
        before, after = expected.pop(name), actual.pop(name)
        same = (before.history, before.result) == (after.history, after.result)
        return same and actual == expected

    def truncate(self, name: str) -> Callable[[Sweep, Path], None]:
        def damage(sweep: Sweep, run: Path) -> None:
            (path,) = run.glob(name)
            # an event file is cut before the checkpoint's position; a resume discards all after it anyway
            os.truncate(path, 100 if name == EVENTS else self.rng.randrange(path.stat().st_size))

        return damage

    def flip(self, name: str) -> Callable[[Sweep, Path], None]:
        def damage(sweep: Sweep, run: Path) -> None:
            (path,) = run.glob(name)
            self._flip(path, 1000 if name == EVENTS else None)

        return damage

    def flip_caches(self, sweep: Sweep, run: Path) -> None:
        for path in sweep.cache.rglob("*"):
            if path.is_file():
                self._flip(path)

    def truncate_caches(self, sweep: Sweep, run: Path) -> None:
        for path in sweep.cache.rglob("*"):
            if path.is_file():
                os.truncate(path, self.rng.randrange(path.stat().st_size))

    def without_figure_process(self) -> bool:
        sweep = self.sweep()
        sweep.start()
        sweep.wait_for(EVENTS)
        while (process := sweep.figure_process()) is None:
            time.sleep(0.02)
        os.kill(process, signal.SIGKILL)
        return self.survived(sweep)

    def twice_at_once(self) -> bool:
        """One of the two launches must be refused, and the other must end as if it were alone."""
        sweep = self.sweep()
        second = Sweep(sweep.folder)
        sweep.start()
        second.start()
        codes = sorted([sweep.end(), second.end()])
        return codes == [0, 1] and read_runs(sweep.folder) == self.expected

    def failing_runs(self) -> bool:
        """Six of eight runs raise, exit, or need a petabyte: the other two end, and the exit code is 1."""
        path = Path(tempfile.mkdtemp(dir=self._folder))
        (path / "sitecustomize.py").write_text(FAILING_RUNS)
        sweep = self.sweep(warmups="schedule.warmup_frac=0.1,0.3,0.5,0.7", path=str(path))
        sweep.start()
        code = sweep.end()
        statuses = [RunResult.read(path.parent).status for path in sweep.folder.rglob(RESULT_FILE)]  # type: ignore[union-attr]
        expected = {name: run for name, run in self.expected.items() if "=0.1" in name}
        finished = {name: run for name, run in read_runs(sweep.folder).items() if run.result[0] is Status.finished}
        return code == 1 and sorted(statuses) == 6 * ["failed"] + 2 * ["finished"] and finished == expected

    def on_a_full_disk(self) -> bool:
        """A disk of 1 MB that is later enlarged to 64 MB: the sweep fails on the first and resumes on the second."""
        sweep = self.sweep()
        disk = sweep.folder
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
        try:
            sweep.start()
            stopped = sweep.end() == 1
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
            sweep.start()
            return stopped and self.survived(sweep)
        finally:
            subprocess.run(["umount", disk], check=True)

    def _flip(self, path: Path, within: int | None = None) -> None:
        content = bytearray(path.read_bytes())
        content[self.rng.randrange(within or len(content))] ^= 1 << self.rng.randrange(8)
        path.write_bytes(content)


def faults(trial: Trial, kills: int) -> Iterator[tuple[str, Iterator[bool]]]:
    """Every fault with the outcomes of its trials: whether the sweep survived."""
    few = max(kills // 10, 1)

    def repeat(survives: Callable[..., bool], *arguments: Any) -> Iterator[bool]:
        return (survives(*arguments) for _ in range(few))

    for number, times in ((signal.SIGKILL, kills), (signal.SIGTERM, few), (signal.SIGINT, few)):
        yield f"{number.name} at a random moment", trial.signaled(number, times)
    for what, pattern in (("checkpoint", CHECKPOINT_FILE), ("result.json", RESULT_FILE)):
        yield f"SIGKILL, and the {what} is truncated", repeat(trial.damaged, trial.truncate(pattern))
    yield "SIGKILL, and a bit of the checkpoint is flipped", repeat(trial.damaged, trial.flip(CHECKPOINT_FILE))
    yield "SIGKILL, and the event file is truncated *", repeat(trial.without_events, trial.truncate(EVENTS))
    yield "SIGKILL, and a bit of the event file is flipped *", repeat(trial.without_events, trial.flip(EVENTS))
    yield "SIGKILL, and all caches are truncated", repeat(trial.damaged, trial.truncate_caches)
    yield "SIGKILL, and a bit of each cache is flipped", repeat(trial.damaged, trial.flip_caches)
    yield "SIGKILL of the process that draws figures", repeat(trial.without_figure_process)
    yield "the same launch twice at once, with no cache", repeat(trial.twice_at_once)
    yield "runs that raise, exit, or need a petabyte of memory", repeat(trial.failing_runs)
    if os.geteuid() == 0 and shutil.which("mount"):
        yield "a full disk, and then one with room", repeat(trial.on_a_full_disk)
    else:
        yield "a full disk, and then one with room (only root can mount one)", iter(())


def main(kills: int) -> None:
    """See the module's docstring."""
    print("| fault | tried | survived |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for fault, trials in faults(Trial(Path(name)), kills):
            answers = list(trials)
            print(f"| {fault} | {len(answers)} | {sum(answers)} |", flush=True)
    print(
        "\n* points of that file may be missing in TensorBoard; the run, its history and all other runs are as expected"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
