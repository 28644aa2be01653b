"""monitor.on_behind: a run that learns, but cannot catch up with its sweep, ends early."""

from bertmon.config import OnBehind
from bertmon.result import RunResult, Status
from bertmon.training.run_training import run_training


def test_run_that_is_behind_is_stopped(settings, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    settings.monitor.every, settings.train.epochs = 2, 4
    run_dir = tmp_path / "sweep" / "b" / "seed=0"
    run_dir.mkdir(parents=True)
    monkeypatch.setattr(
        "bertmon.training.run_training.find_behind", lambda history, *_: Behind() if len(history.losses) > 6 else None
    )
    result = run_training(settings, run_dir, name="b/seed=0")
    assert result.status is Status.finished  # on_behind=ignore is the default
    settings.monitor.on_behind = OnBehind.stop
    other = tmp_path / "sweep" / "c" / "seed=0"
    other.mkdir(parents=True)
    result = run_training(settings, other, name="c/seed=0")
    assert (result.status, result.steps, result.total_steps) == (Status.stopped, 7, 24)
    assert "c/seed=0: step 6: behind - far away; stopping" in caplog.text
    assert RunResult.read(other).saved_steps == 17


class Behind:
    text = "far away"
