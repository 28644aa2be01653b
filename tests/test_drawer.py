"""Figures drawn in a process of their own."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import bert_snapshot

from bertmon.monitor.figure_process import FigureProcess, render


@pytest.fixture
def drawer():
    drawer = FigureProcess()
    yield drawer
    drawer.close()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_pictures_are_those_drawn_here(drawer):
    snapshots = [bert_snapshot(2), bert_snapshot(1)]
    drawn = [drawer.draw(snapshot) for snapshot in snapshots]
    assert [each.result() for each in drawn] == [render(snapshot) for snapshot in snapshots]


def test_asking_waits_for_nothing_and_closing_for_everything(drawer):
    drawer.draw(bert_snapshot(1)).result()
    os.kill(drawer._process.pid, signal.SIGSTOP)  # the slowest of all drawers
    drawn = [drawer.draw(bert_snapshot(1)) for _ in range(100)]
    assert not any(each.done() for each in drawn)
    os.kill(drawer._process.pid, signal.SIGCONT)
    drawer.close()
    assert all(each.done() and each.result() for each in drawn)
    assert drawer._process.returncode == 0


def test_a_process_that_dies_costs_no_picture(drawer, caplog):
    snapshot = bert_snapshot(1)
    drawer.draw(snapshot).result()
    os.kill(drawer._process.pid, signal.SIGSTOP)
    waiting = [drawer.draw(snapshot) for _ in range(3)]
    os.kill(drawer._process.pid, signal.SIGKILL)
    assert [each.result() for each in waiting] == 3 * [render(snapshot)]
    assert drawer.draw(snapshot).result() == render(snapshot)
    assert [record.getMessage().partition(" has died")[0] for record in caplog.records] == [
        "The process that draws figures"
    ]


def test_a_mistake_in_drawing_is_not_lost(drawer):
    with pytest.raises(TypeError, match="string indices"):
        drawer.draw("no snapshot").result()
    assert drawer.draw(bert_snapshot(1)).result()


def test_no_process_stays_behind_one_that_is_killed():
    code = (
        "from conftest import bert_snapshot\n"
        "from bertmon.monitor import drawer\n"
        "drawer.shared().draw(bert_snapshot(1)).result()\n"
        "print(drawer.shared()._process.pid, flush=True)\n"
        "input()\n"
    )
    tests = os.path.dirname(__file__)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": tests},
    ) as parent:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    wait_until(lambda: not alive(pid))
