import itertools
import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bertmon.errors import InputError
from bertmon.monitor.tensorboard import RunWriter
from bertmon.result import RESULT_FILE, Terminated, is_locked, recording


def read(folder):
    return json.loads((folder / RESULT_FILE).read_text())


def test_a_run_that_ends_well(tmp_path):
    with recording(tmp_path) as result:
        assert read(tmp_path)["status"] == "running"
        result["metrics"] = {"loss": math.nan, "list": [1.5, -math.inf]}
    found = read(tmp_path)
    assert found["status"] == "ok"
    assert found["metrics"] == {"loss": None, "list": [1.5, None]}
    assert found["seconds"] >= 0
    assert found["versions"].keys() >= {"bertmon", "torch", "transformers"}


def test_a_status_of_its_own_stays(tmp_path):
    with recording(tmp_path) as result:
        result["status"] = "diverged"
    assert read(tmp_path)["status"] == "diverged"


def test_a_run_that_fails_keeps_what_it_had_and_says_why(tmp_path, caplog):
    def fail():
        with recording(tmp_path) as result:
            result["seed"] = 3
            return 1 / 0

    with pytest.raises(ZeroDivisionError):
        fail()
    found = read(tmp_path)
    assert (found["status"], found["seed"]) == ("failed", 3)
    assert found["error"] == "ZeroDivisionError: division by zero"
    assert "1 / 0" in found["traceback"]
    assert "1 / 0" in caplog.text


@pytest.mark.parametrize("signal", [KeyboardInterrupt, Terminated(143)])
def test_a_run_that_is_interrupted(tmp_path, signal):
    with pytest.raises((KeyboardInterrupt, SystemExit)), recording(tmp_path):
        raise signal
    assert read(tmp_path)["status"] == "interrupted"


def test_a_run_that_exits_by_itself_has_failed(tmp_path):
    with pytest.raises(RuntimeError, match=r"it exited \(enough\)"), recording(tmp_path):
        raise SystemExit("enough")
    assert (read(tmp_path)["status"], read(tmp_path)["error"]) == ("failed", "SystemExit: enough")


def test_whether_a_process_is_at_work(tmp_path):
    assert is_locked(tmp_path)  # nothing is known of it
    with recording(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_a_clock_that_goes_backwards_makes_no_negative_time(tmp_path, monkeypatch):
    now = itertools.count(2e9, -3600)
    monkeypatch.setattr("time.time", lambda: float(next(now)))
    with recording(tmp_path), RunWriter(tmp_path) as writer:
        writer.scalars(0, {"loss/train": 1.0})
        writer.scalars(1, {"loss/train": 0.5})
    assert 0 <= read(tmp_path)["seconds"] < 60
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(point.step, point.value) for point in events.Scalars("loss/train")] == [(0, 1.0), (1, 0.5)]


def test_a_folder_takes_one_run(tmp_path):
    with recording(tmp_path):
        pass
    before = (tmp_path / RESULT_FILE).read_text()
    with pytest.raises(InputError, match="holds a run already"), recording(tmp_path):
        pass
    assert (tmp_path / RESULT_FILE).read_text() == before
