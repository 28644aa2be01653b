"""A Python with preloaded imports that forks for each start: `python -m MODULE` without the seconds of its imports.

The program is `python warm_python.py SOCKET`. A forked process is like any other, with its own folder, environment,
output, signals and exit code, and imports bertmon's own modules itself. `WarmPython` is the tests' end of the socket.
"""

import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MODULES = (
    "torch",
    "transformers.models.bert.modeling_bert",
    "scipy.stats",
    "hydra._internal.hydra",
    "seaborn",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "torch.utils.tensorboard.writer",
    "rich.console",
    "jinja2",
)
"""Third-party modules that are slow to import. None of them may start a thread."""


class WarmProcess:
    """A forked process, with the methods of subprocess.Popen that tests use; its output goes to files in `folder`."""

    def __init__(self, connection: socket.socket, arguments: Sequence[str], folder: Path) -> None:
        self.args = list(arguments)
        self.returncode: int | None = None
        self._connection = connection
        self._folder = folder
        self.pid = int(self._line(None))

    def _line(self, timeout: float | None) -> str:
        self._connection.settimeout(timeout)
        received = b""
        while not received.endswith(b"\n"):
            part = self._connection.recv(1)
            assert part, "the process that watches this one has died"
            received += part
        return received.decode()

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            try:
                self.returncode = int(self._line(timeout))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._connection.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return (self._folder / "stdout").read_text(), (self._folder / "stderr").read_text()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class WarmPython:
    """The program below, started on first use. folder: for its socket and the output of processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = str(folder / "socket")
        self._program: subprocess.Popen[bytes] | None = None
        self._started = 0

    def start(self, module: str, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> WarmProcess:
        """Start `python -m module arguments`."""
        if self._program is None:
            no_threads = os.environ | {"JE_ARROW_MALLOC_CONF": "background_thread:false"}  # pyarrow's, used by seaborn
            command = [sys.executable, __file__, self._socket]
            self._program = subprocess.Popen(command, stdin=subprocess.PIPE, env=no_threads)
        self._started += 1
        folder = self._folder / str(self._started)
        folder.mkdir()
        request = {"module": module, "arguments": arguments, "cwd": str(cwd), "environment": dict(environment)}
        request |= {"stdout": str(folder / "stdout"), "stderr": str(folder / "stderr")}
        connection = self._connect()
        connection.sendall(json.dumps(request).encode() + b"\n")
        return WarmProcess(connection, [sys.executable, "-m", module, *arguments], folder)

    def close(self) -> None:
        if self._program is not None:
            self._program.communicate()  # closes its standard input

    def _connect(self) -> socket.socket:
        """Connect to the program once its imports are done."""
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self._socket)
                return connection
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
                assert self._program is not None
                assert self._program.poll() is None, "warm_python.py has ended"
                time.sleep(0.02)


def serve(path: str) -> dict[str, Any]:
    """Fork for each connection until standard input ends. Returns the request, in the forked processes."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the watching processes
    while True:
        if sys.stdin in select.select([server, sys.stdin], [], [])[0]:
            os._exit(0)
        connection, _ = server.accept()
        if os.fork() == 0:
            break
        connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    server.close()
    request: dict[str, Any] = json.loads(connection.makefile().readline())
    if process := os.fork():  # the parent watches
        connection.sendall(f"{process}\n".encode())
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        connection.sendall(f"{status}\n".encode())
        os._exit(0)
    connection.close()
    return request


def become(module: str, arguments: list[str], cwd: str, environment: dict[str, str], stdout: str, stderr: str) -> None:
    """Run `python -m module arguments` in this process."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate((os.devnull, stdout, stderr)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    random.seed()
    sys.path[0] = cwd
    sys.argv = [module, *arguments]
    sys.orig_argv = [sys.executable, "-m", module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()  # a collection in a forked process would copy all of it
    threads = os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else ["this one"]
    assert len(threads) == 1, f"a fork copies one thread, and there are {len(threads)}"
    become(**serve(sys.argv[1]))
