import dataclasses
import json
import re
from pathlib import Path

import pytest
from conftest import compose_config
from omegaconf import OmegaConf

from bertmon import config
from bertmon.errors import InputError
from bertmon.launch.compose import load_config
from bertmon.launch.read_config import read_config

WRONG = [  # key, value, how the message continues after "expected"
    ("seed", -1, "an integer from 0 to 4294967295"),
    ("seed", 2**32, "an integer from 0 to 4294967295"),
    ("data.max_length", 7, "an integer of at least 8"),
    ("data.max_length", 600, "at most model.max_position_embeddings=512"),
    ("data.bucket_lengths", [], "ascending integers above 0 that end with data.max_length=32"),
    ("data.bucket_lengths", [0, 32], "ascending integers"),
    ("data.bucket_lengths", [32, 16], "ascending integers"),
    ("data.bucket_lengths", [16, 31], "ascending integers"),
    ("data.packages", [], "a list of at least two names"),
    ("data.packages", ["numpy"], "a list of at least two names"),
    ("data.packages", ["numpy", "numpy"], "each name once"),
    ("train.checkpoint_every", 0, "an integer of at least 1"),
    ("train.checkpoint_minutes", 0.0, "a finite number above 0, or null"),
    ("data.train_per_package", 0, "an integer of at least 1"),
    ("data.test_per_package", -5, "an integer of at least 1"),
    ("model.vocab_size", 99, "an integer of at least 100"),
    ("model.num_hidden_layers", 0, "an integer of at least 1"),
    ("model.hidden_size", 129, "a multiple of model.num_attention_heads=2"),
    ("model.hidden_dropout_prob", 1.0, "a number of at least 0 and below 1"),
    ("model.attention_probs_dropout_prob", float("nan"), "a number of at least 0 and below 1"),
    ("optimizer.lr", 0.0, "a finite number above 0"),
    ("optimizer.lr", float("inf"), "a finite number above 0"),
    ("optimizer.lr", float("nan"), "a finite number above 0"),
    ("optimizer.eps", -1e-6, "a finite number of at least 1.2e-38"),
    ("optimizer.beta1", 1.0, "a number of at least 0 and below 1"),
    ("optimizer.beta2", 0.9999999, "at most 0.999997 without bias correction"),
    ("optimizer.weight_decay", -0.1, "a finite number of at least 0"),
    ("schedule.warmup_frac", 1.5, "a number from 0 to 1"),
    ("schedule.warmup_frac", -0.1, "a number from 0 to 1"),
    ("schedule.warmup_frac", float("nan"), "a number from 0 to 1"),
    ("cache_dir", "", "a folder, or null"),
    ("train.epochs", 0, "an integer of at least 1"),
    ("train.batch_size", 0, "an integer of at least 1"),
    ("train.eval_batch_size", 0, "an integer of at least 1"),
    ("train.eval_every", 0, "an integer of at least 1"),
    ("train.log_every", -1, "an integer of at least 1"),
    ("train.max_grad_norm", 0.0, "a finite number above 0, or null"),
    ("train.max_grad_norm", float("nan"), "a finite number above 0, or null"),
    ("monitor.every", 0, "an integer of at least 1"),
    ("monitor.skip_prob", 1.0, "a number of at least 0 and below 1"),
    ("monitor.thresholds.min_logit_std", 0.0, "a finite number above 0"),
    ("monitor.thresholds.min_depth_ratio", float("nan"), "a finite number above 0"),
    ("monitor.thresholds.min_update_per_lr", float("inf"), "a finite number above 0"),
    ("monitor.thresholds.min_final_logit_std", -1.0, "a finite number above 0"),
    ("monitor.thresholds.max_logit_std_growth", 0.0, "a finite number above 0"),
    ("monitor.thresholds.learned_loss_ratio", 1.0, "a number between 0 and 1"),
    ("monitor.thresholds.min_lr_used", 0.0, "a number between 0 and 1"),
    ("monitor.thresholds.slow_after", 1.5, "a number between 0 and 1"),
]


@pytest.fixture(scope="module")
def quickstart():
    return compose_config("experiment=quickstart")


@pytest.mark.parametrize(("key", "value", "expected"), WRONG)
def test_config_value_out_of_range_names_key_value_and_range(quickstart, key, value, expected):
    changed = quickstart.copy()
    OmegaConf.update(changed, key, value)
    with pytest.raises(InputError) as caught:
        read_config(changed)
    message = str(caught.value)
    assert message.startswith(f"{key}: expected {expected}"), message
    assert message.endswith(f", got {value or repr(value) if value == '' else value}."), message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=bert_base_pretrained", "model.hidden_size=64"], "model.hidden_size: expected null with model.init="),
        (
            ["model=pretrained"],
            "model.name: expected the hub name or local folder of the pretrained weights, got null.",
        ),
        (
            ["model=pretrained", "model.name=x", "model.vocab_size=500"],
            "model.vocab_size: expected null with model.tok",
        ),
        (
            ["model=pretrained", "model.name=x", "model.model_type=roberta"],
            "model.model_type: expected null with model",
        ),
    ],
)
def test_config_key_that_a_named_model_would_ignore_is_refused(overrides, message):
    with pytest.raises(InputError, match=re.escape(message)):
        load_config(["experiment=quickstart", *overrides])


def test_config_dropout_of_pretrained_model_can_be_changed():
    config = load_config(["model=bert_base_pretrained", "model.hidden_dropout_prob=0.2", "data.max_length=256"])
    assert config.model.hidden_dropout_prob == 0.2


def test_cache_path_follows_xdg_and_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # same as unset
    assert load_config().cache_path() == tmp_path / ".cache" / "bertmon"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert str(load_config().cache_path()) == "/elsewhere/bertmon"
    assert load_config(["cache_dir='~/mine'"]).cache_path() == tmp_path / "mine"


def test_load_config_returns_plain_dataclasses():
    settings = load_config(["data=files", "data.train=a.csv", "data.test=b.csv", "schedule=cosine"])
    assert type(settings) is config.RunConfig
    assert type(settings.data) is config.FilesConfig
    assert settings.schedule.decay is config.Decay.cosine
    assert type(load_config(["experiment=quickstart"]).data) is config.DocstringsConfig


def test_experiment_article_is_the_published_setup():
    settings = load_config(["experiment=article"])
    assert settings.experiment == "article"
    assert (settings.optimizer.lr, settings.optimizer.eps, settings.optimizer.weight_decay) == (3e-5, 1e-6, 0)
    assert settings.optimizer.bias_correction is False
    assert (settings.train.epochs, settings.train.batch_size, settings.train.max_grad_norm) == (5, 16, 1.0)
    assert dict(settings.model.architecture()) == {
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 256,
    }
    assert (settings.model.init.value, settings.model.tokenizer) == ("random", "bert-base-uncased")
    assert settings.monitor.every == 30
    assert settings.schedule.decay is config.Decay.linear


@pytest.mark.parametrize("experiment", ["quickstart", "article", "finetune", "custom"])
def test_experiment_names_itself(experiment):
    assert load_config([f"experiment={experiment}"]).experiment == experiment


def test_config_fields_have_docstrings():
    import ast
    import inspect

    for node in ast.parse(inspect.getsource(config)).body:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            for field, below in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign) and ast.unparse(field.target) not in GROUPS:
                    documented = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                    assert documented, f"{node.name}.{ast.unparse(field.target)}"


GROUPS = {"data", "model", "optimizer", "schedule", "train", "monitor", "thresholds"}


def test_run_identity_has_the_keys_that_affect_results():
    identity = config.run_identity(dataclasses.asdict(config.RunConfig(name="mine")))
    assert identity["optimizer.lr"] == 1e-3
    assert identity["schedule.decay"] == "linear"
    assert identity["monitor.thresholds.slow_after"] == 0.3
    others = {
        "resume",
        "cache_dir",
        "device",
        "experiment",
        "name",
        "train.checkpoint_every",
        "train.checkpoint_minutes",
    }
    assert not identity.keys() & others
    assert identity == json.loads(json.dumps(identity))


def test_run_identity_of_version_0_1_has_the_current_keys():
    old = {
        "cache": None,
        "seed": 1,
        "data": {"pad_lengths": [8, 32], "home": None},
        "train": {"clip": 1.0, "checkpoint_every": 5},
        "schedule": {"shape": "linear", "warmup_frac": 0.1},
        "monitor": {"biases": False, "rules": {"logit_spread": 3e-5, "patience": 0.3}},
    }
    assert config.run_identity(old) == {
        "seed": 1,
        "data.bucket_lengths": [8, 32],
        "data.data_home": None,
        "train.max_grad_norm": 1.0,
        "schedule.decay": "linear",
        "schedule.warmup_frac": 0.1,
        "monitor.include_biases": False,
        "monitor.thresholds.min_logit_std": 3e-5,
        "monitor.thresholds.min_lr_used": 0.3,
    }


def test_renamed_keys_exist():
    from bertmon.launch.read_config import _all_keys

    assert set(config.RENAMED_KEYS.values()) <= set(_all_keys())
    assert not set(config.RENAMED_KEYS) & set(_all_keys())


def test_require_same_run_lists_all_differences():
    identity = config.run_identity(dataclasses.asdict(config.RunConfig()))
    config.require_same_run(identity, json.loads(json.dumps(identity)), Path("sweep"))
    changed = {**identity, "optimizer.lr": 0.5, "train.epochs": 7}
    message = (
        "sweep: cannot resume with different settings: optimizer.lr was 0.001, now 0.5; train.epochs was 3, now 7. "
        "Give the earlier values on the command line, or start a new run."
    )
    with pytest.raises(InputError, match=re.escape(message)):
        config.require_same_run(changed, identity, Path("sweep"))


@pytest.mark.parametrize(
    "data",
    [
        config.FilesConfig(train="a.csv"),
        config.HfConfig(name="imdb"),
        config.DocstringsConfig(),
        config.NewsgroupsConfig(),
    ],
)
def test_default_identity_has_the_defaults_of_the_data(data):
    identity = config.run_identity(dataclasses.asdict(config.RunConfig(data=data)))
    for key in identity:
        rest = {other: value for other, value in identity.items() if other != key}
        if key not in ("data.train", "data.name"):  # which have no default
            assert config.default_identity(rest)[key] == identity[key], key


def test_require_same_run_assumes_defaults_for_keys_of_later_versions():
    identity = config.run_identity(dataclasses.asdict(config.RunConfig()))
    earlier = {key: value for key, value in identity.items() if key != "monitor.thresholds.slow_after"}
    config.require_same_run(identity, earlier, Path("sweep"))
    with pytest.raises(InputError, match=r"monitor\.thresholds\.slow_after was 0\.3, now 0\.5\. Give"):
        config.require_same_run({**identity, "monitor.thresholds.slow_after": 0.5}, earlier, Path("sweep"))


def test_model_in_the_home_folder_is_found(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    model = config.ModelConfig(name="~/weights", tokenizer="~/words")
    assert (model.name, model.tokenizer) == ("/home/me/weights", "/home/me/words")
