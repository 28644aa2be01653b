"""Sweeps over presets and over the user's own groups, and folders that several launches share."""

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import results, write_texts

from bertmon.config import RunConfig
from bertmon.launch.run_dirs import resume_argvs
from bertmon.result import Launch, SweepFile
from bertmon.training.run_training import _config_value

SHORT = ["train.epochs=1", "monitor=off", "train.eval_every=100"]


def write_preset(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"# @package _global_\n{text}")


def test_sweep_over_experiments_runs_each_of_them(bertmon_here, files, tmp_path):
    process = bertmon_here("run", "experiment=quickstart,custom", *files, *SHORT, "-m")
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("experiment=quickstart,custom, as requested; others are ")
    (folder,) = (tmp_path / "multirun").iterdir()
    assert {run["experiment"] for run in results(folder).values()} == {"quickstart", "custom"}
    assert "experiment=quickstart" not in json.loads((folder / "sweep.json").read_text())["command"]


def test_sweep_over_a_custom_group_names_its_runs_by_it(bertmon_here, demo_files, tmp_path):
    write_preset(tmp_path / "my_conf", "size/small.yaml", "optimizer: {weight_decay: 0.1}\n")
    write_preset(tmp_path / "my_conf", "size/large.yaml", "optimizer: {weight_decay: 0.2}\n")
    process = bertmon_here("run", "--config-dir", "my_conf", "+size=small,large", *demo_files, *SHORT, "-m")
    assert process.returncode == 0, process.stderr
    (folder,) = (tmp_path / "multirun").iterdir()
    runs = results(folder)
    assert {name: run["config"]["optimizer"]["weight_decay"] for name, run in runs.items()} == {
        "size=small/seed=0": 0.1,
        "size=large/seed=0": 0.2,
    }
    assert [run["overrides"] for run in runs.values()] == [{"size": "large"}, {"size": "small"}]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", "given"),
        ("train.class_weights.sky", "given"),
        ("data.bucket_lengths.0", "given"),
        ("model", "given"),
        ("train.patience", None),
        ("optimizer.lr", 2e-5),
    ],
)
def test_config_value_is_that_of_the_key_or_of_the_override(key, value):
    assert _config_value(RunConfig(), key, "given") == (RunConfig().optimizer.lr if value == 2e-5 else value)


def test_folder_set_by_a_preset_is_used_and_resumed(bertmon_here, demo_files, tmp_path):
    write_preset(
        tmp_path / "my_conf",
        "experiment/mine.yaml",
        "defaults: [quickstart]\nhydra: {sweep: {dir: 'out/${now:%H-%M-%S-%f}'}}\n",
    )
    process = bertmon_here(
        "run", "--config-dir", "my_conf", "experiment=mine", *demo_files[1:], *SHORT, "seed=0,1", "-m"
    )
    assert process.returncode == 0, process.stderr
    (folder,) = (tmp_path / "out").iterdir()
    assert not (tmp_path / "multirun").exists()
    (deleted,) = folder.glob("*/seed=1")
    shutil.rmtree(deleted)
    process = bertmon_here("resume", str(folder))
    assert process.returncode == 0, process.stderr
    assert len(results(folder)) == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == [folder.name]


def test_resume_of_a_sweep_whose_data_has_changed_is_refused(bertmon_here, demo_files, tmp_path):
    assert bertmon_here("run", *demo_files, *SHORT, "seed=0,1", "-m", "hydra.sweep.dir=sweep").returncode == 0
    (deleted,) = (tmp_path / "sweep").glob("*/seed=1")
    shutil.rmtree(deleted)
    write_texts(tmp_path / "train.csv", 30, seed=1)
    process = bertmon_here("resume", "sweep")
    assert process.returncode == 1
    assert "seed=0: the data has changed since this run started. Restore it, or start a new sweep" in process.stderr
    assert not deleted.exists()


# --- launches that share a folder -----------------------------------------------------------------

FIRST, SECOND = Launch(("a", "b"), ("seed=0,1", "-m"), "/x"), Launch(("c",), ("seed=2", "-m"), "/y")


def test_sweep_file_with_a_joining_launch_has_both(tmp_path):
    both = SweepFile(FIRST.runs, FIRST.command, FIRST.directory).with_launch(SECOND)
    assert both.runs == ("a", "b", "c")
    assert both.launches == (FIRST, SECOND)
    both.write(tmp_path)
    assert SweepFile.read(tmp_path) == both


def test_sweep_file_keeps_the_command_that_has_more_runs():
    sweep = SweepFile(FIRST.runs, FIRST.command, FIRST.directory)
    assert sweep.with_launch(Launch(("b",), ("seed=1", "resume=x"), "/x")) == sweep
    again = Launch(("a", "b"), ("seed=0,1", "-m", "resume=x"), "/x")
    assert sweep.with_launch(again).launches == (again,)
    more = Launch(("a", "b", "d"), ("seed=0,1,3", "-m"), "/x")
    assert sweep.with_launch(SECOND).with_launch(more).launches == (SECOND, more)
    search = SweepFile((), ("hydra/sweeper=optuna",), "/x")
    assert search.with_launch(Launch((), ("hydra/sweeper=optuna", "resume=x"), "/x")).command[-1] == "resume=x"


def test_resume_of_joined_launches_starts_those_with_unfinished_runs(bertmon_here, demo_files, tmp_path):
    for seeds in ("0,1", "2"):
        process = bertmon_here("run", *demo_files, *SHORT, f"seed={seeds}", "-m", "hydra.sweep.dir=sweep")
        assert process.returncode == 0, process.stderr
    commands = [argv[1:] for argv in resume_argvs(Path("sweep"))]
    assert ["seed=2" in command for command in commands] == [True]  # all are finished: only the last one
    for seed in (0, 2):
        (deleted,) = (tmp_path / "sweep").glob(f"*/seed={seed}")
        shutil.rmtree(deleted)
    commands = [argv[1:] for argv in resume_argvs(Path("sweep"))]
    assert [[word for word in command if word.startswith("seed=")] for command in commands] == [
        ["seed=0,1"],
        ["seed=2"],
    ]
    process = bertmon_here("resume", "sweep")
    assert process.returncode == 0, process.stderr
    assert sorted(run["seed"] for run in results(tmp_path / "sweep").values()) == [0, 1, 2]
    assert os.getcwd() == str(tmp_path)
