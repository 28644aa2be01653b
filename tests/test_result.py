"""result.json: written at the start, completed at the end, and read back unchanged, also from version 0.1."""

import dataclasses
import itertools
import json
import math
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bertmon.errors import InputError, StorageError
from bertmon.metrics import EvalResult
from bertmon.monitor.diagnosis import Diagnosis, Finding, Verdict
from bertmon.monitor.tensorboard import RunWriter
from bertmon.result import (
    LOCK_FILE,
    RESULT_FILE,
    SWEEP_FILE,
    DataSummary,
    RunResult,
    Status,
    SweepFile,
    Terminated,
    is_running,
    recording,
    run_names,
)


def read(run_dir):
    return json.loads((run_dir / RESULT_FILE).read_text())


def evaluations(*accuracies, confusion=((100, 100), (0, 200))):
    """Every 225 steps; the last one has the confusion matrix."""
    values = [EvalResult(225 * k, 1.5 - 0.1 * k, value, 0.5, 0.25) for k, value in enumerate(accuracies, start=1)]
    return [*values[:-1], dataclasses.replace(values[-1], confusion=confusion)]


def finished_result(**changes):
    """A result with every field filled."""
    finding = Finding("logit_std", "classifier", 1e-6, 3e-5, 60, "every text gets the same logits")
    fields = {
        "status": Status.finished,
        "started": "2026-11-25T16:40:42+0000",
        "seconds": 44.5,
        "previous_seconds": 3.25,
        "python": "3.11.7",
        "machine": "Linux",
        "versions": {"torch": "2.13.0"},
        "experiment": "quickstart",
        "seed": 3,
        "overrides": {"schedule.warmup_frac": 0.1, "model": "bert_small"},
        "config": {"seed": 3, "optimizer": {"lr": 1e-3}},
        "device": {"type": "cpu"},
        "processes": 2,
        "parameters": 1234,
        "data": DataSummary("f" * 64, 3600, 400, ("numpy", "Äpfel\u2028"), 0.25),
        "steps": 675,
        "total_steps": 675,
        "evaluations": evaluations(0.5, 0.75, 0.75),
        "validations": [],
        "metric": "accuracy",
        "model_dir": "model",
        "warnings": ["12 of 400 test texts are among the training texts."],
        "timings": {"train_seconds": 35.5, "eval_seconds": 0.5, "compile_seconds": 0.0},
        "diagnosis": Diagnosis(Verdict.collapsed, 60, (finding,), "too large a rate", "optimizer.lr=1e-4"),
        "error": None,
        "traceback": None,
    }
    assert fields.keys() == {field.name for field in dataclasses.fields(RunResult)}
    return RunResult(**(fields | changes))


# --- writing and reading -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"diagnosis": None},
        {"status": Status.stopped, "steps": 60},
        {"status": Status.failed, "error": "ZeroDivisionError: x", "traceback": "Traceback\n", "evaluations": []},
        {"status": Status.running, "data": None, "config": None, "total_steps": None, "seconds": None},
        {"diagnosis": Diagnosis(Verdict.undecided, 0)},
    ],
)
def test_result_is_unchanged_by_writing_and_reading(tmp_path, changes):
    result = finished_result(**changes)
    (tmp_path / RESULT_FILE).write_bytes(result.to_json())
    assert RunResult.read(tmp_path) == result
    assert RunResult.read(tmp_path).to_json() == result.to_json()


def test_empty_result_is_read_as_running(tmp_path):
    (tmp_path / RESULT_FILE).write_bytes(RunResult().to_json())
    assert RunResult.read(tmp_path) == RunResult()
    assert RunResult.read_ended(tmp_path) is None


def test_result_with_nan_is_json_with_null_and_read_as_nan(tmp_path):
    finding = Finding("loss/test", None, math.nan, math.inf, 5, "loss/test is nan")
    diagnosis = Diagnosis(Verdict.diverged, 5, (finding,))
    (tmp_path / RESULT_FILE).write_bytes(
        finished_result(evaluations=[EvalResult(5, math.inf, 0.25)], diagnosis=diagnosis).to_json()
    )
    assert json.loads((tmp_path / RESULT_FILE).read_text())["evaluations"][0]["loss"] is None
    result = RunResult.read(tmp_path)
    assert math.isnan(result.final.loss)
    assert math.isnan(result.diagnosis.findings[0].value)
    assert result.diagnosis.findings[0].threshold == math.inf
    assert result.best is None


def test_result_as_json_has_metrics_and_the_verdict_at_the_top_level(tmp_path):
    fields = json.loads(finished_result().to_json())
    assert {name: (each["step"], each["accuracy"]) for name, each in fields["metrics"].items()} == {
        "final": (675, 0.75),
        "best": (450, 0.75),
    }
    assert fields["metrics"]["final"]["confusion"] == [[100, 100], [0, 200]]
    assert (fields["verdict"], fields["verdict_step"], fields["cause"]) == ("collapsed", 60, "too large a rate")
    assert [finding["signal"] for finding in fields["findings"]] == ["logit_std"]
    assert "diagnosis" not in fields
    unmonitored = json.loads(finished_result(diagnosis=None).to_json())
    assert [unmonitored[key] for key in ("verdict", "verdict_step", "findings")] == [None] * 3


VERSION_0_1 = {  # as commit fc501c0 wrote it
    "status": "ok",
    "started": "2026-11-25T16:40:42+0000",
    "python": "3.11.7",
    "machine": "Linux-6.18",
    "versions": {"bertmon": "0.1.0", "torch": "2.13.0+cpu"},
    "experiment": "quickstart",
    "seed": 0,
    "differs": {"schedule.warmup_frac": 0.1},
    "settings": {"experiment": "quickstart", "seed": 0, "schedule": {"shape": "linear", "warmup_frac": 0.1}},
    "device": "cpu",
    "processes": 1,
    "data": {
        "fingerprint": "03c2",
        "train_texts": 3600,
        "test_texts": 400,
        "label_names": ["numpy", "sklearn", "matplotlib", "torch"],
        "majority": 0.25,
    },
    "parameters": 2693252,
    "steps": 675,
    "metrics": {
        "final": {"step": 675, "loss": 1.3863449096679688, "accuracy": 0.25},
        "best": {"step": 225, "loss": 1.3870962524414063, "accuracy": 0.25},
    },
    "evaluations": [
        {"step": 225, "loss": 1.3870962524414063, "accuracy": 0.25},
        {"step": 675, "loss": 1.3863449096679688, "accuracy": 0.25},
    ],
    "timings": {"train_seconds": 35.9, "eval_seconds": 0.65, "compile_seconds": 0.0},
    "steps_planned": 675,
    "seconds_before": 12.5,
    "verdict": "collapsed",
    "verdict_step": 60,
    "findings": [
        {
            "signal": "logit_spread",
            "layer": None,
            "value": 1e-6,
            "threshold": 3e-5,
            "step": 60,
            "words": "every text gets the same logits (spread 1e-6 < 3e-5)",
        }
    ],
    "cause": "an effective learning rate of 1.2e-3",
    "advice": "schedule.warmup_frac=0.7",
    "seconds": 55.24,
}


def test_result_of_version_0_1_is_read(tmp_path):
    (tmp_path / RESULT_FILE).write_text(json.dumps(VERSION_0_1))
    result = RunResult.read_ended(tmp_path)
    assert result.status is Status.finished
    assert result.overrides == {"schedule.warmup_frac": 0.1}
    assert result.config["schedule"]["warmup_frac"] == 0.1
    assert (result.steps, result.total_steps, result.previous_seconds, result.seconds) == (675, 675, 12.5, 55.24)
    assert result.device == {"type": "cpu"}
    assert (result.data.majority_share, result.data.test_texts) == (0.25, 400)
    assert result.evaluations[-1] == EvalResult(675, 1.3863449096679688, 0.25)
    (finding,) = result.diagnosis.findings
    assert (finding.signal, finding.text) == ("logit_std", "every text gets the same logits (spread 1e-6 < 3e-5)")
    assert (result.flagged_step, result.did_not_learn) == (60, True)
    # written again, it has the current names
    (tmp_path / RESULT_FILE).write_bytes(result.to_json())
    assert RunResult.read_ended(tmp_path) == result
    assert read(tmp_path).keys().isdisjoint({"differs", "settings", "steps_planned", "seconds_before"})


def test_result_of_version_0_1_without_findings_was_undecided(tmp_path):
    healthy = {"verdict": "healthy", "verdict_step": 0, "findings": [], "cause": None, "advice": None}
    (tmp_path / RESULT_FILE).write_text(json.dumps(VERSION_0_1 | healthy))
    assert RunResult.read(tmp_path).diagnosis == Diagnosis(Verdict.undecided, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "splendid"},
        {"status": None},
        {"steps": 676},
        {"steps": -1},
        {"evaluations": []},
        {"evaluations": [{"step": 1, "loss": "x", "accuracy": 1}]},
        {"evaluations": 7},
        {"data": None},
        {"data": VERSION_0_1["data"] | {"majority": 1.5}},
        {"data": VERSION_0_1["data"] | {"test_texts": 0}},
        {"verdict": "rosy"},
        {"verdict_step": None},
        {"findings": ["x"]},
        {"timings": {"train_seconds": None}},
        {"differs": [1]},
        {"seed": "x"},
        {"parameters": 1e999},
    ],
)
def test_result_with_invalid_fields_is_read_as_none(tmp_path, changes):
    (tmp_path / RESULT_FILE).write_text(json.dumps(VERSION_0_1 | changes))
    assert RunResult.read(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"status": "finished"}', "\x00"])
def test_file_that_is_no_result_is_read_as_none(tmp_path, content):
    (tmp_path / RESULT_FILE).write_text(content)
    assert RunResult.read(tmp_path) is None
    assert RunResult.read(tmp_path / "nowhere") is None


# --- values derived from a result ----------------------------------------------------------------


@pytest.mark.parametrize(("status", "objective"), [("finished", 0.75), ("stopped", 0.25), ("diverged", 0.25)])
def test_objective_of_a_run_that_did_not_finish_is_at_most_the_majority_share(status, objective):
    assert finished_result(status=Status(status)).objective == objective
    assert finished_result(status=Status(status), evaluations=evaluations(0.125)).objective == 0.125


@pytest.mark.parametrize(("status", "objective"), [("finished", 0.25), ("stopped", 0.0)])
def test_objective_by_another_metric_of_a_run_that_did_not_finish_is_at_most_0(status, objective):
    assert finished_result(status=Status(status), metric="mcc").objective == objective


def test_objective_with_a_validation_split_comes_from_it():
    result = finished_result(evaluations=evaluations(0.9, 0.5, 0.8), validations=evaluations(0.5, 0.7, 0.6))
    assert (result.objective, result.best.step, result.best.accuracy) == (0.6, 450, 0.5)
    result.config["train"] = {"save_model": "best"}
    assert result.objective == 0.7


def test_did_not_learn_is_none_until_the_run_has_ended():
    assert finished_result().did_not_learn is False
    assert finished_result(evaluations=[EvalResult(675, 1.4, 0.26)]).did_not_learn is True
    guessed = evaluations(0.5, confusion=((0, 200), (0, 200)))
    assert finished_result(evaluations=guessed).did_not_learn is True
    for status in (Status.running, Status.failed, Status.interrupted):
        assert finished_result(status=status).did_not_learn is None


def test_flagged_step_and_saved_steps_of_a_stopped_run():
    stopped = finished_result(status=Status.stopped, steps=61)
    assert (stopped.flagged_step, stopped.saved_steps) == (60, 614)
    assert finished_result().saved_steps == 0
    assert finished_result(diagnosis=Diagnosis(Verdict.slow, 60)).flagged_step is None
    assert finished_result(diagnosis=None).flagged_step is None


def test_status_says_whether_a_run_has_ended_or_is_unfinished():
    assert [status for status in Status if status.ended] == [Status.finished, Status.stopped, Status.diverged]
    assert [status for status in Status if status.unfinished] == [Status.failed, Status.interrupted]


# --- recording -----------------------------------------------------------------------------------


def test_recording_of_a_body_that_returns_keeps_its_status(tmp_path):
    with recording(tmp_path) as result:
        assert read(tmp_path)["status"] == "running"
        result.status = Status.diverged
        result.timings = {"train_seconds": math.inf}
    fields = read(tmp_path)
    assert (fields["status"], fields["timings"]) == ("diverged", {"train_seconds": None})
    assert fields["seconds"] >= 0
    assert fields["versions"].keys() >= {"bertmon", "torch", "transformers"}


def test_recording_of_a_body_that_raises_keeps_its_fields_and_the_error(tmp_path, caplog):
    def fail():
        with recording(tmp_path) as result:
            result.seed = 3
            return 1 / 0

    with pytest.raises(ZeroDivisionError):
        fail()
    fields = read(tmp_path)
    assert (fields["status"], fields["seed"]) == ("failed", 3)
    assert fields["error"] == "ZeroDivisionError: division by zero"
    assert "1 / 0" in fields["traceback"]
    assert "1 / 0" in caplog.text


def test_recording_of_an_input_error_logs_only_its_message(tmp_path, caplog):
    with pytest.raises(InputError), recording(tmp_path):
        raise InputError("optimizer.lr: expected a number above 0, got -1.")
    assert caplog.messages == ["optimizer.lr: expected a number above 0, got -1."]
    assert read(tmp_path)["status"] == "failed"


@pytest.mark.parametrize("error", [KeyboardInterrupt, Terminated(143)])
def test_recording_of_an_interrupted_body_is_interrupted(tmp_path, error):
    with pytest.raises((KeyboardInterrupt, SystemExit)), recording(tmp_path):
        raise error
    assert read(tmp_path)["status"] == "interrupted"


@pytest.mark.parametrize("code", ["enough", 1, 0, None])
def test_recording_of_a_body_that_calls_exit_is_failed(tmp_path, code):
    with pytest.raises(RuntimeError) as raised, recording(tmp_path):
        sys.exit(code)
    assert str(raised.value) == f"the run called sys.exit({code})"
    assert read(tmp_path)["status"] == "failed"
    assert read(tmp_path)["error"].startswith("SystemExit: ")


def test_recording_in_a_folder_that_contains_a_run_is_refused(tmp_path):
    with recording(tmp_path):
        pass
    before = (tmp_path / RESULT_FILE).read_text()
    with (
        pytest.raises(InputError, match="already contains a run: choose another folder or delete it"),
        recording(tmp_path),
    ):
        pytest.fail("it began")
    assert (tmp_path / RESULT_FILE).read_text() == before
    with recording(tmp_path, resume=True) as result:
        result.status = Status.finished
        result.previous_seconds = 1000.0
    assert read(tmp_path)["seconds"] >= 1000


def test_recording_in_a_folder_that_cannot_be_created_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match=r"could not write .*file/run"), recording(tmp_path / "file" / "run"):
        pytest.fail("it began")


def test_recording_while_the_clock_goes_backwards_has_no_negative_time(tmp_path, monkeypatch):
    now = itertools.count(2e9, -3600)
    monkeypatch.setattr("time.time", lambda: float(next(now)))
    with recording(tmp_path), RunWriter(tmp_path) as writer:
        writer.scalars(0, {"loss/train": 1.0})
        writer.scalars(1, {"loss/train": 0.5})
    assert 0 <= read(tmp_path)["seconds"] < 60
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(point.step, point.value) for point in events.Scalars("loss/train")] == [(0, 1.0), (1, 0.5)]


def test_is_running_while_a_process_records(tmp_path):
    assert not is_running(tmp_path)
    with recording(tmp_path):
        assert is_running(tmp_path)
    assert not is_running(tmp_path)


def test_is_running_of_a_process_that_was_killed_is_false(tmp_path):
    code = "import os, pathlib, sys\nfrom bertmon.result import recording\n"
    code += "with recording(pathlib.Path(sys.argv[1])):\n    os.kill(os.getpid(), 9)\n"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / LOCK_FILE).exists()
    assert RunResult.read(tmp_path).status is Status.running
    assert not is_running(tmp_path)


def test_json_changes_no_string_that_looks_like_a_row_of_numbers():
    result = finished_result(evaluations=[EvalResult(675, 1.4, 0.26, confusion=((1, 2), (3, 4)))])
    result.warnings.append("a[ 1, 2 ].csv")
    written = result.to_json().decode()
    assert "a[ 1, 2 ].csv" in written
    assert "[1, 2]" in written
    assert RunResult.from_dict(json.loads(written)).warnings[-1] == "a[ 1, 2 ].csv"


# --- sweep.json ----------------------------------------------------------------------------------


def test_sweep_file_is_unchanged_by_writing_and_reading(tmp_path):
    sweep = SweepFile(
        ("warmup_frac=0.1/seed=0", "warmup_frac=0.7/seed=0"), ("schedule.warmup_frac=0.1,0.7", "-m"), "/x"
    )
    sweep.write(tmp_path)
    assert SweepFile.read(tmp_path) == sweep
    assert run_names(tmp_path) == sweep.runs


@pytest.mark.parametrize("runs", [None, "x", [1], ["../../etc"], ["/etc/passwd"], ["a\nb"], ["x" * 300], ["a/../../b"]])
def test_sweep_file_with_invalid_runs_is_read_as_none(tmp_path, runs):
    (tmp_path / SWEEP_FILE).write_text(json.dumps({"runs": runs, "command": [], "directory": "/x"}))
    assert SweepFile.read(tmp_path) is None
    assert list(run_names(tmp_path)) == []


def test_sweep_file_without_a_command_still_has_its_runs(tmp_path):
    (tmp_path / SWEEP_FILE).write_text(json.dumps({"runs": ["a"], "command": [1], "directory": 3}))
    assert SweepFile.read(tmp_path) == SweepFile(("a",))
