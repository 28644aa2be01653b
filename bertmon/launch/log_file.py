"""Logging handlers for run.log and the console, and filters for the console, as configured in conf/hydra."""

import logging
import sys
from typing import ClassVar, TextIO

from tqdm import tqdm


class RunLogFile(logging.FileHandler):
    """A log file that reports write errors once, in one line, instead of a traceback per message."""

    _reported = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # name given by logging
        if not self._reported:
            self._reported = True
            print(f"could not write {self.baseFilename}: {sys.exc_info()[1]}", file=sys.stderr)


class Console(logging.StreamHandler[TextIO]):
    """Standard output, with lines above the progress bars. Lines are dropped once the reader, such as `head`, has
    closed the pipe; run.log has them."""

    _closed_pipe = False

    def emit(self, record: logging.LogRecord) -> None:
        if self._closed_pipe:
            return
        try:
            line = f"{self.format(record)}\n"  # in one write: a parallel run could print between two
            tqdm.write(line, file=self.stream, end="")
            self.flush()
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # name given by logging
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            self._closed_pipe = True
        else:
            super().handleError(record)


class NoJobLines(logging.Filter):
    """Drops Hydra's lines with all overrides of a job ("#0 : ..."): the run's own first line names it."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("\t#")


class NoRepeatedLines(logging.Filter):
    """Drops a record with the attribute `once` if its message was already logged in this launch."""

    seen: ClassVar[set[str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if not getattr(record, "once", False):
            return True
        new = message not in self.seen
        self.seen.add(message)
        return new
