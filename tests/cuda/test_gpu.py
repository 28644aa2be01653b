"""The CUDA path on a GPU, if there is one; benchmarks/cuda_validation.py checks much more."""

import pytest
import torch
from conftest import write_texts
from cuda_parts import check_waits, replaced, set_sync_debug

from bertmon.config import Precision
from bertmon.training.step import GuardedUpdate

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    # torch warns once, from the thread of the first backward pass
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS, but there was no current CUDA context"),
]


@pytest.fixture
def long_batches(settings, tmp_path):
    """More than 3,072 tokens per batch: the embedding's backward pass then sorts them, which could wait."""
    settings.data.train = str(write_texts(tmp_path / "long.csv", 600, seed=3))
    settings.data.bucket_lengths = [32]
    settings.train.batch_size, settings.train.epochs, settings.train.log_every = 100, 1, 100
    settings.monitor.every = 3
    return settings


@pytest.mark.parametrize("precision", list(Precision))
def test_host_waits_for_the_gpu_only_when_reading_a_step(long_batches, precision):
    long_batches.train.precision = precision
    assert check_waits(long_batches) is None
    assert torch.cuda.get_sync_debug_mode() == 0  # else every later test would fail at its first wait


def test_planted_wait_is_an_error(long_batches):
    update = GuardedUpdate.update
    with replaced(GuardedUpdate, "update", lambda self, loss, lr: (loss.item(), update(self, loss, lr))[1]):
        assert "synchronizing" in check_waits(long_batches)
    set_sync_debug("default")
