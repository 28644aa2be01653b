"""The log lines on the data and the model before the first step of a run."""

import dataclasses

import pytest

from bertmon.training.run_training import run_training


@pytest.fixture
def first_lines(settings, tmp_path, caplog):
    """Train for one step and return the log's lines."""
    short = dataclasses.replace(settings.train, epochs=1, batch_size=64)

    def run(**changes):
        with caplog.at_level("INFO"):
            run_training(dataclasses.replace(settings, train=short, **changes), tmp_path / "run", name="it")
        return [record.getMessage() for record in caplog.records]

    return run


def test_first_lines_of_a_run_describe_the_data(first_lines):
    lines = first_lines()
    assert "2 classes (train / test texts): sea 22 / 5, sky 22 / 5" in lines
    assert any("of the training texts reach data.max_length=32 tokens" in line for line in lines)
    assert not any("depth_ratio" in line for line in lines)


@pytest.mark.parametrize("enabled", [True, False])
def test_first_lines_of_an_albert_name_the_missing_depth_ratio(settings, first_lines, enabled):
    albert = dataclasses.replace(settings.model, model_type="albert")
    lines = first_lines(model=albert, monitor=dataclasses.replace(settings.monitor, enabled=enabled))
    assert any(line.startswith("depth_ratio: albert shares one set of weights") for line in lines) == enabled


@pytest.mark.parametrize(
    ("changes", "compared"),
    [
        ({}, True),
        ({"hidden_size": 132}, False),
        ({"model_type": "roberta-prelayernorm", "max_position_embeddings": 40}, False),
    ],
)
def test_first_lines_compare_the_peak_with_models_like_the_studied_ones_alone(settings, first_lines, changes, compared):
    wide = dataclasses.replace(settings.model, **changes)
    lines = first_lines(model=wide, optimizer=dataclasses.replace(settings.optimizer, lr=1e-2))
    assert any("small BERTs from random weights" in line for line in lines) == compared
