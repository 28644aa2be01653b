"""What a run does beside others, in this process."""

import logging
import os
import signal

import pytest
import torch

from bertmon.launch import workers
from bertmon.training.trainer import deferred_signals


def test_every_line_begins_with_the_name_once():
    named = workers._PrefixFormatter("warmup_frac=0.1/seed=0")

    def shown(message):
        return named.format(logging.LogRecord("x", logging.INFO, "x", 1, message, None, None))

    assert shown("step 30: collapsed") == "warmup_frac=0.1/seed=0: step 30: collapsed"
    assert shown("warmup_frac=0.1/seed=0: ok") == "warmup_frac=0.1/seed=0: ok"
    assert shown("Traceback\n  File") == "warmup_frac=0.1/seed=0: Traceback\nwarmup_frac=0.1/seed=0:   File"


def test_workers_spread_over_gpus(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(workers.tempfile, "gettempdir", lambda: str(tmp_path))
    with workers._claim_gpu(2), workers._claim_gpu(2):
        with workers._claim_gpu(2):
            assert taken == [0, 1, 0]
        with workers._claim_gpu(2):
            assert taken == [0, 1, 0, 0]  # the one that was left
    for count in (0, 1):
        with workers._claim_gpu(count):
            assert len(taken) == 4


def came(*numbers):
    """The exceptions that wait after signals, in the order in which fit() sees them."""
    with deferred_signals(True) as signals:
        for number in numbers:
            signal.raise_signal(number)  # at once; of two that os.kill sends to a busy process one may be lost
        return [repr(each) for each in signals]


@pytest.fixture
def handlers():
    """Those of a job of Slurm; in the background of a shell SIGINT would do nothing."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGUSR2: signal.signal(signal.SIGUSR2, lambda number, frame: None),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_slurms_two_signals_both_wait_and_the_one_that_queues_again_comes_first(handlers):
    assert came(signal.SIGTERM, signal.SIGUSR2) == ["TerminatedError(140)", "TerminatedError(143)"]
    assert came(signal.SIGUSR2, signal.SIGTERM) == ["TerminatedError(140)", "TerminatedError(143)"]
    assert came(signal.SIGINT) == ["KeyboardInterrupt()"]
    with pytest.raises(KeyboardInterrupt):
        came(signal.SIGINT, signal.SIGINT)


def test_a_run_that_was_ended_by_submitits_signal_is_queued_again_once_it_is_written():
    told = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: told.append(number))
    try:
        with pytest.raises(SystemExit), workers.parallel_run("run"):
            raise SystemExit(128 + signal.SIGUSR2)
        assert told == [signal.SIGUSR2]
        with pytest.raises(SystemExit), workers.parallel_run("run"):
            raise SystemExit(128 + signal.SIGTERM)
        assert told == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)
        os.environ.pop("TQDM_DISABLE", None)
