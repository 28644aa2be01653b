"""Warm-ups of a sweep that round to the same number of steps are announced before the first run."""

import dataclasses

import pytest
from conftest import small_run

from bertmon.config import ScheduleConfig
from bertmon.errors import InputError
from bertmon.launch.preflight import check_configs


def sweep(folder, *schedules):
    config = small_run(folder)
    return [dataclasses.replace(config, schedule=schedule) for schedule in schedules]


def test_check_configs_names_warmups_that_round_to_the_same_steps(tmp_path, capsys):
    fracs = [ScheduleConfig(warmup_frac=frac) for frac in (0.0, 0.01, 0.25)]
    check_configs(sweep(tmp_path, *fracs, ScheduleConfig(warmup_steps=3)))
    assert capsys.readouterr().out.splitlines() == [
        "schedule.warmup_frac=0.01 rounds to 0 of 12 steps, as another warm-up does: these runs are identical",
        "schedule.warmup_steps=3 rounds to 3 of 12 steps, as another warm-up does: these runs are identical",
    ]


def test_check_configs_of_different_seeds_or_warmups_prints_nothing(tmp_path, capsys):
    first, second = sweep(tmp_path, ScheduleConfig(warmup_frac=0.25), ScheduleConfig(warmup_frac=0.25))
    check_configs([first, dataclasses.replace(second, seed=2)])
    assert capsys.readouterr().out == ""


def test_check_configs_refuses_class_weights_of_other_classes(tmp_path):
    (config,) = sweep(tmp_path, ScheduleConfig())
    config.train.class_weights = [1.0, 2.0, 3.0]
    with pytest.raises(InputError, match=r"train\.class_weights: expected 2 numbers, got \[1\.0, 2\.0, 3\.0\]"):
        check_configs([config])
