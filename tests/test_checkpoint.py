"""Going on from a checkpoint: bit for bit as if nothing had happened, and nothing is trusted that is not whole."""

import dataclasses
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import unittest.mock

import numpy as np
import pytest
import torch
from faults import content
from safetensors import SafetensorError
from safetensors.torch import save_file

from bertmon import config, model
from bertmon.config import Precision
from bertmon.errors import InputError
from bertmon.monitor.diagnosis import Diagnosis
from bertmon.monitor.history import History
from bertmon.monitor.monitor import Monitor
from bertmon.run import build_task, run_training, seed_everything
from bertmon.training import checkpoint, trainer
from bertmon.training.checkpoint import Checkpoint, CorruptCheckpointError


class EndedError(Exception):
    pass


def begun(settings):
    """Everything that a run has before its first step."""
    corpus, parts = build_task(settings, torch.device("cpu"))
    history = History(trainer.plan_run(settings, len(parts.train), corpus.train.label_entropy()))
    return parts, history, trainer.TrainState()


def trained(settings, parts, history, outcome, points, *, diagnosis=None, keep=None):
    observer = Monitor(model.named_weights(parts.classifier), history, settings.monitor, unittest.mock.Mock())
    observer.diagnosis = diagnosis or observer.diagnosis

    def record(step, values):
        points.update({(tag, step): value for tag, value in values.items()})

    trainer.fit(
        parts,
        settings,
        history,
        observer=observer,
        record=record,
        outcome=outcome,
        name="test",
        keep=keep and (lambda: keep(observer)),
    )
    return observer


def weights(parts):
    return torch.cat([parameter.detach().flatten() for parameter in parts.classifier.parameters()])


@pytest.mark.parametrize("steps", [1, 4, 6, 11])  # 6 is the end of the first epoch, 11 the last step but one
@pytest.mark.parametrize("variant", ["plain", "uncorrected", "bf16", "watched at every step"])
def test_going_on_is_bit_for_bit_the_same(settings, tmp_path, steps, variant):
    settings.optimizer.bias_correction = variant != "uncorrected"
    settings.train.precision = Precision.bf16 if variant == "bf16" else Precision.fp32
    settings.monitor.every = 1 if variant == "watched at every step" else 3
    settings.train.eval_every, settings.train.log_every = 5, 4

    whole, whole_history, whole_outcome = begun(settings)
    whole_points = {}
    whole_observer = trained(settings, whole, whole_history, whole_outcome, whole_points)

    path = tmp_path / checkpoint.CHECKPOINT_FILE
    parts, history, outcome = begun(settings)
    points = {}

    def keep(observer):
        about = {"outcome": dataclasses.asdict(outcome), "diagnosis": dataclasses.asdict(observer.diagnosis)}
        checkpoint.save(path, parts.classifier, parts.optimizer, about, history=history.to_bytes())
        raise EndedError

    settings.train.checkpoint_every = steps
    with pytest.raises(EndedError):
        trained(settings, parts, history, outcome, points, keep=keep)
    settings.train.checkpoint_every = None
    parts, _, _ = begun(settings)
    seed_everything(1234)  # whatever other runs have left behind
    kept = Checkpoint(path)
    kept.restore(parts.classifier, parts.optimizer)
    history, outcome = History.from_bytes(kept.blob("history")), trainer.TrainState.from_dict(kept.about["outcome"])
    assert outcome.steps == steps
    diagnosis = Diagnosis.from_dict(kept.about["diagnosis"])
    observer = trained(settings, parts, history, outcome, points, diagnosis=diagnosis)

    assert torch.equal(weights(parts), weights(whole))
    assert (history.losses, history.grad_norms) == (whole_history.losses, whole_history.grad_norms)
    assert history.snapshots == whole_history.snapshots
    assert points == whole_points
    assert observer.diagnosis == whole_observer.diagnosis
    assert outcome.evaluations == whole_outcome.evaluations
    states = [parts.optimizer.state_dict()["state"], whole.optimizer.state_dict()["state"]]
    for row, state in states[0].items():
        assert all(torch.equal(value, states[1][row][name]) for name, value in state.items())


def test_random_states_come_back(tmp_path):
    layer = torch.nn.Linear(2, 2)
    adamw = torch.optim.AdamW(layer.parameters())
    seed_everything(3)
    random.gauss(0, 1)  # leaves a second number behind for the next call
    np.random.standard_normal()
    checkpoint.save(tmp_path / "c", layer, adamw, {})

    def drawn():
        return [random.gauss(0, 1), random.random(), *np.random.standard_normal(3), *torch.rand(3).tolist()]

    expected = drawn()
    seed_everything(4)
    assert drawn() != expected
    Checkpoint(tmp_path / "c").restore(layer, adamw)
    assert drawn() == expected


def broken_files(whole):
    yield b""
    yield whole[:-1]
    yield whole[: len(whole) // 2]
    yield whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]
    yield whole + b"x"
    yield b"\x80\x04\x95\x00.\x94."  # a pickle
    yield b"\xff" * 8 + whole[8:]  # a huge header
    yield "läuft noch".encode()


def test_a_file_that_is_not_whole_is_named(tmp_path):
    layer = torch.nn.Linear(2, 2)
    checkpoint.save(tmp_path / "whole", layer, torch.optim.AdamW(layer.parameters()), {})
    bad = tmp_path / "bad"
    for broken in broken_files((tmp_path / "whole").read_bytes()):
        bad.write_bytes(broken)
        with pytest.raises(CorruptCheckpointError, match=f"{bad} is (no whole checkpoint|damaged)"):
            Checkpoint(bad)
    save_file({"weight": torch.ones(2)}, bad)  # whole, and somebody else's
    with pytest.raises(CorruptCheckpointError, match="is no whole checkpoint"):
        Checkpoint(bad)
    with pytest.raises(FileNotFoundError):
        Checkpoint(tmp_path / "nowhere")


def test_a_failed_write_leaves_the_last_one(tmp_path, monkeypatch):
    layer = torch.nn.Linear(2, 2)
    adamw = torch.optim.AdamW(layer.parameters())
    checkpoint.save(tmp_path / "c", layer, adamw, {"number": 1})

    def full(tensors, path, metadata):
        path.write_bytes(b"half a checkpo")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path / "c", layer, adamw, {"number": 2})
    assert Checkpoint(tmp_path / "c").about == {"number": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


# --- runs ----------------------------------------------------------------------------------------


def broken_off(settings, folder, monkeypatch, at):
    """A run that dies right after its checkpoint of step `at`, with points behind it in the event file."""
    settings.train.checkpoint_every = 5
    original, died = trainer.evaluate, []

    def die(*arguments, step, **rest):
        if step >= at and not died:
            died.append(step)
            raise KeyboardInterrupt
        return original(*arguments, step=step, **rest)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "evaluate", die)
        with pytest.raises(KeyboardInterrupt):
            run_training(settings, folder, name="run")


def test_a_run_goes_on_where_it_was_broken_off(settings, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    settings.monitor.every, settings.train.log_every = 2, 1
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    run_training(settings, tmp_path / "whole", name="run")
    broken_off(settings, tmp_path / "broken", monkeypatch, at=6)
    assert json.loads((tmp_path / "broken/result.json").read_text())["status"] == "interrupted"
    assert (tmp_path / "broken" / checkpoint.CHECKPOINT_FILE).exists()
    settings.resume = str(tmp_path)
    run_training(settings, tmp_path / "broken", name="run")
    assert "goes on at step 5 of 12" in caplog.text
    result = json.loads((tmp_path / "broken/result.json").read_text())
    assert 0 < result["seconds_before"] < result["seconds"]
    assert result["timings"]["train_seconds"] > result["seconds_before"] / 2
    settings.train.checkpoint_every = None
    assert content(tmp_path / "broken") == content(tmp_path / "whole")
    assert not (tmp_path / "broken" / checkpoint.CHECKPOINT_FILE).exists()

    before = (tmp_path / "broken/result.json").read_bytes()
    accuracy = run_training(settings, tmp_path / "broken", name="run")
    assert "has ended before" in caplog.messages[-1]
    assert accuracy == json.loads(before)["metrics"]["final"]["accuracy"]
    assert (tmp_path / "broken/result.json").read_bytes() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
def test_on_cuda_a_run_goes_on_bit_for_bit_with_deterministic_kernels(settings, tmp_path, monkeypatch, precision):
    settings.device, settings.train.deterministic, settings.train.precision = config.Device.cuda, True, precision
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    settings.train.checkpoint_every = 5
    run_training(settings, tmp_path / "whole", name="run")
    broken_off(settings, tmp_path / "broken", monkeypatch, at=6)
    settings.resume = str(tmp_path)
    run_training(settings, tmp_path / "broken", name="run")
    assert content(tmp_path / "broken") == content(tmp_path / "whole")


def test_a_damaged_checkpoint_is_set_aside_and_the_run_begins_anew(settings, tmp_path, monkeypatch, caplog):
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    settings.train.checkpoint_every = 5
    run_training(settings, tmp_path / "whole", name="run")
    broken_off(settings, tmp_path / "broken", monkeypatch, at=6)
    path = tmp_path / "broken" / checkpoint.CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:-9])
    settings.resume = str(tmp_path)
    run_training(settings, tmp_path / "broken", name="run")
    assert "is no whole checkpoint" in caplog.text
    assert "It is now checkpoint.damaged, and the run begins anew." in caplog.text
    assert content(tmp_path / "broken") == content(tmp_path / "whole")
    assert path.with_suffix(".damaged").exists()


def test_a_full_disk_costs_the_checkpoint_alone(settings, tmp_path, monkeypatch, caplog):
    def full(*arguments, **rest):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    (tmp_path / "run").mkdir()
    settings.train.checkpoint_every = 5
    monkeypatch.setattr(checkpoint, "save_file", full)
    run_training(settings, tmp_path / "run", name="run")
    assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "ok"
    told = [message for message in caplog.messages if "could not be written" in message]
    assert [message.split(":")[0] for message in told] == ["step 5", "step 10"]
    assert told[0].endswith("the last one stands: I/O error: No space left on device (os error 28)")


def test_other_settings_and_other_texts_are_refused(settings, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    broken_off(settings, tmp_path / "run", monkeypatch, at=6)
    settings.resume = str(tmp_path)
    settings.optimizer.lr, settings.seed = 7e-4, 1
    with pytest.raises(
        InputError, match=r"run cannot go on with other settings .*: optimizer\.lr=0\.001 there and 0\.0007 here"
    ):
        run_training(settings, tmp_path / "run", name="run")
    settings.optimizer.lr = 1e-3
    with open(settings.data.test, "a") as file:
        file.write("one more,sea\n")
    with pytest.raises(InputError, match="the texts or labels are not those that this run was begun with"):
        run_training(settings, tmp_path / "run", name="run")
    assert (tmp_path / "run" / checkpoint.CHECKPOINT_FILE).exists()


def test_two_processes_never_share_a_run(settings, tmp_path):
    (tmp_path / "run").mkdir()
    holder = subprocess.Popen(["flock", str(tmp_path / "run/.lock"), "sleep", "60"])
    try:
        time.sleep(0.5)
        settings.resume = str(tmp_path)
        with pytest.raises(InputError, match="run: another process is running this run"):
            run_training(settings, tmp_path / "run", name="run")
    finally:
        holder.kill()
        holder.wait()


# --- the program ---------------------------------------------------------------------------------

SWEEP = ["schedule.warmup_frac=0.1,0.7", "-m", "train.checkpoint_every=5", "train.epochs=8", "hydra.sweep.dir=sweep"]


def test_a_sweep_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(bertmon, files, tmp_path):
    whole = bertmon(*SWEEP[:-1], "hydra.sweep.dir=whole", *files)
    assert whole.returncode == 0, whole.stderr
    rng, killed = random.Random(0), 0
    again = []
    for _ in range(20):
        running = bertmon(*SWEEP, *again, *files, wait=False)
        again = ["resume=sweep"] if (tmp_path / "sweep/sweep.json").exists() else []
        try:
            running.communicate(timeout=rng.uniform(4.0, 7.0) if killed < 6 else 300)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            running.communicate()
            killed += 1
            again = ["resume=sweep"] if (tmp_path / "sweep/sweep.json").exists() else []
        else:
            break
    assert killed > 2
    assert running.returncode == 0
    for name in ("warmup_frac=0.1/seed=0", "warmup_frac=0.7/seed=0"):
        assert content(tmp_path / "sweep" / name) == content(tmp_path / "whole" / name)
    refused = bertmon(*SWEEP, *again, *files, "optimizer.lr=1e-4")
    assert refused.returncode == 1
    assert "cannot go on with other settings than it was begun with: optimizer.lr=0.00055 there and 0.0001 here" in (
        refused.stderr
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint(bertmon, files, tmp_path, number):
    long = ["hydra.run.dir=run", "train.epochs=100000", *files]
    running = bertmon(*long, wait=False)
    log = tmp_path / "run" / "run.log"
    deadline = time.monotonic() + 120
    while not (log.exists() and "step 5 " in log.read_text()):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    running.send_signal(number)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 128 + number
    assert "ending after this step, with a checkpoint; once more ends at once" in output
    steps = json.loads((tmp_path / "run/result.json").read_text())["steps"]
    kept = Checkpoint(tmp_path / "run" / checkpoint.CHECKPOINT_FILE)
    assert kept.about["outcome"]["steps"] == steps
    assert not math.isnan(steps)
    assert os.listdir(tmp_path / "run").count(checkpoint.CHECKPOINT_FILE) == 1

    again = bertmon(*long, "resume=run", wait=False)
    while f"goes on at step {steps} of 500000" not in log.read_text():
        assert again.poll() is None, again.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    again.kill()
    again.communicate()


def test_the_command_that_goes_on(bertmon, files, tmp_path):
    begun = ["schedule.warmup_frac=0.1,0.7", "-m", "train.epochs=2", "hydra.sweep.dir=sweep", *files]
    assert bertmon(*begun).returncode == 0
    second = tmp_path / "sweep/warmup_frac=0.7/seed=0"
    expected = content(second)
    shutil.rmtree(second)  # it has never started
    first = (tmp_path / "sweep/warmup_frac=0.1/seed=0/result.json").stat().st_mtime_ns
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""}

    def resume(*folders):
        command = [sys.executable, "-m", "bertmon", "resume", *map(str, folders)]
        return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=300)

    done = resume(tmp_path / "sweep")
    assert done.returncode == 0, done.stderr
    assert "warmup_frac=0.1/seed=0: has ended before (ok, " in done.stdout
    assert content(second) == expected
    assert (tmp_path / "sweep/warmup_frac=0.1/seed=0/result.json").stat().st_mtime_ns == first

    assert resume(tmp_path).stderr == f"{tmp_path} is no launch: there is no whole sweep.json in it.\n"
    assert "usage: bertmon resume FOLDER" in resume().stderr
    plan = json.loads((tmp_path / "sweep/sweep.json").read_text())
    (tmp_path / "sweep/sweep.json").write_text(json.dumps(plan | {"directory": "/nowhere"}))
    assert "was started in /nowhere, which is not there any more" in resume(tmp_path / "sweep").stderr


def test_two_launches_at_once_do_not_share_runs(bertmon, files, tmp_path):
    command = ["schedule.warmup_frac=0.1,0.7", "-m", "train.epochs=1", "hydra.sweep.dir=sweep", *files]
    both = [bertmon(*command, wait=False) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 1]
    _, refused = outputs[codes.index(1)]
    way = "go on with it by resume=sweep, or give another folder"
    assert refused == f"sweep holds a launch with warmup_frac=0.1/seed=0 already: {way}.\n"
    statuses = [json.loads(path.read_text())["status"] for path in (tmp_path / "sweep").rglob("result.json")]
    assert statuses == ["ok", "ok"]
    more = bertmon("schedule.warmup_frac=0.3,0.5", *command[1:])  # other runs may join
    assert more.returncode == 0
    plan = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert plan["runs"] == [f"warmup_frac={warmup}/seed=0" for warmup in (0.1, 0.7, 0.3, 0.5)]
