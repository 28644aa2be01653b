"""bertmon compare FOLDER...: the report of a sweep, or of several, from what its runs have left so far."""

import argparse
import sys
from pathlib import Path

from bertmon.compare import report, summary, tensorboard
from bertmon.errors import InputError
from bertmon.sanitize import sanitize_line


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bertmon compare", description="The report of a sweep, or of several.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="multirun/<start>, or one run of it")
    parser.add_argument("--out", type=Path, help="folder for report.html and report.md; else FOLDER, of several: here")
    given = parser.parse_args(arguments)
    target = given.out or (given.folders[0] if len(given.folders) == 1 else Path())
    try:
        if given.out:
            target.mkdir(parents=True, exist_ok=True)
        sweep = report.write_report(given.folders, target)
        tensorboard.write_comparison(sweep, target)
    except InputError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(
            f"{sanitize_line(error.filename2 or error.filename or target)} cannot be read or written: {error.strerror}."
        )
    print(summary.console_summary(sweep))
    print(f"Report: {sanitize_line(target / report.HTML_FILE)}")


if __name__ == "__main__":
    main()
