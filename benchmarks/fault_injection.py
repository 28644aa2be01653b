"""What survives what: faults that are done to real sweeps, how often each was tried, and how often it was survived.

    python benchmarks/faults.py [kills]

A sweep of four small runs is begun, hurt, and gone on with by `bertmon resume` until it ends. It has survived if all
its runs ended, with the same histories, results, points and pictures, bit for bit, as in a sweep to which nothing
happened. Moments and places are drawn at random from a fixed seed; how far a process has come by then is not fixed.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bertmon.monitor.history import HISTORY_FILE
from bertmon.training import checkpoint

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

SPOILED = """
import importlib.abc, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "bertmon.training.trainer":
            sys.meta_path.remove(self)
            import torch
            from bertmon import schedule
            original = schedule.factor
            def factor(step, *, warmup_frac, **rest):
                if warmup_frac == 0.3:
                    raise RuntimeError("the cat sat on the keyboard")
                if warmup_frac == 0.5:
                    torch.empty(2**50)
                if warmup_frac == 0.7:
                    sys.exit("enough")
                return original(step, warmup_frac=warmup_frac, **rest)
            schedule.factor = factor

sys.meta_path.insert(0, Finder())
"""
"""A sitecustomize.py with which runs raise, need a petabyte, or exit, by their warm-up."""


def content(run: Path) -> tuple[Any, ...]:
    """What a run came to: its history, its results, every point and picture of its event files."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
    tags = events.Tags()
    result = json.loads((run / "result.json").read_text())
    return (
        (run / HISTORY_FILE).read_bytes(),
        [result[key] for key in ("status", "evaluations", "metrics", "verdict", "verdict_step", "findings", "steps")],
        {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]},
        {tag: [(event.step, event.encoded_image_string) for event in events.Images(tag)] for tag in tags["images"]},
        {tag: [event.step for event in events.Tensors(tag)] for tag in tags["tensors"]},
    )


def contents(sweep: Path) -> dict[str, Any]:
    """What its finished runs came to, by their names."""
    return {str(path.parent.relative_to(sweep)): content(path.parent) for path in sorted(sweep.rglob(HISTORY_FILE))}


class Sweep:
    """One sweep that is hurt and gone on with; it has a cache of its own beside its folder."""

    def __init__(self, folder: Path, warmups: str = WARMUPS, path: str = "") -> None:
        self.folder = folder
        self.cache = folder.parent / "cache"
        self._warmups = warmups
        self._environment = {**os.environ, "XDG_CACHE_HOME": str(self.cache)}
        if path:
            self._environment["PYTHONPATH"] = path
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Begin it, or go on with it once there is something to go on with."""
        begun = (self.folder / "sweep.json").exists()
        anew = ["bertmon.run", self._warmups, *SWEEP, f"hydra.sweep.dir={self.folder}"]
        command = ["bertmon", "resume", self.folder] if begun else anew
        self._process = subprocess.Popen(
            [sys.executable, "-m", *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder.parent,
            env=self._environment,
        )

    def wait_for(self, pattern: str) -> Path:
        """The first file of its folder with such a name, as soon as it is there."""
        deadline = time.monotonic() + 120
        while not (found := list(self.folder.rglob(pattern))):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return found[0]

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

    def drawer(self) -> int | None:
        """The process that draws its figures, if there is one now."""
        assert self._process is not None
        tasks = Path(f"/proc/{self._process.pid}/task")
        children = [pid for each in tasks.glob("*/children") for pid in each.read_text().split()]
        named = [pid for pid in children if b"monitor.drawer" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return int(named[0]) if named else None

    def end(self) -> int:
        """Wait until it ends by itself; returns its exit code."""
        assert self._process is not None
        self._process.communicate()
        return self._process.returncode


class Trial:
    """Where sweeps are hurt, and what they should come to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.rng = random.Random(0)
        undisturbed = self.sweep()
        undisturbed.start()
        assert undisturbed.end() == 0
        self.whole = contents(undisturbed.folder)
        assert len(self.whole) == 4

    def sweep(self, **rest: str) -> Sweep:
        """A new one, not begun."""
        return Sweep(Path(tempfile.mkdtemp(dir=self._folder)) / "sweep", **rest)

    def survived(self, sweep: Sweep) -> bool:
        """Whether it ends by itself as if nothing had happened."""
        return sweep.end() == 0 and contents(sweep.folder) == self.whole

    def signalled(self, number: signal.Signals, times: int) -> Iterator[bool]:
        """Sweeps that get the signal at random moments, again and again until each has ended; an answer a signal."""
        done = 0
        while done < times:
            sweep, hurt = self.sweep(), 0
            while True:
                sweep.start()
                if done + hurt >= times or not sweep.hurt(number, self.rng.uniform(3, 12)):
                    break
                hurt += 1
            done += hurt
            yield from [self.survived(sweep)] * hurt

    def killed(self, damage: Callable[[Sweep, Path], None]) -> tuple[Sweep, Path]:
        """A sweep that is killed while a run has a checkpoint, and something of it or of that run is then damaged."""
        while True:
            sweep = self.sweep()
            sweep.start()
            found = sweep.wait_for(checkpoint.CHECKPOINT_FILE)
            assert sweep.hurt(signal.SIGKILL, 0.01)
            if found.exists():  # else it had ended just then
                damage(sweep, found.parent)
                sweep.start()
                return sweep, found.parent

    def damaged(self, damage: Callable[[Sweep, Path], None]) -> bool:
        sweep, _ = self.killed(damage)
        return self.survived(sweep)

    def without_events(self, damage: Callable[[Sweep, Path], None]) -> bool:
        """Everything but the points that were in the damaged event file, and that is still there under another name."""
        sweep, run = self.killed(damage)
        if sweep.end() != 0:
            return False
        found, name = contents(sweep.folder), str(run.relative_to(sweep.folder))
        same = found[name][:2] == self.whole[name][:2]
        others = {each: found[each] for each in found if each != name}
        kept = len(list(run.glob("damaged.events.*"))) == 1
        return same and kept and others == {each: self.whole[each] for each in self.whole if each != name}

    def truncate(self, name: str) -> Callable[[Sweep, Path], None]:
        def damage(sweep: Sweep, run: Path) -> None:
            (path,) = run.glob(name)
            least = 0 if name != EVENTS else 100  # what stands behind the checkpoint is cut off in any case
            os.truncate(path, self.rng.randrange(least, path.stat().st_size) if name != EVENTS else least)

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

    def without_drawer(self) -> bool:
        sweep = self.sweep()
        sweep.start()
        sweep.wait_for(EVENTS)
        while (drawer := sweep.drawer()) is None:
            time.sleep(0.02)
        os.kill(drawer, signal.SIGKILL)
        return self.survived(sweep)

    def twice_at_once(self) -> bool:
        """One of both launches has to be refused, and the other to end as if it were alone."""
        sweep = self.sweep()
        second = Sweep(sweep.folder)
        sweep.start()
        second.start()
        codes = sorted([sweep.end(), second.end()])
        return codes == [0, 1] and contents(sweep.folder) == self.whole

    def spoiled(self) -> bool:
        """Three runs of eight raise, exit, or need a petabyte: the five others end, and the exit code says it."""
        path = Path(tempfile.mkdtemp(dir=self._folder))
        (path / "sitecustomize.py").write_text(SPOILED)
        sweep = self.sweep(warmups="schedule.warmup_frac=0.1,0.3,0.5,0.7", path=str(path))
        sweep.start()
        code = sweep.end()
        found = sorted(json.loads(each.read_text())["status"] for each in sweep.folder.rglob("result.json"))
        alone = {name: self.whole[name] for name in self.whole if "=0.1" in name}
        finished = {name: each for name, each in contents(sweep.folder).items() if each[1][0] == "ok"}
        return code == 1 and found == 6 * ["failed"] + 2 * ["ok"] and finished == alone

    def without_room(self) -> bool:
        """A disk of a megabyte, then one of 64: on the first it ends with a message, on the second it goes on."""
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
        bytes_ = bytearray(path.read_bytes())
        bytes_[self.rng.randrange(within or len(bytes_))] ^= 1 << self.rng.randrange(8)
        path.write_bytes(bytes_)


def main(kills: int) -> None:
    print("| fault | tried | survived |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        trial, few = Trial(Path(name)), max(kills // 10, 1)

        def row(fault: str, answers: Iterator[bool]) -> None:
            told = list(answers)
            print(f"| {fault} | {len(told)} | {sum(told)} |", flush=True)

        def again(once: Callable[..., bool], *arguments: Any) -> Iterator[bool]:
            return (once(*arguments) for _ in range(few))

        row("SIGKILL at a random moment", trial.signalled(signal.SIGKILL, kills))
        row("SIGTERM at a random moment", trial.signalled(signal.SIGTERM, few))
        row("SIGINT at a random moment", trial.signalled(signal.SIGINT, few))
        for what, pattern in (("checkpoint", checkpoint.CHECKPOINT_FILE), ("result.json", "result.json")):
            row(f"SIGKILL, and the {what} is truncated", again(trial.damaged, trial.truncate(pattern)))
        row(
            "SIGKILL, and a bit of the checkpoint is another",
            again(trial.damaged, trial.flip(checkpoint.CHECKPOINT_FILE)),
        )
        row("SIGKILL, and the event file is truncated *", again(trial.without_events, trial.truncate(EVENTS)))
        row("SIGKILL, and a bit of the event file is another *", again(trial.without_events, trial.flip(EVENTS)))
        row("SIGKILL, and all caches are truncated", again(trial.damaged, trial.truncate_caches))
        row("SIGKILL, and a bit of each cache is another", again(trial.damaged, trial.flip_caches))
        row("SIGKILL of the process that draws", again(trial.without_drawer))
        row("the same launch twice at once, with no cache", again(trial.twice_at_once))
        row("runs that raise, exit, or need a petabyte of memory", again(trial.spoiled))
        if os.geteuid() == 0 and shutil.which("mount"):
            row("a disk without room, and then with it", again(trial.without_room))
        else:
            print("| a disk without room, and then with it | not tried: only root can mount one | |")
    print(
        "\n* named, set aside, and its points are missing in TensorBoard; the run and its history are as they should be"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
