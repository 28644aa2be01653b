"""Figures drawn in a separate process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TIMEOUT, bert_snapshot

from bertmon.monitor.figure_process import FigureProcess, render


@pytest.fixture
def process():
    process = FigureProcess()
    yield process
    process.close()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_submitted_figures_equal_those_rendered_in_this_process(process):
    snapshots = [bert_snapshot(2), bert_snapshot(1)]
    figures = [process.submit(snapshot) for snapshot in snapshots]
    assert [each.result() for each in figures] == [render(snapshot) for snapshot in snapshots]


def test_submit_does_not_wait_and_close_waits_for_all_figures(process):
    process.submit(bert_snapshot(1)).result()
    os.kill(process._process.pid, signal.SIGSTOP)  # as slow as a process can be
    figures = [process.submit(bert_snapshot(1)) for _ in range(100)]
    assert not any(each.done() for each in figures)
    os.kill(process._process.pid, signal.SIGCONT)
    process.close()
    assert all(each.done() and each.result() for each in figures)
    assert process._process.returncode == 0


def test_figure_process_that_dies_loses_no_figure(process, caplog):
    snapshot = bert_snapshot(1)
    process.submit(snapshot).result()
    os.kill(process._process.pid, signal.SIGSTOP)
    waiting = [process.submit(snapshot) for _ in range(3)]
    os.kill(process._process.pid, signal.SIGKILL)
    assert [each.result() for each in waiting] == 3 * [render(snapshot)]
    assert process.submit(snapshot).result() == render(snapshot)
    assert [message.partition(" has died")[0] for message in caplog.messages] == ["The process that draws figures"]


def test_error_in_drawing_is_raised_by_the_result(process):
    with pytest.raises(AttributeError, match="'str' object has no attribute 'layers'"):
        process.submit("no snapshot").result()
    assert process.submit(bert_snapshot(1)).result()


def test_figure_process_ends_with_a_parent_that_is_killed():
    code = (
        "from conftest import bert_snapshot\n"
        "from bertmon.monitor import figure_process\n"
        "figure_process.shared().submit(bert_snapshot(1)).result()\n"
        "print(figure_process.shared()._process.pid, flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    ) as parent:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    end = time.monotonic() + TIMEOUT
    while alive(pid):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_draws_in_its_own_process():
    code = (
        "import os, sys\n"
        "from conftest import bert_snapshot\n"
        "from bertmon.monitor import figure_process\n"
        "def draw(): return len(figure_process.shared().submit(bert_snapshot(1)).result())\n"
        "draw()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    draw()\n"
        "    sys.exit()\n"  # atexit does not wait for the parent's process
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), draw())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    child = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert child.stdout.split() == ["0", "2"]


def test_writing_figures_imports_no_matplotlib_in_the_training_process(tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from conftest import bert_snapshot\n"
        "from bertmon.monitor.tensorboard import RunWriter\n"
        "with RunWriter(Path(sys.argv[1])) as writer:\n"
        "    writer.snapshot(bert_snapshot(2))\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "sys.exit(str(loaded & {'matplotlib', 'seaborn', 'pandas'}) if loaded & {'matplotlib', 'seaborn'} else 0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    child = subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, capture_output=True, text=True)
    assert (child.returncode, child.stderr) == (0, "")
