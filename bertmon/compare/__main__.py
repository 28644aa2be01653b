"""bertmon compare FOLDER...: the report of one or more sweeps, from the files that their runs have written so far."""

import argparse
import sys
from pathlib import Path

from bertmon.compare import report, summary
from bertmon.errors import InputError
from bertmon.sanitize import sanitize_line


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="bertmon compare",
        description="Write the report of one or more sweeps, and print a summary.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="multirun/<sweep>, or one of its runs")
    parser.add_argument(
        "--out", type=Path, help="folder for the report; default: FOLDER; required if there are several"
    )
    options = parser.parse_args(arguments)
    if len(options.folders) > 1 and not options.out:
        parser.error("--out: expected a folder for the report of several sweeps")
    target = options.out or options.folders[0]
    try:
        if options.out:
            target.mkdir(parents=True, exist_ok=True)
        sweep = report.write_report(options.folders, target)
    except InputError as error:
        sys.exit(str(error))
    except OSError as error:
        path = error.filename2 or error.filename or target
        sys.exit(f"could not read or write {sanitize_line(path)}: {error.strerror}.")
    print(summary.console_summary(sweep))
    print(f"Report: {sanitize_line(target / report.HTML_FILE)}")


if __name__ == "__main__":
    main()
