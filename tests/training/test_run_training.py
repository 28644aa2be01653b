"""Complete runs: the files in their folders, resuming, refusals, and a full disk."""

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import completed, interrupt, interrupt_run, wait_until
from fault_injection import RunContent
from google.protobuf.json_format import MessageToDict
from safetensors import SafetensorError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from bertmon import config
from bertmon.config import OnBehind, OnDoomed, Precision, SaveModel
from bertmon.errors import InputError, StorageError
from bertmon.monitor.diagnosis import Verdict
from bertmon.monitor.history import HISTORY_FILE, History
from bertmon.monitor.monitor import Monitor
from bertmon.result import RESULT_FILE, RunResult, Status
from bertmon.training import checkpoint, trainer
from bertmon.training import run_training as run_training_module
from bertmon.training.checkpoint import CHECKPOINT_FILE, Checkpoint
from bertmon.training.run_training import run_training


@pytest.fixture
def plain(tmp_path):
    """The folder of an uninterrupted run."""
    (tmp_path / "plain").mkdir()
    return tmp_path / "plain"


@pytest.fixture
def broken(tmp_path):
    """The folder of a run that is interrupted."""
    (tmp_path / "broken").mkdir()
    return tmp_path / "broken"


# --- results -------------------------------------------------------------------------------------


def test_finished_run_returns_the_result_in_its_folder(settings, plain):
    result = run_training(settings, plain, name="run", overrides={"schedule.warmup_frac": "0.25", "model": "tiny"})
    assert result == RunResult.read_ended(plain)
    assert (result.status, result.steps, result.total_steps) == (Status.finished, 12, 12)
    assert result.overrides == {"schedule.warmup_frac": 0.25, "model": "tiny"}
    assert (result.seed, result.config["optimizer"]["lr"]) == (1, 1e-3)
    assert (result.data.train_texts, result.data.test_texts, result.data.majority_share) == (44, 10, 0.5)
    assert [each.step for each in result.evaluations] == [0, 6, 12]
    assert result.objective == result.final.accuracy
    assert result.seconds >= sum(result.timings[key] for key in ("train_seconds", "eval_seconds")) > 0
    history = History.load(plain / HISTORY_FILE)
    assert (len(history.losses), [shot.step for shot in history.snapshots]) == (12, [0])
    assert not (plain / CHECKPOINT_FILE).exists()


def test_new_run_keeps_other_event_files_in_its_folder(settings, plain):
    (plain / "events.out.tfevents.1.other").write_bytes(b"theirs")
    run_training(settings, plain, name="run")
    assert (plain / "events.out.tfevents.1.other").read_bytes() == b"theirs"


def test_ended_run_that_still_has_its_checkpoint_is_not_trained_again(settings, plain, monkeypatch):
    run_training(settings, plain, name="run")
    leftovers = [plain / CHECKPOINT_FILE, plain / f".{CHECKPOINT_FILE}.x1"]
    for path in leftovers:
        path.touch()
    settings.resume = str(plain)
    monkeypatch.setattr("bertmon.training.run_training.build_task", None)
    assert run_training(settings, plain, name="run").status is Status.finished
    assert not any(path.exists() for path in leftovers)


def test_comparing_with_the_sweep_is_refused_in_several_processes(settings, plain, monkeypatch):
    settings.monitor.on_behind = OnBehind.stop
    monkeypatch.setattr("bertmon.training.run_training.distributed.world_size", lambda: 2)
    with pytest.raises(InputError, match=r"monitor\.on_behind: expected ignore in several processes, got stop"):
        run_training(settings, plain, name="run")


def test_run_outside_of_a_sweep_has_its_main_settings_in_the_hparams_table(settings, plain):
    settings.optimizer.bias_correction = False
    run_training(settings, plain, name="run")
    events = EventAccumulator(str(plain)).Reload()
    start = HParamsPluginData.FromString(events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    columns = {key: MessageToDict(value) for key, value in start.session_start_info.hparams.items()}
    expected = {"model.num_hidden_layers": 2, "train.batch_size": 8, "optimizer.lr": 1e-3, "seed": 1}
    expected |= {"optimizer.bias_correction": False, "schedule.warmup_frac": 0.25}
    assert expected.items() <= columns.items()
    assert "data.train" not in columns


def test_run_with_monitor_off_has_losses_and_no_verdict(settings, plain):
    settings.monitor.enabled = False
    result = run_training(settings, plain, name="run")
    assert result.diagnosis is None
    assert json.loads((plain / RESULT_FILE).read_text())["verdict"] is None
    history = History.load(plain / HISTORY_FILE)
    assert (len(history.losses), history.snapshots) == (12, [])
    assert set(RunContent.read(plain).scalars) >= {"loss/train", "grad_norm", "loss/test", "accuracy/test"}


def test_run_whose_training_raises_writes_its_history_and_the_error(settings, plain, monkeypatch):
    evaluate = trainer.evaluate

    def fail(*args, step, **options):
        if step:
            raise ZeroDivisionError("the cat")
        return evaluate(*args, step=step, **options)

    monkeypatch.setattr(trainer, "evaluate", fail)
    with pytest.raises(ZeroDivisionError):
        run_training(settings, plain, name="run")
    result = RunResult.read(plain)
    assert (result.status, result.error) == (Status.failed, "ZeroDivisionError: the cat")
    assert len(History.load(plain / HISTORY_FILE).losses) == 6
    assert result.diagnosis.verdict is Verdict.undecided


# --- resuming ------------------------------------------------------------------------------------


def test_resumed_run_writes_the_files_of_an_uninterrupted_one(settings, plain, broken, monkeypatch, caplog):
    caplog.set_level("INFO")
    settings.monitor.every, settings.train.log_every = 2, 1
    run_training(settings, plain, name="run")
    interrupt_run(settings, broken, monkeypatch, at=6)
    assert RunResult.read(broken).status is Status.interrupted
    assert (broken / CHECKPOINT_FILE).exists()
    settings.resume = str(broken.parent)
    run_training(settings, broken, name="run")
    assert "resuming at step 5 of 12" in caplog.text
    result = RunResult.read_ended(broken)
    assert 0 < result.previous_seconds < result.seconds
    assert result.timings["train_seconds"] > result.previous_seconds / 2
    assert RunContent.read(broken) == RunContent.read(plain)
    assert not (broken / CHECKPOINT_FILE).exists()

    before = (broken / RESULT_FILE).read_bytes()
    assert run_training(settings, broken, name="run") == result
    accuracy = f"{100 * result.final.accuracy:.1f} %"
    assert caplog.messages[-1] == f"run: already finished (finished, accuracy/test {accuracy}), skipped"
    assert (broken / RESULT_FILE).read_bytes() == before


def run_into_interrupt(settings, run_dir, monkeypatch, evaluate):
    """Run with `evaluate`, which sends a signal, instead of trainer.evaluate."""
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", evaluate)
        with pytest.raises(KeyboardInterrupt):
            run_training(settings, run_dir, name="run")


@pytest.mark.parametrize("in_validation", [False, True])
@pytest.mark.parametrize("at", [0, 5, 10])
def test_run_interrupted_in_an_evaluation_repeats_it_when_resumed(
    settings, plain, broken, monkeypatch, at, in_validation
):
    settings.train.checkpoint_every, settings.train.save_model = 100, SaveModel.best
    settings.data.validation_frac = 0.2
    run_training(settings, plain, name="run")
    evaluate, calls = trainer.evaluate, []

    def send_signal(*arguments, step, **options):
        calls.append(step)
        if step == at and calls.count(at) == 1 + in_validation:
            signal.raise_signal(signal.SIGINT)
        return evaluate(*arguments, step=step, **options)

    run_into_interrupt(settings, broken, monkeypatch, send_signal)
    assert RunResult.read(broken).status is Status.interrupted
    assert [each.step for each in RunResult.read(broken).evaluations] == [step for step in (0, 5, 10) if step < at]
    settings.resume = str(broken.parent)
    assert run_training(settings, broken, name="run").status is Status.finished
    assert RunContent.read(broken) == RunContent.read(plain)
    for name in ("config.json", "model.safetensors"):
        assert (broken / "model" / name).read_bytes() == (plain / "model" / name).read_bytes()


def test_run_interrupted_while_it_saves_its_last_model_finishes_when_resumed(settings, plain, broken, monkeypatch):
    settings.train.checkpoint_every, settings.train.save_model = 100, SaveModel.last
    run_training(settings, plain, name="run")
    save_model = run_training_module.save_model

    def send_signal(*arguments):
        signal.raise_signal(signal.SIGINT)
        save_model(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(run_training_module, "save_model", send_signal)
        with pytest.raises(KeyboardInterrupt):
            run_training(settings, broken, name="run")
    assert RunResult.read(broken).status is Status.interrupted
    settings.resume = str(broken.parent)
    assert run_training(settings, broken, name="run").status is Status.finished
    assert RunContent.read(broken) == RunContent.read(plain)
    assert (broken / "model" / "model.safetensors").read_bytes() == (plain / "model" / "model.safetensors").read_bytes()


def test_early_stop_interrupted_in_its_deciding_evaluation_happens_when_resumed(settings, plain, broken, monkeypatch):
    settings.train.patience, settings.train.checkpoint_every, settings.train.eval_every = 1, 100, 3
    evaluate = trainer.evaluate

    def flat(*arguments, step, **options):  # no evaluation is better than the one before
        return dataclasses.replace(evaluate(*arguments, step=step, **options), accuracy=0.5)

    def send_signal(*arguments, step, **options):
        if step == 6:
            signal.raise_signal(signal.SIGINT)
        return flat(*arguments, step=step, **options)

    monkeypatch.setattr(trainer, "evaluate", flat)
    assert run_training(settings, plain, name="run").steps == 6
    run_into_interrupt(settings, broken, monkeypatch, send_signal)
    settings.resume = str(broken.parent)
    result = run_training(settings, broken, name="run")
    assert (result.status, result.steps) == (Status.finished, 6)
    assert RunContent.read(broken) == RunContent.read(plain)


def test_doomed_run_interrupted_in_its_last_evaluation_repeats_it_when_resumed(settings, plain, broken, monkeypatch):
    settings.train.checkpoint_every, settings.monitor.on_doomed, settings.train.log_every = 100, OnDoomed.stop, 1
    monkeypatch.setattr(Monitor, "doomed", property(lambda self: len(self.history.losses) == 4))
    assert run_training(settings, plain, name="run").status is Status.stopped
    evaluate = trainer.evaluate

    def send_signal(*arguments, step, **options):
        if step:
            signal.raise_signal(signal.SIGINT)
        return evaluate(*arguments, step=step, **options)

    run_into_interrupt(settings, broken, monkeypatch, send_signal)
    settings.resume = str(broken.parent)
    assert run_training(settings, broken, name="run").status is Status.stopped
    assert RunContent.read(broken) == RunContent.read(plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
def test_interrupted_run_on_cuda_with_deterministic_kernels_gives_the_same_bits(
    settings, plain, broken, monkeypatch, precision
):
    settings.device, settings.train.deterministic, settings.train.precision = config.Device.cuda, True, precision
    settings.train.checkpoint_every = 5
    run_training(settings, plain, name="run")
    interrupt_run(settings, broken, monkeypatch, at=6)
    settings.resume = str(broken.parent)
    run_training(settings, broken, name="run")
    assert RunContent.read(broken) == RunContent.read(plain)


def test_corrupt_checkpoint_is_renamed_and_the_run_starts_over(settings, plain, broken, monkeypatch, caplog):
    settings.train.checkpoint_every = 5
    run_training(settings, plain, name="run")
    interrupt_run(settings, broken, monkeypatch, at=6)
    path = broken / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:-9])
    settings.resume = str(broken.parent)
    run_training(settings, broken, name="run")
    assert f"{path}: corrupt checkpoint" in caplog.text
    assert "Renamed it to checkpoint.corrupt; the run starts over." in caplog.text
    assert RunContent.read(broken) == RunContent.read(plain)
    assert path.with_suffix(".corrupt").exists()


def test_checkpoint_that_cannot_be_read_is_not_corrupt(settings, broken, monkeypatch):
    settings.train.checkpoint_every = 5
    interrupt_run(settings, broken, monkeypatch, at=6)
    path = broken / CHECKPOINT_FILE
    content = path.read_bytes()
    settings.resume = str(broken.parent)
    reading = Path.open

    def denied(self, *arguments, **options):
        if self == path:
            raise PermissionError(13, "Permission denied")
        return reading(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", denied)
        with pytest.raises(StorageError, match=rf"could not read {path}: Permission denied\."):
            run_training(settings, broken, name="run")
    assert path.read_bytes() == content


def test_run_that_another_process_has_just_ended_is_not_trained_again(settings, plain, monkeypatch):
    run_training(settings, plain, name="run")
    before = (plain / RESULT_FILE).read_bytes()
    settings.resume = str(plain.parent)
    ended = iter([None, RunResult.read(plain)])  # before the lock, and while holding it
    monkeypatch.setattr(RunResult, "read_ended", lambda folder: next(ended))
    with pytest.raises(InputError, match="plain: another process has just ended this run"):
        run_training(settings, plain, name="run")
    assert (plain / RESULT_FILE).read_bytes() == before


def test_files_of_a_killed_process_are_removed_when_the_run_ends(settings, plain):
    plain.mkdir(exist_ok=True)
    for name in (".result.json.ab1", ".history.npz.ab2", ".checkpoint.safetensors.ab3"):
        (plain / name).touch()
    (plain / ".model.ab4").mkdir()
    (plain / ".model.ab4" / "model.safetensors").touch()
    (plain / ".hidden").touch()
    run_training(settings, plain, name="run")
    assert {path.name for path in plain.iterdir() if path.name.startswith(".")} == {".lock", ".hidden"}


def test_full_disk_costs_only_the_checkpoint(settings, plain, monkeypatch, caplog):
    def full_disk(*arguments, **options):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    settings.train.checkpoint_every = 5
    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    assert run_training(settings, plain, name="run").status is Status.finished
    warnings = [message for message in caplog.messages if "could not write" in message]
    assert [message.split(":")[:2] for message in warnings] == [["run", " step 5"], ["run", " step 10"]]
    assert "No space left on device" in warnings[0]
    assert warnings[0].endswith("the previous checkpoint is kept")


def test_resume_with_other_settings_or_other_texts_is_refused(settings, broken, monkeypatch):
    interrupt_run(settings, broken, monkeypatch, at=6)
    settings.resume = str(broken.parent)
    settings.optimizer.lr, settings.seed = 7e-4, 1
    with pytest.raises(InputError, match=r"broken.* settings.*optimizer\.lr.*0\.001.*0\.0007"):
        run_training(settings, broken, name="run")
    settings.optimizer.lr = 1e-3
    with open(settings.data.test, "a") as file:
        file.write("one more,sea\n")
    with pytest.raises(InputError, match="broken: the training data has changed since this run started"):
        run_training(settings, broken, name="run")
    assert (broken / CHECKPOINT_FILE).exists()


def test_resume_with_checkpoints_at_other_steps_is_allowed(settings, broken, monkeypatch):
    interrupt_run(settings, broken, monkeypatch, at=6)
    settings.resume = str(broken.parent)
    settings.train.checkpoint_every = 7
    assert run_training(settings, broken, name="run").status is Status.finished


def test_run_that_another_process_is_running_is_refused(settings, broken, start_process):
    code = (
        "import sys, time, filelock\n"
        "with filelock.FileLock(sys.argv[1]):\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(600)\n"
    )
    holder = start_process([sys.executable, "-c", code, str(broken / ".lock")])
    assert holder.stdout.readline() == "locked\n"
    settings.resume = str(broken.parent)
    try:
        with pytest.raises(InputError, match="broken: another process is already running this run"):
            run_training(settings, broken, name="run")
    finally:
        interrupt(holder, signal.SIGKILL)


# --- the program, killed and interrupted ---------------------------------------------------------

SWEEP = ["schedule.warmup_frac=0.1,0.7", "-m", "train.checkpoint_every=5", "train.epochs=40", "monitor.every=20"]
RUNS = ("warmup_frac=0.1/seed=0", "warmup_frac=0.7/seed=0")


def checkpoint_times(sweep):
    """The time at which each checkpoint of a sweep was written."""
    times = {}
    for path in sweep.rglob(CHECKPOINT_FILE):
        try:
            times[path] = path.stat().st_mtime_ns
        except FileNotFoundError:  # its run has just ended
            continue
    return times


@pytest.mark.slow
def test_sweep_killed_repeatedly_ends_like_an_uninterrupted_one(bertmon, demo_files, tmp_path):
    plain = bertmon(*SWEEP, "hydra.sweep.dir=plain", *demo_files)
    assert plain.returncode == 0, plain.stderr
    rng, resume = random.Random(0), []
    for _ in range(3):
        before = checkpoint_times(tmp_path / "sweep")
        running = bertmon(*SWEEP, "hydra.sweep.dir=sweep", *resume, *demo_files, wait=False)
        wait_until(lambda old=before: checkpoint_times(tmp_path / "sweep").items() - old.items(), running)
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(rng.uniform(0, 0.1))
        interrupt(running, signal.SIGKILL)
        resume = ["resume=sweep"]
    ended = bertmon(*SWEEP, "hydra.sweep.dir=sweep", *resume, *demo_files)
    assert ended.returncode == 0, ended.stderr
    assert "resuming at step" in ended.stdout
    for name in RUNS:
        assert RunContent.read(tmp_path / "sweep" / name) == RunContent.read(tmp_path / "plain" / name)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_leaves_a_checkpoint_and_the_run_resumes_from_it(bertmon, demo_files, tmp_path, number):
    long = ["hydra.run.dir=run", "train.epochs=4000", *demo_files]
    log = tmp_path / "run" / "run.log"
    running = bertmon(*long, wait=False)
    wait_until(lambda: log.exists() and "step 5 of 20000" in log.read_text(), running)
    stopped = interrupt(running, number)
    assert stopped.returncode == 128 + number
    assert "Saving a checkpoint and stopping after this step; press Ctrl-C again" in stopped.stdout
    assert re.search(r"^To resume: .* -m bertmon resume run$", stopped.stdout, flags=re.MULTILINE)
    assert "Traceback" not in stopped.stderr
    result = RunResult.read(tmp_path / "run")
    assert result.status is Status.interrupted
    assert [each.step for each in result.evaluations[:2]] == [0, 5]
    assert "accuracy/test" in EventAccumulator(str(tmp_path / "run")).Reload().Tags()["scalars"]
    assert Checkpoint(tmp_path / "run" / CHECKPOINT_FILE).metadata.state.steps == result.steps > 0
    assert os.listdir(tmp_path / "run").count(CHECKPOINT_FILE) == 1

    again = bertmon(*long, "resume=run", wait=False)
    wait_until(lambda: f"resuming at step {result.steps} of 20000" in log.read_text(), again)
    again.kill()
    completed(again)
