"""Signals deferred to the end of a step, so that a run can write a checkpoint before it exits."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bertmon.result import Terminated

log = logging.getLogger(__name__)


@contextmanager
def deferred_signals(enabled: bool) -> Iterator[list[BaseException]]:
    """Yield a list that collects the first SIGINT or SIGTERM of the body, as its exception; a second one takes effect.

    SIGHUP, SIGUSR1 and SIGUSR2 are also deferred if they have a handler. The exception of a signal that requests
    requeuing (SIGUSR1, SIGUSR2) comes first in the list. No signals are deferred outside the main thread, the only one
    that can set handlers, or unless `enabled`.
    """
    pending: list[BaseException] = []
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield pending
        return
    requeue = [number for name in ("SIGUSR1", "SIGUSR2") if (number := _deferrable(name)) is not None]
    others = [number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := _deferrable(name)) is not None]
    handlers = {number: signal.getsignal(number) for number in (*others, *requeue)}

    def defer(number: int, frame: object) -> None:
        if not pending:
            log.info("Saving a checkpoint and stopping after this step; press Ctrl-C again to stop immediately")
        exception = KeyboardInterrupt() if number == signal.SIGINT else Terminated(128 + number)
        pending.insert(0 if number in requeue else len(pending), exception)
        signal.signal(number, handlers[signal.Signals(number)])  # not all: Slurm and joblib send two different signals

    for number in handlers:
        signal.signal(number, defer)
    try:
        yield pending
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _deferrable(name: str) -> signal.Signals | None:
    """The signal, if the platform has it and it calls a Python handler or, for SIGINT and SIGTERM, ends the process.

    An ignored signal, such as SIGINT in a script's background process, stays ignored.
    """
    number: signal.Signals | None = getattr(signal, name, None)
    if number is None:
        return None
    handler = signal.getsignal(number)
    ends = name in ("SIGINT", "SIGTERM") and handler is signal.SIG_DFL
    return number if callable(handler) or ends else None
