"""bertmon board [FOLDER]: TensorBoard on a sweep, with the options that show all of it. On this machine alone."""

import argparse
import os
import sys
from pathlib import Path

from bertmon.result import SWEEP_FILE
from bertmon.sanitize import sanitize_line


def tensorboard_argv(folder: Path) -> list[str]:
    """TensorBoard keeps ten images a tag unless told otherwise."""
    return ["tensorboard", "--logdir", str(folder), "--samples_per_plugin", "images=100"]


def latest_sweep(folder: Path) -> Path | None:
    """The launch below `folder` that was started last."""
    plans = list(folder.glob(f"*/{SWEEP_FILE}"))
    return max(plans, key=lambda plan: plan.stat().st_mtime).parent if plans else None


def _port(given: str) -> int:
    if given.isdecimal() and int(given) < 65536:
        return int(given)
    raise argparse.ArgumentTypeError(f"{sanitize_line(given)} is not possible: give a whole number from 0 to 65535")


def main(arguments: list[str] | None = None) -> None:
    """Becomes TensorBoard."""
    parser = argparse.ArgumentParser(prog="bertmon board", description="TensorBoard on a sweep.")
    parser.add_argument("folder", nargs="?", type=Path, help="multirun/<start>; else the newest one in multirun")
    parser.add_argument("--port", type=_port, help="of the address in the browser; else 6006, or the next that is free")
    given = parser.parse_args(arguments)
    folder = given.folder or latest_sweep(Path("multirun"))
    if folder is None or not os.path.isdir(folder):
        shown = sanitize_line(folder or "multirun")
        sys.exit(f"{shown} holds no launch: give its folder, such as multirun/2026-11-23_07-17-49.")
    print(f"TensorBoard on {sanitize_line(folder)}", flush=True)
    _, *options = tensorboard_argv(folder)
    options += ["--host", "localhost", *(["--port", str(given.port)] if given.port is not None else [])]
    os.execv(sys.executable, [sys.executable, "-m", "tensorboard.main", *options])


if __name__ == "__main__":
    main()
