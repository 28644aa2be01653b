"""The command `bertmon` and its subcommands. Each imports what it needs when called: --help does not import torch."""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from bertmon.errors import InputError
from bertmon.launch import threads
from bertmon.result import SWEEP_FILE
from bertmon.sanitize import sanitize_line

_EXAMPLE = "multirun/2026-11-23_07-17-49"


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script and `python -m bertmon`."""
    threads.configure_threads()
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
    elif argv[0] in ("-V", "--version"):
        print(f"bertmon {metadata.version('bertmon')}")
    elif argv[0] in COMMANDS:
        COMMANDS[argv[0]](argv[1:])
    elif argv[0].startswith("-") or "=" in argv[0]:  # overrides and flags of `run`
        run(argv)
    else:
        guess = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {guess[0]}?" if guess else f"the commands are {', '.join(COMMANDS)}."
        sys.exit(f"bertmon {sanitize_line(argv[0])}: no such command; {hint}")


def run(arguments: Sequence[str]) -> None:
    """train one run, or a sweep with -m; the same as python -m bertmon.run"""
    from bertmon.run import main as run_main

    sys.argv[1:] = arguments
    run_main()


def resume(arguments: Sequence[str]) -> None:
    """resume an interrupted sweep or run; overrides may follow"""
    parser = _parser("resume", resume)
    parser.add_argument("folder", type=Path, metavar="SWEEP", help=f"folder of the sweep, such as {_EXAMPLE}")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="such as device=cpu; paths are relative to where the sweep was started",
    )
    options = parser.parse_args(arguments)
    from bertmon.launch.run_dirs import resume_argvs

    try:
        launches = resume_argvs(options.folder, options.overrides)
    except InputError as error:
        sys.exit(str(error))
    failed = False
    for directory, *command in launches:
        os.chdir(directory)
        try:
            run(command)
        except SystemExit as ended:
            if ended.code != 1:  # interrupted, or a message that concerns all launches
                raise
            failed = True  # a run has failed; the others are unaffected
    if failed:
        sys.exit(1)


def rerun(arguments: Sequence[str]) -> None:
    """train a run again from the config saved in its folder; overrides may follow"""
    parser = _parser("rerun", rerun)
    parser.add_argument(
        "folder", type=Path, metavar="RUN", help=f"folder of the run: {_EXAMPLE}/warmup_frac=0.1/seed=0"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides, such as seed=1")
    options = parser.parse_args(arguments)
    from bertmon.launch.rerun import rerun_argv

    try:
        saved = rerun_argv(options.folder)
    except InputError as error:
        sys.exit(str(error))
    run([*saved, *options.overrides])


def compare(arguments: Sequence[str]) -> None:
    """write the report of a sweep, or of several together"""
    from bertmon.compare.__main__ import main as compare_main

    compare_main(list(arguments))


def predict(arguments: Sequence[str]) -> None:
    """label new texts with a trained model"""
    from bertmon.predict import main as predict_main

    predict_main(list(arguments))


def rate_range(arguments: Sequence[str]) -> None:
    """find the learning rate at which a model fails, in one short run, and rates below it"""
    from bertmon.launch.rate_range import main as range_main

    range_main(list(arguments))


def tensorboard(arguments: Sequence[str]) -> None:
    """start TensorBoard on a sweep, for this machine only; without a folder on the newest one"""
    parser = _parser("tensorboard", tensorboard)
    parser.add_argument("folder", nargs="?", type=Path, metavar="SWEEP", help="default: the newest in multirun/")
    parser.add_argument("--port", type=_port, help="default: 6006, or the next free one")
    options = parser.parse_args(arguments)
    folder = options.folder or latest_sweep(Path("multirun"))
    if folder is None:
        sys.exit("bertmon tensorboard: there is no sweep in ./multirun; give the folder of one.")
    if not os.path.isdir(folder):
        given = sanitize_line(folder)
        sys.exit(f"bertmon tensorboard: expected the folder of a sweep, such as {_EXAMPLE}, got {given}.")
    from bertmon.compare.tensorboard import tensorboard_argv

    print(f"TensorBoard on {sanitize_line(folder)}", flush=True)
    port = ["--port", str(options.port)] if options.port is not None else []
    command = [*tensorboard_argv(folder), "--host", "localhost", *port]
    os.execv(command[0], command)


def latest_sweep(folder: Path) -> Path | None:
    """The most recently started sweep in `folder`."""
    files = list(folder.glob(f"*/{SWEEP_FILE}"))
    return max(files, key=lambda file: file.stat().st_mtime).parent if files else None


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "run": run,
    "resume": resume,
    "rerun": rerun,
    "compare": compare,
    "predict": predict,
    "range": rate_range,
    "tensorboard": tensorboard,
}


def _overview() -> str:
    lines = [
        "usage: bertmon COMMAND ...",
        "",
        "Train BERT across a sweep of settings and see early, from gradients and updates, which runs will not learn.",
        "",
        *(f"  {name:12}{(command.__doc__ or '').strip()}" for name, command in COMMANDS.items()),
        "",
        "  bertmon run schedule.warmup_frac=0.1,0.7 -m     a sweep over two warm-ups",
        "  bertmon COMMAND --help                          its options",
        "  bertmon --version",
    ]
    return "\n".join(lines)


def _parser(name: str, command: Callable[[Sequence[str]], None]) -> argparse.ArgumentParser:
    description = (command.__doc__ or "").strip()
    return argparse.ArgumentParser(prog=f"bertmon {name}", description=f"{description[0].upper()}{description[1:]}.")


def _port(text: str) -> int:
    if text.isdecimal() and int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected an integer from 0 to 65535, got {sanitize_line(text)}")
