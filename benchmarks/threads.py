"""The effect of how torch's threads wait: complete runs on an idle and on a busy machine, with and without watching.

    python benchmarks/threads.py [EPOCHS]

Trains the quickstart's model in a separate process, with `monitor=off` and watched with figures in turn, under several
OpenMP settings; on the "busy" machine, one other process computes all the time. Prints seconds from start to exit, and
the ratio of watched to unwatched.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SETTINGS: dict[str, dict[str, str]] = {
    "torch's default": {},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
_TIMEOUT_S = 900


@contextmanager
def busy(enabled: bool) -> Iterator[None]:
    """One other process that computes all the time within the context, if `enabled`."""
    if not enabled:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: sum(range(1000000))"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def seconds(environment: dict[str, str], epochs: int, folder: Path, *overrides: str) -> float:
    """Seconds from start to exit of one run."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-m", "bertmon.run", "experiment=quickstart", f"train.epochs={epochs}"]
    command += ["train.eval_every=1000000", *overrides]  # at the end of each epoch only
    begin = time.perf_counter()
    subprocess.run(
        [*command, f"hydra.run.dir={folder}/{time.time_ns()}", "device=cpu"],
        env=variables | {"OMP_DYNAMIC": "false"} | environment,  # so that bertmon does not set its own
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=_TIMEOUT_S,
    )
    return time.perf_counter() - begin


def main(arguments: list[str]) -> None:
    epochs = int(arguments[0]) if arguments else 1
    print("| setting | machine | monitor=off, s | watched, s | ratio |", "|---|---|---|---|---|", sep="\n")
    with tempfile.TemporaryDirectory() as folder:
        seconds({"OMP_NUM_THREADS": "1"}, 1, Path(folder), "train.batch_size=64")  # fills the caches
        for is_busy in (False, True):
            for name, environment in SETTINGS.items():
                with busy(is_busy):
                    off = seconds(environment, epochs, Path(folder), "monitor=off")
                    on = seconds(environment, epochs, Path(folder))
                machine = "busy" if is_busy else "idle"
                print(f"| {name} | {machine} | {off:.1f} | {on:.1f} | {on / off:.2f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
