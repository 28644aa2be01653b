"""The default experiment for the user's own data (data=files, data=hf)."""

import pytest

from bertmon.launch import hydra_setup
from bertmon.launch.command_line import with_own_data_defaults


@pytest.mark.parametrize(
    ("arguments", "experiment"),
    [
        (["data=files", "data.train=a.csv"], "finetune"),
        (["data=hf", "data.name=imdb", "schedule.warmup_frac=0.1,0.3", "-m"], "finetune"),
        (["data=files", "data.train=a.csv", "model=pretrained", "model.name=m"], "finetune"),
        (["data=files", "data.train=a.csv", "model=bert_small"], "custom"),
        (["data=files", "data.train=a.csv", "model.init=random"], "custom"),
    ],
)
def test_own_data_without_an_experiment_gets_a_suitable_one(arguments, experiment):
    assert with_own_data_defaults(arguments) == [*arguments, f"experiment={experiment}"]


def test_preset_of_own_data_is_fine_tuned_too(tmp_path):
    hydra_setup.register()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("defaults: [schema/files@_here_, _self_]\ntrain: a.csv\n")
    (tmp_path / "data" / "news.yaml").write_text("defaults: [newsgroups, _self_]\nmax_length: 32\n")
    for flag in (["--config-dir", str(tmp_path)], [f"-cd={tmp_path}"]):
        assert with_own_data_defaults([*flag, "data=mine"])[-1] == "experiment=finetune"
        assert with_own_data_defaults([*flag, "data=news"])[-1] == "data=news"
    assert with_own_data_defaults(["data=mine"], tmp_path)[-1] == "experiment=finetune"


@pytest.mark.parametrize(
    "arguments",
    [
        ["schedule.warmup_frac=0.1,0.7", "-m"],
        ["data=newsgroups"],
        ["data=files", "experiment=quickstart"],
        ["experiment=mine", "data=files", "--config-dir", "my_conf"],
        ["~experiment", "data=files", "-m"],
        ["data=nowhere", "--config-dir", "my_conf"],
    ],
)
def test_other_command_lines_are_unchanged(arguments):
    assert with_own_data_defaults(arguments) == arguments
