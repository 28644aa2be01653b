"""Figures drawn in a separate process, so that no training step waits for matplotlib.

`FigureProcess.submit` takes a snapshot and returns its figures as a future. If the process falls behind, only a queue
of snapshots grows, which the history holds anyway. If it dies, the training process draws the figures from then on.
"""

import atexit
import functools
import logging
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe

from bertmon.monitor.history import Snapshot

log = logging.getLogger(__name__)

PngByTag = dict[str, bytes]
"""PNG files by tag."""


class FigureProcess:
    """One drawing process, started with the first figure. It ends with `close`, or with the process that started it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "figures")  # waits for the process, so that training does not
        self._pipe: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._in_process = os.name == "nt"  # Windows passes no file descriptors; elsewhere set if the process dies

    def submit(self, snapshot: Snapshot) -> "Future[PngByTag]":
        """The figures of a snapshot as a future; snapshots are drawn in the order of the calls."""
        return self._thread.submit(self._draw, snapshot)

    def close(self) -> None:
        """Wait for all submitted figures and end the process."""
        self._thread.shutdown()
        if self._pipe and self._process:
            self._pipe.close()
            self._process.wait()

    def _draw(self, snapshot: Snapshot) -> PngByTag:
        if self._in_process:
            return render(snapshot)
        try:
            if self._pipe is None:
                self._pipe, self._process = _start()
            self._pipe.send(snapshot)
            answer: PngByTag | Exception = self._pipe.recv()
        except (EOFError, OSError) as error:
            log.warning("The process that draws figures has died (%r); this process draws them from now on.", error)
            self._in_process = True
            return render(snapshot)
        if isinstance(answer, Exception):
            raise answer
        return answer


def shared() -> FigureProcess:
    """The FigureProcess that all runs of this process share, since it takes half a second to start."""
    return _shared_by_pid(os.getpid())


@functools.cache
def _shared_by_pid(pid: int) -> FigureProcess:
    """One for each process ID: a forked child has neither the thread nor the pipe of its parent."""
    process = FigureProcess()
    atexit.register(_close, process, pid)
    return process


def _close(process: FigureProcess, pid: int) -> None:
    if os.getpid() == pid:
        process.close()


def render(snapshot: Snapshot) -> PngByTag:
    """All figures of a snapshot, drawn in this process."""
    from bertmon.monitor import figure_canvas, figures  # matplotlib, which a training process must not import

    drawn = {
        "gradient_depth": figures.gradient_depth(snapshot),
        "gradient_flow": figures.gradient_flow(snapshot),
        "update_ratio": figures.update_ratio(snapshot),
    }
    return {tag: figure_canvas.png(figure) for tag, figure in drawn.items() if figure}


def serve(pipe: Connection) -> None:
    """Answer each snapshot with its figures, or with the exception it caused, until the other end is closed."""
    while True:
        try:
            snapshot = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(render(snapshot))
        except BrokenPipeError:
            return
        except Exception as error:
            pipe.send(error)


def _start() -> tuple[Connection, "subprocess.Popen[bytes]"]:
    connection, child_connection = Pipe()
    command = [sys.executable, "-m", __name__, str(child_connection.fileno())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with child_connection:
        process = subprocess.Popen(
            command,
            pass_fds=[child_connection.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is meant for the runs only
        )
    return connection, process


if __name__ == "__main__":
    os.nice(10)  # training has priority
    serve(Connection(int(sys.argv[1])))
