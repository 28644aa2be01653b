"""Signals that wait until a step is done, so that a run can write a checkpoint before it ends."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bertmon.result import Terminated

log = logging.getLogger(__name__)


@contextmanager
def deferred_signals(enabled: bool) -> Iterator[list[BaseException]]:
    """Yield a list that the first SIGINT or SIGTERM of the body is added to, as its exception; a second one acts.

    SIGHUP, SIGUSR1 and SIGUSR2 are deferred too if they have a handler. The exception of a signal that asks for the run
    to be queued again (SIGUSR1, SIGUSR2) comes first in the list. Signals are left alone outside the main thread, which
    alone can have handlers, and unless `enabled`.
    """
    pending: list[BaseException] = []
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield pending
        return
    requeue = [number for name in ("SIGUSR1", "SIGUSR2") if (number := _handled(name)) is not None]
    others = [number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := _handled(name)) is not None]
    handlers = {number: signal.getsignal(number) for number in (*others, *requeue)}

    def defer(number: int, frame: object) -> None:
        if not pending:
            log.info("Saving a checkpoint and stopping after this step; press Ctrl-C again to stop immediately")
        exception = KeyboardInterrupt() if number == signal.SIGINT else Terminated(128 + number)
        pending.insert(0 if number in requeue else len(pending), exception)
        signal.signal(number, handlers[signal.Signals(number)])  # Slurm and joblib send two different ones

    for number in handlers:
        signal.signal(number, defer)
    try:
        yield pending
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _handled(name: str) -> signal.Signals | None:
    """The signal, if this platform has it and it would reach a Python handler or, for SIGTERM, end the process.

    One that is ignored, as Ctrl-C is by a background process of a script, stays so.
    """
    number: signal.Signals | None = getattr(signal, name, None)
    if number is None:
        return None
    handler = signal.getsignal(number)
    ends = name in ("SIGINT", "SIGTERM") and handler is signal.SIG_DFL
    return number if callable(handler) or ends else None
