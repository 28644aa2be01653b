"""bertmon, python -m bertmon: runs and sweeps, unless the first word is board, compare or resume."""

import os
import sys
from pathlib import Path


def main() -> None:
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word == "board":
        from bertmon.board import main as board

        board(sys.argv[2:])
    elif word == "compare":
        from bertmon.compare.__main__ import main as compare

        compare(sys.argv[2:])
    else:
        from bertmon.run import main as run

        if word == "resume":
            _resume(sys.argv[2:])
        run()


def _resume(arguments: list[str]) -> None:
    """bertmon resume FOLDER: make the command line that of the launch in the folder, which goes on there."""
    from bertmon.errors import InputError
    from bertmon.launch.run_dirs import resume_argv

    if len(arguments) != 1:
        sys.exit("usage: bertmon resume FOLDER, such as multirun/2026-11-23_07-17-49")
    try:
        directory, *command = resume_argv(Path(arguments[0]))
    except InputError as error:
        sys.exit(str(error))
    os.chdir(directory)
    sys.argv[1:] = command


if __name__ == "__main__":
    main()
