"""Parts of the logging that conf/hydra asks for: the handler of run.log, and filters of lines on the console."""

import logging
import sys
from typing import ClassVar, TextIO

from tqdm import tqdm


class RunLogFile(logging.FileHandler):
    """A log file that reports once, in one line, if it cannot be written, not at each message with a traceback."""

    _reported = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's own name
        if not self._reported:
            self._reported = True
            print(f"could not write {self.baseFilename}: {sys.exc_info()[1]}", file=sys.stderr)


class Console(logging.StreamHandler[TextIO]):
    """Standard output, with lines above the progress bars. Once its reader has closed it, such as `head`, they are
    dropped: run.log has them."""

    _closed_pipe = False

    def emit(self, record: logging.LogRecord) -> None:
        if self._closed_pipe:
            return
        try:
            tqdm.write(self.format(record), file=self.stream)
            self.flush()
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's own name
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            self._closed_pipe = True
        else:
            super().handleError(record)


class NoJobLines(logging.Filter):
    """Leaves out Hydra's lines with all overrides of a job ("#0 : ..."): a run's own first line names it."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("\t#")


class NoRepeatedLines(logging.Filter):
    """Lets a record with the attribute `once` pass only where no earlier run of the launch has said the same."""

    seen: ClassVar[set[str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if not getattr(record, "once", False):
            return True
        new = message not in self.seen
        self.seen.add(message)
        return new
