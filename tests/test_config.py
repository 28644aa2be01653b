import dataclasses
import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bertmon import config
from bertmon.config import from_hydra
from bertmon.errors import InputError

WRONG = [  # key, value, what is allowed
    ("seed", -1, "a whole number from 0 to 4294967295"),
    ("seed", 2**32, "a whole number from 0 to 4294967295"),
    ("data.max_length", 7, "a whole number of at least 8"),
    ("data.max_length", 600, "at most model.max_position_embeddings=512"),
    ("data.bucket_lengths", [], "ascending whole numbers above 0 that end with data.max_length=32"),
    ("data.bucket_lengths", [0, 32], "ascending"),
    ("data.bucket_lengths", [32, 16], "ascending"),
    ("data.bucket_lengths", [16, 31], "ascending"),
    ("data.packages", [], "a list of at least two names"),
    ("data.packages", ["numpy"], "a list of at least two names"),
    ("data.packages", ["numpy", "numpy"], "each name once"),
    ("train.checkpoint_every", 0, "a whole number of at least 1"),
    ("train.checkpoint_minutes", 0.0, "a finite number above 0, or null"),
    ("data.train_per_package", 0, "a whole number of at least 1"),
    ("data.test_per_package", -5, "a whole number of at least 1"),
    ("model.vocab_size", 99, "a whole number of at least 100"),
    ("model.num_hidden_layers", 0, "a whole number of at least 1"),
    ("model.hidden_size", 129, "a multiple of model.num_attention_heads=2"),
    ("model.hidden_dropout_prob", 1.0, "a number of at least 0 and below 1"),
    ("model.attention_probs_dropout_prob", float("nan"), "a number of at least 0 and below 1"),
    ("optimizer.lr", 0.0, "a finite number above 0"),
    ("optimizer.lr", float("inf"), "a finite number above 0"),
    ("optimizer.lr", float("nan"), "a finite number above 0"),
    ("optimizer.eps", -1e-6, "a finite number above 0"),
    ("optimizer.beta1", 1.0, "a number of at least 0 and below 1"),
    ("optimizer.beta2", 0.9999999, "at most 0.999997 without bias correction"),
    ("optimizer.weight_decay", -0.1, "a finite number of at least 0"),
    ("schedule.warmup_frac", 1.5, "a number from 0 to 1"),
    ("schedule.warmup_frac", -0.1, "a number from 0 to 1"),
    ("schedule.warmup_frac", float("nan"), "a number from 0 to 1"),
    ("cache", "", "a folder, or null"),
    ("train.epochs", 0, "a whole number of at least 1"),
    ("train.batch_size", 0, "a whole number of at least 1"),
    ("train.eval_batch_size", 0, "a whole number of at least 1"),
    ("train.eval_every", 0, "a whole number of at least 1"),
    ("train.log_every", -1, "a whole number of at least 1"),
    ("train.max_grad_norm", 0.0, "a finite number above 0, or null"),
    ("train.max_grad_norm", float("nan"), "a finite number above 0, or null"),
    ("monitor.every", 0, "a whole number of at least 1"),
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


def composed(*overrides):
    from hydra import compose, initialize_config_module

    import bertmon.run  # noqa: F401  # registers the types

    with initialize_config_module("bertmon.conf", version_base="1.3"):
        return compose("config", ["experiment=quickstart", *overrides])


@pytest.fixture(scope="module")
def quickstart():
    return composed()


@pytest.mark.parametrize(("key", "value", "allowed"), WRONG)
def test_a_wrong_value_is_named_with_what_is_allowed(quickstart, key, value, allowed):
    changed = quickstart.copy()
    OmegaConf.update(changed, key, value)
    with pytest.raises(InputError) as caught:
        from_hydra(changed)
    message = str(caught.value)
    assert message.startswith(f"{key}={value}"), message
    assert allowed in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "+schedule.warmup_fraction=0.1",
            r"schedule\.warmup_fraction is not a known key: did you mean schedule\.warmup_frac\?",
        ),
        ("+nonsense=1", r"nonsense is not a known key: there are .*seed"),
        ("+data.categories=[a,b]", r"data\.categories is not a known key"),
        ("+model.extra={a: 1}", r"model\.extra is not a known key"),
    ],
)
def test_an_unknown_key_is_refused_even_with_a_plus(override, message):
    with pytest.raises(InputError, match=message):
        from_hydra(composed(override))


def test_a_missing_key_is_named():
    with pytest.raises(InputError, match=r"data\.test is missing: give data\.test=\.\.\."):
        from_hydra(composed("data=files", "data.train=a.csv"))
    with pytest.raises(InputError, match=r"model\.name is missing"):
        from_hydra(composed("model=pretrained"))


def test_an_architecture_key_with_pretrained_weights():
    with pytest.raises(InputError, match=r"model\.hidden_size is not possible with model\.init=pretrained"):
        from_hydra(composed("model=bert_base_pretrained", "model.hidden_size=64"))
    from_hydra(composed("model=bert_base_pretrained", "model.hidden_dropout_prob=0.2", "data.max_length=256"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.vocab_size=500", r"model\.vocab_size is not possible beside model\.tokenizer or model\.name"),
        ("model.model_type=roberta", r"model\.model_type is not possible beside model\.name"),
    ],
)
def test_keys_that_a_named_model_would_ignore_are_refused(override, message):
    with pytest.raises(InputError, match=message):
        from_hydra(composed("model=pretrained", "model.name=x", override))


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # as good as unset
    assert from_hydra(composed()).cache_path() == tmp_path / ".cache" / "bertmon"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert str(from_hydra(composed()).cache_path()) == "/elsewhere/bertmon"
    assert from_hydra(composed("cache_dir='~/mine'")).cache_path() == tmp_path / "mine"


def test_settings_become_plain_dataclasses():
    settings = from_hydra(composed("data=files", "data.train=a.csv", "data.test=b.csv", "schedule=cosine"))
    assert type(settings) is config.RunConfig
    assert type(settings.data) is config.FilesConfig
    assert settings.schedule.decay is config.Decay.cosine
    assert type(from_hydra(composed()).data) is config.DocstringsConfig


def test_the_article_is_the_published_set_up():
    settings = from_hydra(composed("experiment=article"))
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


@pytest.mark.parametrize("experiment", ["quickstart", "article", "finetune"])
def test_every_experiment_composes_and_names_itself(experiment):
    assert from_hydra(composed(f"experiment={experiment}")).experiment == experiment


def test_every_field_has_a_docstring_right_under_it():
    import ast
    import inspect

    for node in ast.parse(inspect.getsource(config)).body:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            for field, below in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign) and ast.unparse(field.target) not in GROUPS:
                    documented = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                    assert documented, f"{node.name}.{ast.unparse(field.target)}"


GROUPS = {"data", "model", "optimizer", "schedule", "train", "monitor", "rules"}


def test_the_identity_of_a_run_is_all_that_makes_its_numbers():
    here = config.run_identity(dataclasses.asdict(config.RunConfig()))
    assert here["optimizer.lr"] == 1e-3
    assert here["schedule.decay"] == "linear"
    assert here["monitor.thresholds.slow_after"] == 0.3
    assert not here.keys() & {"resume", "cache", "device", "experiment"}
    config.require_same_run(here, json.loads(json.dumps(here)), Path("sweep"))
    config.require_same_run(
        {**here, "train.checkpoint_every": 5, "train.checkpoint_minutes": None}, here, Path("sweep")
    )
    other = {**here, "optimizer.lr": 0.5, "train.epochs": 7}
    message = (
        "sweep cannot go on with other settings than it was begun with: "
        "optimizer.lr=0.001 there and 0.5 here, train.epochs=3 there and 7 here."
    )
    with pytest.raises(InputError, match=re.escape(message)):
        config.require_same_run(other, here, Path("sweep"))
