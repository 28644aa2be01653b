"""The program as a user starts it: real processes, real event files."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SHARED, needs_newsgroups, results
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bertmon import compare, data
from bertmon.data import batches
from bertmon.monitor.history import History
from bertmon.run import _say_progress, run_training


def only_folder(tmp_path):
    (folder,) = (tmp_path / "multirun").iterdir()
    return folder


def test_the_sweep_trains_both_runs_and_leaves_everything_beside_each_other(bertmon, files, tmp_path):
    done = bertmon("schedule.warmup_frac=0.1,0.7", "-m", *files)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith("experiment=quickstart, since no CUDA device was found; choose another with experiment=")
    folder = only_folder(tmp_path)
    logdir = folder.relative_to(tmp_path)
    assert lines[-1] == f"To see it: tensorboard --logdir {logdir} --samples_per_plugin images=100"

    runs = results(folder)
    assert list(runs) == ["warmup_frac=0.1/seed=0", "warmup_frac=0.7/seed=0"]
    for name, result in runs.items():
        assert result["status"] == "ok"
        assert result["experiment"] == "quickstart"
        assert result["metrics"]["final"]["step"] == result["steps"] == result["steps_planned"] == 15
        assert result["verdict"] in ("healthy", "slow", "collapsed", "not learning")
        history = History.load(folder / name / "history.npz")
        assert len(history.losses) == 15
        assert [snapshot.step for snapshot in history.snapshots] == [0, 4, 8, 12]
        assert len(result["data"]["fingerprint"]) == 64
        run = folder / name
        assert "experiment: quickstart" in (run / ".hydra" / "config.yaml").read_text()
        assert "accuracy/test" in (run / "run.log").read_text()

        events = EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0}).Reload()
        tags = events.Tags()
        assert set(tags["images"]) == {"gradient_flow", "update_ratio"}
        assert [image.step for image in events.Images("gradient_flow")] == [0, 4, 8, 12]
        assert {"loss/train", "loss/test", "accuracy/test", "learning_rate"} < set(tags["scalars"])
        layers = [tag.removeprefix("grad_mean/") for tag in tags["scalars"] if tag.startswith("grad_mean/")]
        assert len(layers) == 22
        for statistic in ("grad_max", "grad_std", "grad_zero", "update_ratio"):
            assert {f"{statistic}/{layer}" for layer in layers} < set(tags["scalars"])
        assert events.Scalars("accuracy/test")[-1].value == pytest.approx(result["metrics"]["final"]["accuracy"])
        assert {"config/text_summary", "custom_scalars__config__"} < set(tags["tensors"])
    rates = [EventAccumulator(str(folder / name)).Reload().Scalars("learning_rate") for name in runs]
    assert rates[0] != rates[1]

    assert re.search(r"^run 2 of 2, about \d+ s left; so far ", done.stdout, flags=re.MULTILINE)
    assert [line.split()[:2] for line in lines if re.match(r"(warmup_frac  |0\.[17]  )", line)] == [
        ["warmup_frac", "runs"],
        ["0.1", "1"],
        ["0.7", "1"],
    ]
    assert lines[-2] == f"Report: {logdir}/report.html"
    assert [run["differs"] for run in runs.values()] == [{"schedule.warmup_frac": 0.1}, {"schedule.warmup_frac": 0.7}]
    assert runs["warmup_frac=0.7/seed=0"]["settings"]["schedule"] == {"shape": "linear", "warmup_frac": 0.7}
    assert json.loads((folder / "sweep.json").read_text()) == {
        "runs": list(runs),
        "command": ["-m", "schedule.warmup_frac=0.1,0.7", *files],
        "directory": str(tmp_path),
    }
    assert "Layers over the steps" in (folder / "report.html").read_text()
    assert list((folder / "side by side").glob("events.out.tfevents.*"))


def test_of_a_large_sweep_only_some_runs_look_at_all_others(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(compare, "read", lambda folders: looked.append(number) or compare.Sweep((), ()))
    for count, expected in ((2, [0, 1, 2, 3, 4, 5, 6]), (1000, [0, 3, 6])):
        (tmp_path / "sweep.json").write_text(json.dumps({"runs": [f"seed={seed}" for seed in range(count)]}))
        looked.clear()
        for number in range(7):
            _say_progress(tmp_path, number)
        assert looked == expected


def test_a_single_run_and_then_the_same_again_give_the_same_numbers(bertmon, files, tmp_path):
    for number in (1, 2):
        done = bertmon(f"hydra.run.dir=run{number}", "seed=5", *files)
        assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"run{number}" / "result.json").read_text()) for number in (1, 2))
    assert first["evaluations"] == second["evaluations"]
    assert first["data"] == second["data"]

    def content():
        return {path: path.read_bytes() for path in (tmp_path / "run1").rglob("*") if path.is_file()}

    before = content()
    again = bertmon("hydra.run.dir=run1", "optimizer.lr=1e-5", *files)
    assert again.returncode != 0
    assert "run1 holds a run already" in again.stderr
    assert "Traceback" not in again.stderr
    assert content() == before


def test_a_run_returns_its_last_accuracy_for_a_sweeper(settings, tmp_path):
    (tmp_path / "run").mkdir()
    settings.train.epochs = 4
    settings.optimizer.lr = 5e-3
    returned = run_training(settings, tmp_path / "run", name="run")
    recorded = json.loads((tmp_path / "run" / "result.json").read_text())
    assert returned == recorded["metrics"]["final"]["accuracy"] == recorded["evaluations"][-1]["accuracy"]
    assert recorded["metrics"]["best"]["accuracy"] == max(each["accuracy"] for each in recorded["evaluations"]) > 0.5


def test_a_doomed_run_says_so_in_words_and_can_be_stopped(bertmon, files, tmp_path):
    doomed = ["monitor.thresholds.min_logit_std=1000", "monitor.thresholds.min_depth_ratio=1000"]
    done = bertmon("schedule.warmup_frac=0.1,0.7", "-m", "monitor.on_doomed=stop", *doomed, *files)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if "collapsed - " in line]
    assert len(told) == 2
    assert told[0].startswith("step 0: collapsed - gradients vanish towards the input (first/last layer ")
    assert "14 of 15 steps saved" in done.stdout
    folder = only_folder(tmp_path)
    for name, result in results(folder).items():
        assert (result["status"], result["verdict"], result["verdict_step"]) == ("stopped", "collapsed", 0)
        assert (result["steps"], result["steps_planned"]) == (1, 15)
        assert result["metrics"]["final"]["step"] == 1
        assert [finding["signal"] for finding in result["findings"]] == ["depth_ratio", "logit_std"]
        assert result["findings"][0]["layer"].startswith("enc.l.0.")
        assert (result["cause"], result["advice"]) == (None, None)  # no weight has moved yet
        assert told[0].removeprefix("step 0") in (folder / name / "run.log").read_text()
        events = EventAccumulator(str(folder / name)).Reload()
        assert "verdict/text_summary" in events.Tags()["tensors"]
        assert events.Tags()["images"]


def test_watching_off_leaves_loss_and_accuracy(bertmon, files, tmp_path):
    assert bertmon("monitor=off", *files).returncode == 0
    folder = only_folder(tmp_path)
    (name,) = results(folder)
    tags = EventAccumulator(str(folder / name)).Reload().Tags()
    assert set(tags["scalars"]) >= {"loss/train", "loss/test", "accuracy/test", "learning_rate"}
    assert not any(tag.startswith("grad_mean") for tag in tags["scalars"])
    assert results(folder)[name]["verdict"] is None
    assert tags["images"] == []


WRONG = [  # arguments, what the message says
    (["schedule.warmup_frac=1.5"], "schedule.warmup_frac=1.5 is not possible: give a number from 0 to 1."),
    (["schedule.warmup_frac=0.1,1.5", "-m"], "schedule.warmup_frac=1.5 is not possible"),
    (["schedule.warmup_frac=0.1,abc", "-m"], "Value 'abc' of type 'str' could not be converted to Float"),
    (["schedule.warmup_frac=abc"], "Value 'abc' of type 'str' could not be converted to Float"),
    (["schedule.warmup_fraction=0.1"], "schedule.warmup_fraction"),
    (["+schedule.warmup_fraction=0.1"], "did you mean schedule.warmup_frac?"),
    (["train.batch_size=0,8", "-m"], "train.batch_size=0 is not possible"),
    (["data=newsgroups", "data.categories=[]"], "data.categories=[] is not possible: give a list of at least two"),
    (
        ["data=newsgroups", "data.categories=[sci.med,sci.magic]"],
        "data.categories: expected newsgroups among alt.atheism, ",
    ),
    (["data=files", "data.train=a.csv"], "data.test is missing"),
    (
        ["data=files", "data.train=nowhere.csv", "data.test=nowhere.csv"],
        "data.train=nowhere.csv: there is no such file",
    ),
    (["device=cuda"], "device=cuda is not possible: this machine has cpu"),
    (["device=tpu"], "Invalid value 'tpu', expected one of [auto, cuda, cpu, mps]"),
    (["seed=1,1", "-m"], "Two runs of the sweep have one folder"),
    (["seed=1,2", "-m", "hydra.sweep.subdir=x"], "Two runs of the sweep have one folder, multirun/"),
    (["-m", "+train.epoch=1,2"], "train.epoch is not a known key: did you mean train.epochs?"),
    (["-m", "model.num_attention_heads=null,2"], "cannot build bert: The hidden size (128)"),
    (["hydra.job.chdir=true"], "hydra.job.chdir=true is not possible"),
    (["hydra.run.dir=/proc/nope"], "/proc/nope cannot be made"),
    (["cache=${nope}"], "nope"),
    (["model=pretrained", "model.name=./nowhere"], "model.name=./nowhere: could not load a tokenizer"),
    (["data=nonsense"], "Could not find 'data/nonsense'"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_input_is_one_clear_message_before_anything_is_written(bertmon, tmp_path, arguments, message):
    done = bertmon("experiment=quickstart", *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "warning" not in done.stderr.lower()
    assert not (tmp_path / "multirun").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so(bertmon, files, tmp_path, number):
    running = bertmon("hydra.run.dir=run", "train.epochs=10000", *files, wait=False)
    log = tmp_path / "run" / "run.log"
    deadline = time.monotonic() + 120
    while not (log.exists() and "step 5 " in log.read_text()):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    running.send_signal(number)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 128 + number
    assert "Traceback" not in errors
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "interrupted"
    assert result["evaluations"][0]["step"] == 5
    assert result["steps"] >= 5
    tags = EventAccumulator(str(tmp_path / "run")).Reload().Tags()
    assert "accuracy/test" in tags["scalars"]


def test_flags_stand_anywhere_and_a_plus_changes_no_name(bertmon, files, tmp_path):
    done = bertmon("++schedule.warmup_frac=0.1,0.7", "-m", "train.epochs=1", *files, "hydra.sweep.dir=a b")
    assert done.returncode == 0, done.stderr
    assert list(results(tmp_path / "a b")) == ["warmup_frac=0.1/seed=0", "warmup_frac=0.7/seed=0"]
    assert done.stdout.splitlines()[-1] == "To see it: tensorboard --logdir 'a b' --samples_per_plugin images=100"
    shown = bertmon("seed=3", "--cfg", "job", "train.epochs=7")
    assert shown.returncode == 0, shown.stderr
    assert "seed: 3" in shown.stdout
    assert "epochs: 7" in shown.stdout


@needs_newsgroups
def test_the_comparison_on_real_newsgroups(bertmon, tmp_path):
    done = bertmon(
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
    assert done.returncode == 0, done.stderr
    runs = results(only_folder(tmp_path))
    assert [result["data"]["train_texts"] for result in runs.values()] == [2034, 2034]
    assert [result["steps"] for result in runs.values()] == [32, 32]


def test_configs_are_shown_from_any_directory_by_the_console_script(tmp_path):
    script = Path(sys.executable).with_name("bertmon")
    done = subprocess.run([script, "--cfg", "job"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warmup_frac: 0.1" in done.stdout


def test_a_long_check_is_announced(bertmon, files):
    done = bertmon("schedule.warmup_frac=range(0.01,1.11,0.01)", "-m", *files)
    assert done.returncode == 1
    assert done.stdout.splitlines()[1:] == ["checking 110 runs before the first one starts, about 9 s"]
    assert done.stderr.startswith("schedule.warmup_frac=1")


def test_a_large_file_is_trained_on_as_a_small_one(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "_BATCHES_AT_ONCE", 2)
    for name in ("small", "large"):
        (tmp_path / name).mkdir()
    run_training(settings, tmp_path / "small", name="small")
    monkeypatch.setattr(data.text_files, "_LARGE", 0)
    run_training(settings, tmp_path / "large", name="large")
    small, large = (History.load(tmp_path / name / "history.npz") for name in ("small", "large"))
    assert small.to_bytes() == large.to_bytes()
    small, large = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("small", "large"))
    assert small["data"] == large["data"]
    assert small["evaluations"] == large["evaluations"]
