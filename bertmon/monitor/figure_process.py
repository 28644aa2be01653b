"""Figures drawn in a separate process, so that no training step waits for matplotlib.

`FigureProcess.submit` takes a snapshot and returns its figures as a future. A process that falls behind costs only a
queue of snapshots, which the history holds anyway. If the process dies, figures are drawn in this one from then on.
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
    """One process that draws, started with the first figure. It ends with `close`, or when this process ends."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "figures")  # waits for the process, so that nothing else has to
        self._pipe: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._in_process = os.name == "nt"  # Windows passes no file descriptors; elsewhere: the process has died

    def submit(self, snapshot: Snapshot) -> "Future[PngByTag]":
        """The figures of a snapshot, once they are drawn, in the order of the calls."""
        return self._thread.submit(self._draw, snapshot)

    def close(self) -> None:
        """Wait for all figures submitted, and end the process."""
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
    """The one of this process, for all its runs: it takes half a second to start."""
    return _of_process(os.getpid())


@functools.cache
def _of_process(pid: int) -> FigureProcess:
    """A forked child has neither the thread nor the pipe of its parent's."""
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
    """Answer each snapshot with its figures, or with the exception it caused, until the other side is gone."""
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
    here, there = Pipe()
    command = [sys.executable, "-m", __name__, str(there.fileno())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with there:
        process = subprocess.Popen(
            command,
            pass_fds=[there.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the runs
        )
    return here, process


if __name__ == "__main__":
    os.nice(10)  # training goes first
    serve(Connection(int(sys.argv[1])))
