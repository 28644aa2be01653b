"""The Python API: bertmon.train and the public names."""

import logging
import subprocess
import sys

import pytest
from conftest import results

import bertmon


def test_all_public_names_exist_and_are_imported_on_first_use():
    assert bertmon.__all__ == sorted(bertmon.__all__)
    for name in bertmon.__all__:
        assert getattr(bertmon, name) is not None
        assert name in dir(bertmon)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = bertmon.nonsense


def test_import_of_the_package_loads_no_heavy_modules():
    code = "import bertmon, sys; print(sorted({'torch', 'hydra', 'numpy', 'transformers'} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "[]\n"


@pytest.fixture
def here(tmp_path, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    return tmp_path


def test_train_returns_the_result_and_writes_the_same_folder_as_the_command_line(here, files, bertmon_here, capsys):
    overrides = ["experiment=quickstart", "train.epochs=1", "schedule.warmup_frac=0.3", *files]
    root = logging.getLogger()
    before = list(root.handlers)
    result = bertmon.train([*overrides, "hydra.run.dir=python"])
    assert root.handlers == before
    assert isinstance(result, bertmon.RunResult)
    assert (result.status, result.steps, result.experiment) == ("finished", 5, "quickstart")
    printed = capsys.readouterr().out
    assert printed.startswith("experiment=quickstart, as requested")
    assert printed.rstrip().endswith("tensorboard python")
    process = bertmon_here("run", *overrides, "hydra.run.dir=shell")
    assert process.returncode == 0, process.stderr

    def names(folder):
        paths = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        return {name for name in paths if "tfevents" not in name}

    assert names(here / "python") == names(here / "shell")
    python, shell = results(here / "python")["."], results(here / "shell")["."]
    assert python["evaluations"] == shell["evaluations"]
    assert python["config"] == shell["config"]


def test_train_leaves_the_callers_log_files_open_and_prints_every_time(here, files, capsys):
    root, log_file = logging.getLogger(), logging.FileHandler(here / "my.log", mode="w")
    root.addHandler(log_file)
    try:
        logging.getLogger("mine").warning("before")
        for name in ("one", "two"):
            bertmon.train(["experiment=quickstart", "train.epochs=1", *files, f"hydra.run.dir={name}"])
            assert "2 classes (train / test texts)" in capsys.readouterr().out
            logging.getLogger("mine").warning("after")
    finally:
        root.removeHandler(log_file)
        log_file.close()
    lines = (here / "my.log").read_text().splitlines()
    assert [line for line in lines if line in ("before", "after")] == ["before", "after", "after"]


def test_train_accepts_a_config_directory(here, files):
    experiment = here / "my_conf" / "experiment" / "mine.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text("# @package _global_\nexperiment: mine\ntrain: {epochs: 1}\n")
    result = bertmon.train(["experiment=mine", *files], config_dir="my_conf")
    assert (result.experiment, result.steps) == ("mine", 5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.learning_rate=1"], "optimizer.learning_rate: no such key; did you mean optimizer.lr?"),
        (["train.epochs=0"], "train.epochs: expected an integer"),
        (["-m"], "train: expected overrides, got -m"),
        (["seed=1,2"], "Ambiguous value for argument 'seed=1,2'"),
        (["data=files", "data.train=nowhere.csv"], "data.train: expected an existing file"),
        ("seed=1", 'overrides: expected a list of strings, such as ["seed=1"], got seed=1.'),
    ],
)
def test_train_raises_input_error_for_a_mistake(here, overrides, message):
    with pytest.raises(bertmon.InputError) as caught:
        bertmon.train(overrides if isinstance(overrides, str) else ["experiment=quickstart", *overrides])
    assert message in str(caught.value)
    assert not (here / "multirun").exists()


def test_config_directory_that_does_not_exist_is_refused(here):
    with pytest.raises(bertmon.InputError, match="config_dir: expected an existing folder, got nowhere"):
        bertmon.train(["experiment=quickstart"], config_dir="nowhere")


def test_train_raises_what_the_run_raises(here, files, monkeypatch, capsys):
    def fail(*arguments):
        raise ZeroDivisionError("in the middle")

    monkeypatch.setattr("bertmon.training.run_training.build_task", fail)
    with pytest.raises(ZeroDivisionError, match="in the middle"):
        bertmon.train(["experiment=quickstart", "hydra.run.dir=run", *files])
    assert results(here / "run")["."]["status"] == "failed"
