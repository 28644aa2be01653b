"""Figures drawn in a process of their own, so that no step waits for matplotlib.

`Drawer.draw` takes a snapshot and hands out its pictures as a future. A drawer that falls behind costs no memory but a
queue of snapshots, which the history holds anyway; whoever asks for the last picture waits for it. A process that dies
is told, and the figures are drawn in this one from then on.
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
    """One process that draws, started with the first figure. It ends with `close`, or when this process has ended."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "drawer")  # waits for the process, so that nobody else has to
        self._pipe: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._in_process = False  # the process has died

    def submit(self, snapshot: Snapshot) -> "Future[PngByTag]":
        """The figures of a snapshot, once they are drawn. They come in the order in which they were asked for."""
        return self._thread.submit(self._draw, snapshot)

    def close(self) -> None:
        """Wait for what was asked for, and end the process."""
        self._thread.shutdown()
        if self._pipe and self._process:
            self._pipe.close()
            self._process.wait()

    def _draw(self, snapshot: Snapshot) -> PngByTag:
        try:
            if self._in_process:
                return render(snapshot)
            if self._pipe is None:
                self._pipe, self._process = _start()
            self._pipe.send(snapshot)
            answer: PngByTag | Exception = self._pipe.recv()
        except (EOFError, OSError) as error:
            log.warning(f"The process that draws figures has died ({error!r}); they are drawn in this one now.")
            self._in_process = True
            return render(snapshot)
        if isinstance(answer, Exception):
            raise answer
        return answer


@functools.cache
def shared() -> FigureProcess:
    """The one of this process, for all its runs: it takes half a second to start."""
    drawer = FigureProcess()
    atexit.register(drawer.close)
    return drawer


def render(snapshot: Snapshot) -> PngByTag:
    """Both figures of a snapshot, drawn here and now."""
    from bertmon.monitor import figures  # matplotlib, which the training process needs for nothing else

    drawn = {"gradient_flow": figures.gradient_flow(snapshot), "update_ratio": figures.update_ratio(snapshot)}
    return {tag: figures.png(figure) for tag, figure in drawn.items()}


def serve(pipe: Connection) -> None:
    """Answer each snapshot with its pictures, or with the exception that came of it, until the other side is gone."""
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
