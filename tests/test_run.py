"""The program as a user starts it: real event files, and in a few tests a separate process."""

import gc
import json
import re
import weakref
from pathlib import Path

import pytest
from conftest import SHARED, needs_newsgroups, results
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bertmon.compare import results as compare_results
from bertmon.launch import hydra_setup, job
from bertmon.monitor.history import History
from bertmon.training import run_training


def only_folder(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "multirun").iterdir()
    return folder


def test_sweep_trains_all_runs_and_writes_everything_that_the_readme_names(bertmon, demo_files, tmp_path):
    process = bertmon("schedule.warmup_frac=0.1,0.7", "-m", *demo_files)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    assert lines[0].startswith("experiment=quickstart, as requested; others are ")
    folder = only_folder(tmp_path)
    logdir = folder.relative_to(tmp_path)
    assert lines[-1].endswith(f"-m bertmon tensorboard {logdir}")
    assert lines[-2] == f"Report: {logdir}/report.html"
    assert re.search(r"^run 2 of 2, about \d+ s left; 1 ended: ", process.stdout, flags=re.MULTILINE)
    assert "#0 :" not in process.stdout

    runs = results(folder)
    assert list(runs) == ["warmup_frac=0.1/seed=0", "warmup_frac=0.7/seed=0"]
    assert [run["overrides"] for run in runs.values()] == [{"schedule.warmup_frac": 0.1}, {"schedule.warmup_frac": 0.7}]
    assert runs["warmup_frac=0.7/seed=0"]["config"]["schedule"]["warmup_frac"] == 0.7
    for name, result in runs.items():
        check_run(folder / name, result)
    rates = [EventAccumulator(str(folder / name)).Reload().Scalars("learning_rate") for name in runs]
    assert rates[0] != rates[1]
    assert json.loads((folder / "sweep.json").read_text()) == {
        "runs": list(runs),
        "command": ["-m", "schedule.warmup_frac=0.1,0.7", *demo_files],
        "directory": str(tmp_path),
    }


def check_run(folder: Path, result: dict) -> None:
    """Result, history, log, Hydra's files and events of a run of 15 steps, monitored every 4."""
    assert result["status"] == "finished"
    assert result["experiment"] == "quickstart"
    assert result["metrics"]["final"]["step"] == result["steps"] == result["total_steps"] == 15
    assert len(result["data"]["fingerprint"]) == 64
    history = History.load(folder / "history.npz")
    assert len(history.losses) == 15
    assert [snapshot.step for snapshot in history.snapshots] == [0, 4, 8, 12]
    assert "experiment: quickstart" in (folder / ".hydra" / "config.yaml").read_text()
    assert "accuracy/test" in (folder / "run.log").read_text()

    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()
    tags = events.Tags()
    assert {"gradient_flow", "update_ratio"} <= set(tags["images"])
    assert [image.step for image in events.Images("gradient_flow")] == [0, 4, 8, 12]
    assert {"loss/train", "loss/test", "accuracy/test", "learning_rate"} < set(tags["scalars"])
    layers = [tag.removeprefix("grad_mean/") for tag in tags["scalars"] if tag.startswith("grad_mean/")]
    assert len(layers) == 22
    for statistic in ("grad_max", "grad_std", "grad_zero", "update_ratio"):
        assert {f"{statistic}/{layer}" for layer in layers} < set(tags["scalars"])
    assert events.Scalars("accuracy/test")[-1].value == pytest.approx(result["metrics"]["final"]["accuracy"])
    assert {"config/text_summary", "custom_scalars__config__"} < set(tags["tensors"])


def test_launch_remembers_the_chosen_experiment(bertmon_here, files, tmp_path, monkeypatch):
    short = ["train.epochs=1", "monitor=off", "train.eval_every=100", "name=run"]
    process = bertmon_here("run", "experiment=auto", *files, *short)
    assert process.returncode == 0, process.stderr
    (folder,) = (tmp_path / "multirun").iterdir()
    assert json.loads((folder / "sweep.json").read_text())["command"][-1] == "experiment=quickstart"
    monkeypatch.setattr(hydra_setup, "auto_experiment", lambda: "article")  # like on a machine with a GPU
    again = bertmon_here("resume", str(folder))
    assert again.returncode == 0, again.stderr
    assert "already finished" in again.stderr + again.stdout


def test_large_sweep_reports_progress_in_some_runs_only(tmp_path, monkeypatch):
    read_at = []
    monkeypatch.setattr(
        compare_results, "read_sweep", lambda folders: read_at.append(number) or compare_results.Sweep((), ())
    )
    for count, expected in ((2, [0, 1, 2, 3, 4, 5, 6]), (1000, [0, 3, 6])):
        (tmp_path / "sweep.json").write_text(json.dumps({"runs": [f"seed={seed}" for seed in range(count)]}))
        read_at.clear()
        for number in range(7):
            job.log_progress(tmp_path, number)
        assert read_at == expected


def test_same_run_twice_gives_the_same_numbers_and_never_overwrites(bertmon_here, demo_files, tmp_path):
    for number in (1, 2):
        process = bertmon_here("run", f"hydra.run.dir=run{number}", "seed=5", *demo_files)
        assert process.returncode == 0, process.stderr
    first, second = (json.loads((tmp_path / f"run{number}" / "result.json").read_text()) for number in (1, 2))
    assert first["evaluations"] == second["evaluations"]
    assert first["data"] == second["data"]

    def content():
        return {path: path.read_bytes() for path in (tmp_path / "run1").rglob("*") if path.is_file()}

    before = content()
    again = bertmon_here("run", "hydra.run.dir=run1", "optimizer.lr=1e-5", *demo_files)
    assert again.returncode == 1
    assert "run1 already contains a run: choose another folder or delete it." in again.stderr
    assert content() == before


def test_single_run_is_named_by_its_experiment_or_the_user(bertmon_here, demo_files, tmp_path):
    short = ["train.epochs=1", *demo_files]
    assert bertmon_here("run", "hydra.sweep.dir=ignored", *short).returncode == 0
    (folder,) = (tmp_path / "multirun").iterdir()
    assert list(results(folder)) == ["quickstart/seed=0"]
    assert results(folder)["quickstart/seed=0"]["overrides"] == {}
    assert bertmon_here("run", "name='my first run'", "resume=named", *short).returncode != 0  # there is no such folder
    (tmp_path / "named").mkdir()
    assert bertmon_here("run", "name='my first run'", "resume=named", *short).returncode == 0
    assert list(results(tmp_path / "named")) == ["my first run/seed=0"]


def test_sweep_over_seeds_is_named_by_the_user(bertmon_here, demo_files, tmp_path):
    process = bertmon_here("run", "-m", "seed=1,2", "name=mine", "train.epochs=1", *demo_files)
    assert process.returncode == 0, process.stderr
    folder = only_folder(tmp_path)
    assert folder.name.endswith("_mine")
    assert list(results(folder)) == ["mine/seed=1", "mine/seed=2"]


def test_doomed_run_can_be_stopped(bertmon_here, demo_files, tmp_path):
    doomed = ["monitor.thresholds.min_logit_std=1000", "monitor.thresholds.min_depth_ratio=1000"]
    process = bertmon_here("run", "monitor.on_doomed=stop", *doomed, *demo_files)
    assert process.returncode == 0, process.stderr
    (line,) = (line for line in process.stdout.splitlines() if "collapsed - " in line)
    assert line.startswith(
        "quickstart/seed=0: step 0: collapsed - gradients vanish towards the input (first/last layer "
    )
    assert "14 of 15 steps saved" in process.stdout
    folder = only_folder(tmp_path)
    ((name, result),) = results(folder).items()
    assert (result["status"], result["verdict"], result["verdict_step"]) == ("stopped", "collapsed", 0)
    assert (result["steps"], result["total_steps"]) == (1, 15)
    assert result["metrics"]["final"]["step"] == 1
    assert [finding["signal"] for finding in result["findings"]] == ["depth_ratio", "logit_std"]
    assert (result["cause"], result["advice"]) == (None, None)  # no weight has moved yet
    assert line.removeprefix("quickstart/seed=0: step 0") in (folder / name / "run.log").read_text()


def test_monitor_off_still_logs_loss_and_accuracy(bertmon_here, demo_files, tmp_path):
    assert bertmon_here("run", "monitor=off", *demo_files).returncode == 0
    folder = only_folder(tmp_path)
    ((name, result),) = results(folder).items()
    tags = EventAccumulator(str(folder / name)).Reload().Tags()
    assert set(tags["scalars"]) >= {"loss/train", "loss/test", "accuracy/test", "learning_rate"}
    assert not any(tag.startswith("grad_mean") for tag in tags["scalars"])
    assert result["verdict"] is None
    assert tags["images"] == []


def test_failed_run_leaves_no_model_in_memory(bertmon_here, demo_files, tmp_path, monkeypatch):
    """Its exception lives until the sweep ends; with its frames it would hold all that the run had on the GPU."""
    models, alive, original = [], [], run_training.build_task

    def build_task(*arguments):
        gc.collect()
        alive.append([model() is not None for model in models])
        task = original(*arguments)
        models.append(weakref.ref(task.classifier))
        if len(models) == 1:
            task.classifier.register_forward_pre_hook(fail)
        return task

    def fail(module, arguments):
        raise MemoryError("out of memory")

    monkeypatch.setattr(run_training, "build_task", build_task)
    process = bertmon_here("run", "seed=1,2", "-m", "train.epochs=1", *demo_files)
    assert process.returncode == 1
    assert "seed=1 failed: out of memory" in process.stderr
    assert [run["status"] for run in results(only_folder(tmp_path)).values()] == ["failed", "finished"]
    assert alive == [[], [False]]


def test_flags_can_stand_anywhere_and_plus_signs_change_no_name(bertmon_here, demo_files, tmp_path):
    process = bertmon_here("++schedule.warmup_frac=0.1,0.7", "-m", "train.epochs=1", *demo_files, "hydra.sweep.dir=a b")
    assert process.returncode == 0, process.stderr
    assert list(results(tmp_path / "a b")) == ["warmup_frac=0.1/seed=0", "warmup_frac=0.7/seed=0"]
    assert process.stdout.splitlines()[-1].endswith("tensorboard 'a b'")
    shown = bertmon_here("seed=3", "--cfg", "job", "train.epochs=7")
    assert shown.returncode == 0, shown.stderr
    assert "seed: 3" in shown.stdout
    assert "epochs: 7" in shown.stdout


@needs_newsgroups
@pytest.mark.slow
def test_sweep_on_real_newsgroups(bertmon_here, tmp_path):
    process = bertmon_here(
        "schedule.warmup_frac=0.1,0.7",
        "-m",
        "data=newsgroups",
        f"data.data_home={SHARED / 'scikit_learn_data'}",
        "model.num_hidden_layers=2",
        "model.hidden_size=16",
        "model.intermediate_size=32",
        "data.max_length=16",
        "train.epochs=1",
        "train.batch_size=64",
    )
    assert process.returncode == 0, process.stderr
    runs = results(only_folder(tmp_path))
    assert [result["data"]["train_texts"] for result in runs.values()] == [2034, 2034]
    assert [result["steps"] for result in runs.values()] == [32, 32]


@pytest.mark.slow
def test_long_check_is_announced(bertmon_here, demo_files):
    process = bertmon_here("schedule.warmup_frac=range(0.01,1.11,0.01)", "-m", *demo_files)
    assert process.returncode == 1
    assert process.stdout.splitlines()[1:] == ["checking 110 runs before the first one starts, about 9 s"]
    assert process.stderr.startswith("schedule.warmup_frac: expected a number from 0 to 1, got 1.0")
