"""Mistyped keys and values: bertmon's messages instead of Hydra's, and the advice in them."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import results
from omegaconf import OmegaConf

from bertmon.errors import InputError
from bertmon.launch import rerun
from bertmon.launch.command_line import check_arguments, flags_first
from bertmon.launch.compose import load_config
from bertmon.launch.read_config import explain_unknown_key

UNKNOWN = [  # arguments, the whole message
    (["optimizer.learning_rate=1e-4"], "optimizer.learning_rate: no such key; did you mean optimizer.lr?"),
    (["+optimizer.learning_rate=1e-4"], "optimizer.learning_rate: no such key; did you mean optimizer.lr?"),
    (["learning_rate=1e-4"], "learning_rate: no such key; did you mean optimizer.lr?"),
    (["warmup_frac=0.3"], "warmup_frac: no such key; did you mean schedule.warmup_frac?"),
    (["-m", "+train.epoch=1,2"], "train.epoch: no such key; did you mean train.epochs?"),
    (["train.clip=1"], "train.clip was renamed to train.max_grad_norm."),
    (["++monitor.rules.slow=0.5"], "monitor.rules.slow was renamed to monitor.thresholds.slow_after."),
    (["data.categories=[a,b]"], "data.categories: not available with the chosen data; it requires data=newsgroups."),
    (["model=hub"], "model=hub was renamed to model=pretrained."),
    (["+experiment=mine"], "experiment: drop the +: experiment=mine"),
    (["name=a,b", "-m"], "name: expected one name for the whole sweep, got several."),
    (["seed=1,1", "-m"], "expected a folder per run, got two runs in it: "),
    (["hydra.job.chdir=true"], "hydra.job.chdir: expected false, since relative paths would not be found, got true."),
    (["device=cuda"], "device: expected "),
    (["-cp", "conf"], "-cp: expected --config-dir, which adds a folder to bertmon's own conf/."),
]


@pytest.mark.parametrize(("arguments", "message"), UNKNOWN)
def test_invalid_arguments_are_one_message_and_nothing_is_written(bertmon_here, files, tmp_path, arguments, message):
    process = bertmon_here("run", "experiment=quickstart", *files, *arguments)
    assert process.returncode == 1
    assert message in process.stderr
    assert "Traceback" not in process.stdout + process.stderr
    assert not (tmp_path / "multirun").exists()


@pytest.mark.parametrize("name", ["a=b.csv", "a[1].csv", "汉字.csv", "a(1).csv", "x y=1.csv", "it's.csv", "a&b;#!.csv"])
def test_value_that_hydra_cannot_parse_gets_quoting_that_works(bertmon_here, files, tmp_path, name):
    (tmp_path / name).write_bytes((tmp_path / "train.csv").read_bytes())
    rest = ["experiment=quickstart", "train.epochs=1", *(word for word in files if not word.startswith("data.train="))]
    wrong = bertmon_here("run", f"data.train={name}", *rest)
    assert wrong.returncode == 1
    advice = re.search(
        r"^data\.train: could not parse the value .*; quote it for Hydra and for the shell: (.*)$", wrong.stderr
    )
    assert advice, wrong.stderr
    (override,) = shlex.split(advice[1])
    right = bertmon_here("run", override, *rest, "--cfg", "job")
    assert OmegaConf.create(right.stdout).data.train == name
    if name == "a(1).csv":
        assert bertmon_here("run", override, *rest).returncode == 0


def test_renamed_key_in_a_users_file_is_refused_with_its_new_name(bertmon_here, files, tmp_path):
    experiment = tmp_path / "my_conf" / "experiment" / "mine.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text("# @package _global_\nexperiment: mine\ntrain:\n  clip: 1.0\n")
    process = bertmon_here("run", "--config-dir", "my_conf", "experiment=mine", *files)
    assert process.returncode == 1
    assert process.stderr == "conf experiment/mine: train.clip was renamed to train.max_grad_norm.\n"


def test_custom_config_directory_works(bertmon_here, files, tmp_path):
    experiment = tmp_path / "my_conf" / "experiment" / "mine.yaml"
    experiment.parent.mkdir(parents=True)
    preset = [
        "# @package _global_",
        "defaults:",
        "  - quickstart",
        "  - _self_",
        "experiment: mine",
        "train: {epochs: 1}",
    ]
    experiment.write_text("\n".join(preset) + "\n")
    process = bertmon_here("run", "--config-dir", "my_conf", "experiment=mine", *files)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("experiment=mine, as requested; others are ")
    (folder,) = (tmp_path / "multirun").iterdir()
    (result,) = results(folder).values()
    assert (result["experiment"], result["total_steps"], result["config"]["optimizer"]["lr"]) == ("mine", 5, 5.5e-4)
    config = load_config(["experiment=mine"], config_dir=tmp_path / "my_conf")
    assert (config.experiment, config.train.epochs) == ("mine", 1)


def test_saved_config_is_refused_by_run_and_used_by_rerun(bertmon_here, files, tmp_path):
    Path("mine/model").mkdir(parents=True)
    Path("mine/model/mine.yaml").write_text("defaults: [bert_small]\nnum_hidden_layers: 2\n")
    overrides = ["train.epochs=1", "optimizer.lr=3e-4", "name=first", "train.class_weights={sea: 2, sky: 1.5}"]
    overrides += ["--config-dir", "mine", "model=mine"]
    assert bertmon_here("run", "experiment=quickstart", "hydra.run.dir=run", *overrides, *files).returncode == 0
    refused = bertmon_here("run", "--config-dir", "run/.hydra", "--config-name", "config")
    assert refused.returncode == 1
    assert "run/.hydra/config.yaml would not be used" in refused.stderr
    assert refused.stderr.rstrip().endswith("rerun run")
    process = bertmon_here("rerun", "run", "hydra.run.dir=again")
    assert process.returncode == 0, process.stderr
    first, again = results(tmp_path / "run")["."], results(tmp_path / "again")["."]
    assert first["config"] == again["config"]
    assert first["evaluations"] == again["evaluations"]
    missing = bertmon_here("rerun", "nowhere")
    assert missing.returncode == 1
    assert missing.stderr.startswith("nowhere/.hydra/config.yaml: expected the config of a run")


@pytest.mark.parametrize(
    ("weights", "override"),
    [
        ({0: 2.0, 1: 1}, "train.class_weights={0:2.0,1:1}"),
        ({"a b": 2, "c:d": 1}, "train.class_weights={a\\ b:2,c\\:d:1}"),
    ],
)
def test_rerun_writes_class_weights_in_hydras_syntax(weights, override):
    assert rerun._override("train.class_weights", weights, Path("run")) == override


@pytest.mark.parametrize("name", ["null", "1e3", "s\u00fc\u00df", ""])
def test_rerun_of_names_that_no_override_can_express_is_refused(name):
    with pytest.raises(InputError, match=r"^run: train\.class_weights has names that no override can express"):
        rerun._override("train.class_weights", {name: 1, "b": 2}, Path("run"))


def test_flags_first_keeps_the_value_of_a_flag_next_to_it():
    arguments = ["seed=1", "--config-dir", "conf=v2", "-m", "-p", "a=b"]
    assert flags_first(arguments) == ["--config-dir", "conf=v2", "-m", "-p", "a=b", "seed=1"]


def test_flags_first_keeps_the_order_of_other_arguments():
    arguments = ["b=1", "-m", "~monitor", "--config-dir", "x", "+a=2", "hydra/launcher=joblib"]
    assert flags_first(arguments) == ["-m", "--config-dir", "x", "b=1", "~monitor", "+a=2", "hydra/launcher=joblib"]


def test_check_arguments_accepts_valid_arguments():
    check_arguments(
        ["-m", "schedule.warmup_frac=0.1,0.7", "~monitor", "data=files", "hydra/launcher=joblib", "--cfg", "job"]
    )
    with pytest.raises(InputError, match=r"model: expected the name of a file in conf/model, got null\."):
        check_arguments(["model=null"])


@pytest.mark.parametrize(
    ("key", "guess"),
    [
        ("train.batchsize", "train.batch_size"),
        ("warmup_ratio", "schedule.warmup_frac"),
        ("num_train_epochs", "train.epochs"),
        ("per_device_train_batch_size", "train.batch_size"),
        ("monitor.thresholds.min_logit", "monitor.thresholds.min_logit_std"),
        ("train.lr", "optimizer.lr"),
        ("train.seed", "seed"),
        ("train.warmup_frac", "schedule.warmup_frac"),
        ("data.batch_size", "train.batch_size"),
        ("model.n_layers", "model.num_hidden_layers"),
    ],
)
def test_explain_unknown_key_guesses_the_key(key, guess):
    assert explain_unknown_key(key) == f"{key}: no such key; did you mean {guess}?"


def test_explain_unknown_key_below_a_key_names_that_one():
    message = "train.class_weights.spam: no such key; give the whole value, train.class_weights=..."
    assert explain_unknown_key("train.class_weights.spam") == message


def test_explain_unknown_key_without_a_guess_lists_the_group():
    assert explain_unknown_key("schedule.xyzxyz").startswith(
        "schedule.xyzxyz: no such key; the keys are schedule.decay, "
    )
