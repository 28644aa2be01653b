"""Checkpoints: training resumes bit for bit, and a file that is not complete is refused."""

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from conftest import PreparedRun, RecordingLog
from safetensors import SafetensorError
from safetensors.torch import save_file

from bertmon.config import Precision
from bertmon.metrics import EvalResult
from bertmon.monitor.history import History
from bertmon.result import Status
from bertmon.training import checkpoint
from bertmon.training.checkpoint import Checkpoint, CheckpointMetadata, CorruptCheckpointError, save_checkpoint
from bertmon.training.state import TrainState
from bertmon.training.task import seed_everything


def metadata(steps=0):
    return CheckpointMetadata({}, "fingerprint", TrainState(steps=steps), {"logged_steps": steps}, {})


@pytest.fixture
def layer():
    """A layer and its optimizer."""
    linear = torch.nn.Linear(2, 2)
    return linear, torch.optim.AdamW(linear.parameters())


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("steps", [1, 4, 6, 11])  # 6 is the end of the first epoch, 11 the last step but one
@pytest.mark.parametrize("variant", ["plain", "uncorrected", "bf16", "watched at every step", "not watched"])
def test_training_resumed_from_a_checkpoint_is_unchanged_bit_for_bit(settings, tmp_path, steps, variant):
    settings.optimizer.bias_correction = variant != "uncorrected"
    settings.train.precision = Precision.bf16 if variant == "bf16" else Precision.fp32
    settings.monitor.every = 1 if variant == "watched at every step" else 3
    settings.monitor.enabled = variant != "not watched"
    settings.train.eval_every, settings.train.log_every = 5, 4
    full = PreparedRun(settings).fit()

    path = tmp_path / checkpoint.CHECKPOINT_FILE
    log = RecordingLog()
    first = PreparedRun(settings, log=log)

    def save_and_stop():
        state = CheckpointMetadata({}, "", first.state, first.monitor.state_dict(), {})
        save_checkpoint(path, first.task.classifier, first.task.optimizer, state, first.history.to_bytes())
        raise StoppedError

    settings.train.checkpoint_every = steps
    with pytest.raises(StoppedError):
        first.fit(save_and_stop)
    settings.train.checkpoint_every = None

    stored = Checkpoint(path)
    resumed = PreparedRun(settings, history=History.from_bytes(stored.history), log=log)
    seed_everything(1234)  # like other runs in between
    stored.restore(resumed.task.classifier, resumed.task.optimizer)
    resumed.monitor.load_state_dict(stored.metadata.monitor)
    resumed.state = stored.metadata.state
    assert resumed.state.steps == steps
    resumed.fit()

    assert torch.equal(resumed.weights(), full.weights())
    assert (resumed.history.losses, resumed.history.grad_norms) == (full.history.losses, full.history.grad_norms)
    assert resumed.history.snapshots == full.history.snapshots
    assert (log.points, log.texts, log.snapshots) == (full.log.points, full.log.texts, full.log.snapshots)
    assert resumed.monitor.diagnosis == full.monitor.diagnosis
    assert (resumed.state.status, resumed.state.evaluations) == (full.state.status, full.state.evaluations)
    moments, expected = (run.task.optimizer.state_dict()["state"] for run in (resumed, full))
    assert moments.keys() == expected.keys()
    for row, state in moments.items():
        assert all(torch.equal(value, expected[row][name]) for name, value in state.items())


def test_checkpoint_restores_random_states(tmp_path, layer):
    seed_everything(3)
    random.gauss(0, 1)  # stores a second number for the next call
    np.random.standard_normal()
    save_checkpoint(tmp_path / "c", *layer, metadata(), b"history")

    def draw():
        return [random.gauss(0, 1), random.random(), *np.random.standard_normal(3), *torch.rand(3).tolist()]

    expected = draw()
    seed_everything(4)
    assert draw() != expected
    Checkpoint(tmp_path / "c").restore(*layer)
    assert draw() == expected


def test_checkpoint_metadata_and_history_are_restored_unchanged(tmp_path, layer):
    evaluations = [EvalResult(3, 1.5, 0.25, 0.5, -0.25, ((1, 2), (3, 4))), EvalResult(6, math.inf, 0.5, 0.25, 0.0)]
    state = TrainState(
        Status.running, 6, evaluations, evaluations[:1], train_seconds=1.5, eval_seconds=0.5, compile_seconds=0.25
    )
    stored = CheckpointMetadata({"optimizer.lr": 1e-3, "seed": 0}, "f" * 64, state, {"logged_steps": 5}, {"a": [1, 2]})
    save_checkpoint(tmp_path / "c", *layer, stored, b"\x00\xff history")
    loaded = Checkpoint(tmp_path / "c")
    assert loaded.metadata == stored
    assert loaded.metadata.state.status is Status.running
    assert loaded.history == b"\x00\xff history"


def corrupt_files(content):
    yield b""
    yield content[:-1]
    yield content[: len(content) // 2]
    yield content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]
    yield content + b"x"
    yield content.replace(b"fingerprint", b"fingerprinz")  # metadata that does not match its hash
    yield b"\x80\x04\x95\x00.\x94."  # a pickle
    yield b"\xff" * 8 + content[8:]  # a huge header
    yield "läuft noch".encode()


def test_corrupt_checkpoint_is_named(tmp_path, layer):
    save_checkpoint(tmp_path / "full", *layer, metadata(), b"history")
    bad = tmp_path / "bad"
    for content in corrupt_files((tmp_path / "full").read_bytes()):
        bad.write_bytes(content)
        with pytest.raises(CorruptCheckpointError, match=f"^{bad}: corrupt checkpoint"):
            Checkpoint(bad)
    save_file({"weight": torch.ones(2)}, bad)  # a complete file of another program
    with pytest.raises(CorruptCheckpointError, match="corrupt checkpoint"):
        Checkpoint(bad)
    with pytest.raises(CorruptCheckpointError, match="not a file"):
        Checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError):
        Checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("change", [{"state": None}, {"state": {"steps": 1}}, {"more": 1}])
def test_checkpoint_metadata_of_invalid_fields_raises_an_error_that_readers_catch(change):
    fields = dataclasses.asdict(metadata()) | change
    with pytest.raises((KeyError, TypeError, ValueError)):
        CheckpointMetadata.from_dict(fields)


def test_failed_write_of_a_checkpoint_leaves_the_previous_one(tmp_path, layer, monkeypatch):
    save_checkpoint(tmp_path / "c", *layer, metadata(steps=1), b"history")

    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half a checkpo")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "c", *layer, metadata(steps=2), b"history")
    assert Checkpoint(tmp_path / "c").metadata.state.steps == 1
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_tied_weights_are_restored(tmp_path):
    def model():
        tied = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
        tied[1].weight = tied[0].weight
        return tied, torch.optim.AdamW(tied.parameters())

    saved, other = model(), model()
    save_checkpoint(tmp_path / "checkpoint", *saved, metadata(), b"history")
    Checkpoint(tmp_path / "checkpoint").restore(*other)
    for name, value in saved[0].state_dict().items():
        assert torch.equal(other[0].state_dict()[name], value)
    assert other[0][1].weight is other[0][0].weight
