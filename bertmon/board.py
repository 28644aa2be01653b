"""bertmon board [FOLDER]: TensorBoard on a sweep, with the options that show all of it. On this machine alone."""

import argparse
import os
import sys
from pathlib import Path


def command(folder: Path) -> list[str]:
    """TensorBoard keeps ten images a tag unless told otherwise, and is bound to the loopback address."""
    return ["tensorboard", "--logdir", str(folder), "--samples_per_plugin", "images=100", "--host", "localhost"]


def newest(folder: Path) -> Path | None:
    """The launch below `folder` that started last; launches are named by their moment."""
    launches = [path for path in folder.glob("*") if path.is_dir()]
    return max(launches, key=lambda path: path.name, default=None)


def main(arguments: list[str] | None = None) -> None:
    """Becomes TensorBoard."""
    parser = argparse.ArgumentParser(prog="bertmon board", description="TensorBoard on a sweep.")
    parser.add_argument("folder", nargs="?", type=Path, help="multirun/<start>; else the newest one in multirun")
    parser.add_argument("--port", default="6006", help="of the address in the browser; 6006 unless given")
    given = parser.parse_args(arguments)
    folder = given.folder or newest(Path("multirun"))
    if folder is None or not folder.is_dir():
        sys.exit(f"{folder or 'multirun'} holds no launch: give its folder, such as multirun/2026-11-23_07-17-49.")
    print(f"TensorBoard on {folder}", flush=True)
    _, *rest = command(folder)
    os.execv(sys.executable, [sys.executable, "-m", "tensorboard.main", *rest, "--port", given.port])


if __name__ == "__main__":
    main()
