"""The end of a launch: rebuild the sweep's report, print its summary and commands to copy."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path

from bertmon.launch.command_line import program, resume_command
from bertmon.result import RunResult, Status, run_names

_AT_END: ContextVar[ExitStack] = ContextVar("_AT_END")


@contextmanager
def print_at_exit() -> Iterator[None]:
    """Print the summary of the sweep folder registered in the body when the body exits, even by an exception."""
    with ExitStack() as stack:
        token = _AT_END.set(stack)
        try:
            yield
        finally:
            _AT_END.reset(token)


def register(sweep_dir: Path) -> None:
    """Have the enclosing `print_at_exit` print the summary of this sweep."""
    if stack := _AT_END.get(None):
        stack.callback(print_summary, sweep_dir)


def print_summary(sweep_dir: Path) -> None:
    """Rebuild the report, and print the summary and follow-up commands, including `resume` for an incomplete sweep."""
    statuses = _statuses(sweep_dir)
    if any(status in (None, Status.interrupted, Status.running) for status in statuses):
        print(f"To resume: {resume_command(sweep_dir)}", flush=True)
    from bertmon.compare import best_model, report, summary  # importing seaborn takes a second

    try:
        sweep = report.write_report([sweep_dir], sweep_dir)
        if statuses != [Status.failed]:  # a single run has already printed its error
            print(f"\n{summary.console_summary(sweep)}", flush=True)
        if model := best_model.link_best_model(sweep, sweep_dir):
            print(f"Best model: {model}")
        print(f"Report: {sweep_dir / report.HTML_FILE}", flush=True)
    except BrokenPipeError:
        raise
    except Exception as error:  # the runs themselves are not affected
        print(f"could not write the report ({type(error).__name__}: {error})", file=sys.stderr)
    print(f"TensorBoard: {shlex.join([*program(), 'tensorboard', str(sweep_dir)])}", flush=True)


def _statuses(sweep_dir: Path) -> list[Status | None]:
    """The status of each planned run; None if it has not started."""
    results = (RunResult.read(sweep_dir / name) for name in run_names(sweep_dir))
    return [result.status if result else None for result in results]
