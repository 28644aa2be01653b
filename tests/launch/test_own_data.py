"""data=files: what one's own texts are trained with unless an experiment is given."""

import pytest

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
def test_own_data_without_an_experiment_gets_one_that_suits_it(arguments, experiment):
    assert with_own_data_defaults(arguments) == [*arguments, f"experiment={experiment}"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["schedule.warmup_frac=0.1,0.7", "-m"],
        ["data=newsgroups"],
        ["data=files", "experiment=quickstart"],
        ["experiment=mine", "data=files", "--config-dir", "my_conf"],
    ],
)
def test_other_command_lines_stay_as_they_are(arguments):
    assert with_own_data_defaults(arguments) == arguments
