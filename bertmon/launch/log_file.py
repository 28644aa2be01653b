"""Parts of the logging that conf/hydra asks for: the handler of run.log, and a filter of Hydra's own lines."""

import logging
import sys


class RunLogFile(logging.FileHandler):
    """A log file that reports once, in one line, if it cannot be written, not at each message with a traceback."""

    _reported = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's own name
        if not self._reported:
            self._reported = True
            print(f"could not write {self.baseFilename}: {sys.exc_info()[1]}", file=sys.stderr)


class NoJobLines(logging.Filter):
    """Leaves out Hydra's lines with all overrides of a job ("#0 : ..."): a run's own first line names it."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("\t#")
