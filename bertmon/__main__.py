"""bertmon, python -m bertmon: runs and sweeps, unless the first word is board or compare."""

import sys


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

        run()


if __name__ == "__main__":
    main()
