"""Signals that wait for the end of a step."""

import os
import signal
import threading

import pytest

from bertmon.result import Terminated
from bertmon.training.signals import deferred_signals


@pytest.fixture
def handlers():
    """Handlers as the command line sets them; those of the tests are restored afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)}

    def terminate(number, frame):
        raise Terminated(128 + number)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, terminate)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated), (signal.SIGUSR1, Terminated)]
)
def test_first_signal_is_deferred_and_the_second_acts(handlers, caplog, number, kind):
    caplog.set_level("INFO")
    before = signal.getsignal(number)
    with deferred_signals(True) as pending:
        send(number)
        assert [type(each) for each in pending] == [kind]
        with pytest.raises(kind):
            send(number)
    assert caplog.messages == [
        "Saving a checkpoint and stopping after this step; press Ctrl-C again to stop immediately"
    ]
    assert signal.getsignal(number) is before
    if kind is Terminated:
        assert pending[0].code == 128 + number


def test_requeue_signal_comes_first(handlers):
    with deferred_signals(True) as pending:
        send(signal.SIGTERM)  # Slurm sends both
        send(signal.SIGUSR1)
        assert [each.code - 128 for each in pending] == [signal.SIGUSR1, signal.SIGTERM]


@pytest.fixture
def default_handlers():
    """The handlers that a process starts with, regardless of other tests."""
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signal_without_a_handler_is_left_alone(default_handlers):
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGHUP)}
    with deferred_signals(True):
        assert {number: signal.getsignal(number) for number in before} == before
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_signals_without_checkpoints_are_left_alone():
    before = signal.getsignal(signal.SIGINT)
    with deferred_signals(False) as pending:
        assert signal.getsignal(signal.SIGINT) is before
    assert pending == []


def test_signals_outside_the_main_thread_are_left_alone():
    seen = []

    def body():
        with deferred_signals(True) as pending:
            seen.append((signal.getsignal(signal.SIGINT), pending))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(before, [])]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ignored_signal_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with deferred_signals(True) as pending:
            send(number)
            assert pending == []
    finally:
        signal.signal(number, before)
