"""One sweep without Slurm and on a real Slurm that disturbs its jobs: are the results the same?

    apt-get install slurm-wlm munge
    python benchmarks/slurm.py [what ...]

Starts munged, slurmctld and slurmd on this machine, as root, with all their files in a temporary folder, and stops them
at the end. The sweep's jobs are an array, two of which run at a time. "Equal" means that histories, results, scalars
and figures are the same bit for bit.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fault_injection import SWEEP, read_runs

from bertmon.result import SWEEP_FILE, run_names
from bertmon.training.checkpoint import CHECKPOINT_FILE

INSTALL = "apt-get install slurm-wlm munge"
INSTALLED = all(map(shutil.which, ("munged", "slurmctld", "slurmd"))) and os.geteuid() == 0

_OTHER = ("schedule.warmup_frac=", "seed=", "train.epochs=")
THREE = ["schedule.warmup_frac=0.1,0.4,0.7", *(word for word in SWEEP if not word.startswith(_OTHER))]
ONE_CORE = [
    "hydra/launcher=submitit_slurm",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.gpus_per_node=0",
    "hydra.launcher.mem_gb=1",
]

CONFIG = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
# A requeued job waits until its old credential has expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=10
# Requeued jobs are considered every second instead of every 30 or 60.
SchedulerParameters=sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2500
PartitionName=low Nodes={host} Default=YES PriorityTier=1
PartitionName=patient Nodes={host} PriorityTier=1 GraceTime=20
PartitionName=high Nodes={host} PriorityTier=2
"""


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """A single-node Slurm with two CPUs; sets $SLURM_CONF."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)  # all users need access to munged's socket
    config, host = folder / "slurm.conf", socket.gethostname().partition(".")[0]
    config.write_text(CONFIG.format(host=host, folder=folder, ports=_free_ports(2)))
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "seed", "log")]
    os.environ["SLURM_CONF"] = str(config)
    daemons: list[subprocess.Popen[bytes]] = []
    with (folder / "daemons.log").open("wb") as log:
        try:
            for command in (
                ["munged", "--force", "--foreground", f"--socket={folder}/munge.socket", *munge],
                ["slurmctld", "-D"],
                ["slurmd", "-D"],
            ):
                daemons.append(subprocess.Popen(command, stdout=log, stderr=log))
                time.sleep(0.5)
            _wait(lambda: "idle" in _output("sinfo", "-h", "-o", "%T"), f"Slurm did not come up: {folder}/daemons.log")
            yield
            subprocess.run(["scancel", "--user=root"], check=False)
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait()
            del os.environ["SLURM_CONF"]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _wait(until: Callable[[], object], message: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, message
        time.sleep(0.1)


class Sweep:
    """The sweep, on Slurm if `overrides` choose its launcher."""

    def __init__(self, folder: Path, *overrides: str, epochs: int = 10) -> None:
        self.folder = folder
        self.epochs = epochs
        self._log = folder.with_suffix(".log")
        self._start("bertmon.run", *THREE, f"train.epochs={epochs}", f"hydra.sweep.dir={folder}", *overrides)

    def _start(self, *command: str) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([sys.executable, "-m", *command], stdout=log, stderr=log)

    def job(self, number: int) -> str:
        """The Slurm job ID of a run, once that run has a checkpoint."""
        _wait(lambda: run_names(self.folder), f"{self._log}: no {SWEEP_FILE}")
        run_dir = self.folder / run_names(self.folder)[number]
        _wait((run_dir / CHECKPOINT_FILE).exists, f"{self._log}: run {number} has no checkpoint")
        return f"{_output('squeue', '-h', '-o', '%F').split()[0]}_{number}"

    def resume(self) -> None:
        """Cancel the rest of the sweep and resume it, as a user would."""
        self._process.terminate()
        self._process.wait()
        subprocess.run(["scancel", "--user=root"], check=True)
        _wait(lambda: not _output("squeue", "-h"), "jobs are left")
        self._start("bertmon", "resume", str(self.folder))

    def end(self) -> None:
        assert self._process.wait() == 0, self._log.read_text()

    def resumed(self) -> list[str]:
        """Runs that were resumed from a checkpoint."""
        logs = sorted(self.folder.rglob("run.log"))
        return [str(log.parent.relative_to(self.folder)) for log in logs if "resuming at step" in log.read_text()]


def nothing(folder: Path) -> Sweep:
    return Sweep(folder, *ONE_CORE)


def in_batches(folder: Path) -> Sweep:
    return Sweep(folder, *ONE_CORE, "hydra.sweeper.max_batch_size=2")


def signalled(folder: Path) -> Sweep:
    """Send one job the signal that Slurm sends for submitit before the time limit, and requeue another job."""
    sweep = Sweep(folder, *ONE_CORE)
    subprocess.run(["scontrol", "requeue", sweep.job(1)], check=True)
    with suppress(subprocess.TimeoutExpired):  # scancel would keep retrying while the job is requeued
        subprocess.run(["scancel", "--signal=USR2", sweep.job(0)], check=False, capture_output=True, timeout=2)
    return sweep


def timed_out(folder: Path) -> Sweep:
    """A time limit of two minutes with the signal 30 s before it; Slurm may send it up to a minute earlier."""
    limit = ("hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=30")
    return Sweep(folder, *ONE_CORE, *limit, epochs=60)


def preempted(folder: Path, *overrides: str) -> Sweep:
    """A job of higher priority takes the node for three seconds."""
    sweep = Sweep(folder, *ONE_CORE, *overrides)
    sweep.job(0)
    sweep.job(1)
    command = ["srun", "--quiet", "--partition=high", "--cpus-per-task=2", "--mem=1G", "sleep", "3"]
    subprocess.run(command, check=True)
    return sweep


def preempted_with_grace(folder: Path) -> Sweep:
    return preempted(folder, "hydra.launcher.partition=patient")


def cancelled(folder: Path) -> Sweep:
    sweep = Sweep(folder, *ONE_CORE)
    sweep.job(0)
    sweep.resume()
    return sweep


WHAT: dict[str, Callable[[Path], Sweep]] = {
    "nothing": nothing,
    "nothing, two arrays one after the other": in_batches,
    "SIGUSR2 to one job, scontrol requeue of another": signalled,
    "the time limit": timed_out,
    "preempted by a job of higher priority": preempted,
    "the same, with 20 s of grace": preempted_with_grace,
    "scancel of all, and `bertmon resume`": cancelled,
}


def main(chosen: Sequence[str]) -> None:
    """See the module's docstring."""
    names = [disturb.__name__ for disturb in WHAT.values()]
    if unknown := set(chosen).difference(names):
        sys.exit(f"{__doc__}\nunknown: {', '.join(unknown)}; there are {', '.join(names)}")
    os.environ["OMP_NUM_THREADS"] = "1"  # as in a job: sums have the same order
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        references: dict[int, Any] = {}  # runs of the sweep without Slurm, by epochs
        print("| what happened to the jobs | runs | resumed from a checkpoint | equal |\n|---|---|---|---|", flush=True)
        for number, (what, disturb) in enumerate(WHAT.items()):
            if chosen and disturb.__name__ not in chosen:
                continue
            with cluster(folder / f"slurm{number}"):
                sweep = disturb(folder / f"sweep{number}")
                sweep.end()
            if sweep.epochs not in references:
                undisturbed = Sweep(folder / f"reference{sweep.epochs}", epochs=sweep.epochs)
                undisturbed.end()
                references[sweep.epochs] = read_runs(undisturbed.folder)
            runs, expected = read_runs(sweep.folder), references[sweep.epochs]
            equal = sum(runs[run] == expected[run] for run in expected)
            print(f"| {what} | {len(runs)} | {len(sweep.resumed())} | {equal} |", flush=True)


if __name__ == "__main__":
    if not INSTALLED:
        sys.exit(f"Slurm is not installed, or this is not root: {INSTALL}")
    main(sys.argv[1:])
