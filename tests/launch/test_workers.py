import logging
import os
import signal
import time

import pytest
import torch

from bertmon.launch import workers
from bertmon.storage import exclusive
from bertmon.training.signals import deferred_signals


def test_prefix_formatter_names_every_line_once():
    formatter = workers._PrefixFormatter("warmup_frac=0.1/seed=0")

    def formatted(message):
        return formatter.format(logging.LogRecord("x", logging.INFO, "x", 1, message, None, None))

    assert formatted("step 30: collapsed") == "warmup_frac=0.1/seed=0: step 30: collapsed"
    assert formatted("warmup_frac=0.1/seed=0: ok") == "warmup_frac=0.1/seed=0: ok"
    assert formatted("Traceback\n  File") == "warmup_frac=0.1/seed=0: Traceback\nwarmup_frac=0.1/seed=0:   File"


def test_claim_gpu_takes_the_one_with_the_fewest_workers(tmp_path, monkeypatch):
    devices = []
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(workers.tempfile, "gettempdir", lambda: str(tmp_path))
    with workers._claim_gpu(2), workers._claim_gpu(2):
        with workers._claim_gpu(2):
            assert devices == [0, 1, 0]
        with workers._claim_gpu(2):
            assert devices == [0, 1, 0, 0]  # the one that was released
    for count in (0, 1):
        with workers._claim_gpu(count):
            assert len(devices) == 4


def pending_after(*numbers):
    """Names and codes of the exceptions pending after the signals, in order."""
    with deferred_signals(True) as pending:
        for number in numbers:
            signal.raise_signal(number)  # synchronous; os.kill can lose one of two to a busy process
        return [repr(each) for each in pending]


@pytest.fixture
def handlers():
    """Handlers as in a Slurm job; a background process of a shell would ignore SIGINT."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGUSR2: signal.signal(signal.SIGUSR2, lambda number, frame: None),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_deferred_signals_put_the_requeue_signal_first(handlers):
    assert pending_after(signal.SIGTERM, signal.SIGUSR2) == ["Terminated(140)", "Terminated(143)"]
    assert pending_after(signal.SIGUSR2, signal.SIGTERM) == ["Terminated(140)", "Terminated(143)"]
    assert pending_after(signal.SIGINT) == ["KeyboardInterrupt()"]
    with pytest.raises(KeyboardInterrupt):
        pending_after(signal.SIGINT, signal.SIGINT)


def test_parallel_run_reraises_submitits_signal_at_the_end():
    received = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: received.append(number))
    try:
        with pytest.raises(SystemExit), workers.parallel_run("run"):
            raise SystemExit(128 + signal.SIGUSR2)
        assert received == [signal.SIGUSR2]
        with pytest.raises(SystemExit), workers.parallel_run("run"):
            raise SystemExit(128 + signal.SIGTERM)
        assert received == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)
        os.environ.pop("TQDM_DISABLE", None)


def test_run_in_the_launching_process_keeps_its_signals(monkeypatch, tmp_path):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    try:
        workers.drain_pool_on_signal(tmp_path)
        drained = [signal.getsignal(number) for number in numbers]
        with workers.joblib_worker():
            assert [signal.getsignal(number) for number in numbers] == drained
        assert [signal.getsignal(number) for number in numbers] == drained
        begin = time.monotonic()
        with exclusive(tmp_path / ".lock", "running"), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert time.monotonic() - begin < 30  # it would wait a minute if another process had a run
    finally:
        monkeypatch.delenv("BERTMON_LAUNCHER_PID", raising=False)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
