"""Advice that never contradicts the sweep."""

import pytest
from conftest import leave_run

from bertmon.compare.advice import advise, peak_effective_lr, remedies
from bertmon.compare.results import read_sweep

QUICKSTART = {
    "optimizer.lr": 5.5e-4,
    "optimizer.bias_correction": False,
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.999,
    "schedule.decay": "linear",
    "schedule.warmup_frac": 0.1,
}


def nested(values):
    config = {}
    for key, value in values.items():
        group, _, name = key.partition(".")
        config.setdefault(group, {})[name] = value
    return config


def leave(folder, *, learns, seeds=2, verdict="collapsed", **changes):
    """Runs with the quickstart's plan and some changes, by key with __ for a dot."""
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    for seed in range(seeds):
        name = ",".join(f"{key}={value}" for key, value in overrides.items())
        leave_run(
            folder / name / f"seed={seed}", learns=learns, seed=seed, overrides=overrides, steps=675, total_steps=675,
            config=nested(QUICKSTART | overrides), **({} if learns else {"verdict": verdict}),
        )  # fmt: skip


def advice(folder):
    sweep = read_sweep([folder])
    return {setting.name: advise(sweep, setting) for setting in sweep.settings if setting.did_not_learn}


def test_peak_effective_lr_equals_the_plans_of_real_runs():
    assert peak_effective_lr(QUICKSTART, 675) == pytest.approx(2.128037490538244e-3)
    assert peak_effective_lr(QUICKSTART | {"schedule.warmup_frac": 0.7}, 675) == pytest.approx(8.957400733533605e-4)
    assert peak_effective_lr(QUICKSTART | {"optimizer.bias_correction": True}, 675) == pytest.approx(5.5e-4, rel=2e-3)


def test_advice_of_one_failing_setting_names_remedies_with_their_peaks(tmp_path):
    leave(tmp_path, learns=False, schedule__warmup_frac=0.1)
    assert advice(tmp_path) == {
        "warmup_frac=0.1": "Try schedule.warmup_frac=0.7 (peak effective rate 8.96e-4) or "
        "optimizer.bias_correction=true (peak effective rate 5.5e-4)."
    }


def test_advice_does_not_propose_what_failed(tmp_path):
    for warmup in (0.1, 0.7):
        leave(tmp_path, learns=False, schedule__warmup_frac=warmup)
    said = advice(tmp_path)["warmup_frac=0.1"]
    assert "warmup_frac=0.7" not in said
    assert said.startswith("Try optimizer.bias_correction=true")


def test_advice_names_what_worked(tmp_path):
    leave(tmp_path, learns=False, schedule__warmup_frac=0.1)
    leave(tmp_path, learns=True, schedule__warmup_frac=0.5)
    said = advice(tmp_path)["warmup_frac=0.1"]
    assert said.startswith("With warmup_frac=0.5 both runs learned. Not tried:")


def test_advice_names_the_setting_that_differs_least(tmp_path):
    leave(tmp_path, learns=False, schedule__warmup_frac=0.1, optimizer__lr=1e-3)
    leave(tmp_path, learns=True, schedule__warmup_frac=0.7, optimizer__lr=1e-4)
    leave(tmp_path, learns=True, schedule__warmup_frac=0.1, optimizer__lr=1e-4)
    assert advice(tmp_path)["warmup_frac=0.1, lr=1e-3"].startswith("With lr=1e-4 both runs learned")


def test_advice_does_not_name_a_setting_of_which_one_run_failed(tmp_path):
    leave(tmp_path, learns=False, schedule__warmup_frac=0.1)
    leave(tmp_path, learns=True, schedule__warmup_frac=0.5)
    leave_run(
        tmp_path / "schedule.warmup_frac=0.5/seed=9", learns=False, seed=9, overrides={"schedule.warmup_frac": 0.5},
        config=nested(QUICKSTART | {"schedule.warmup_frac": 0.5}), steps=675, total_steps=675,
    )  # fmt: skip
    assert "learned" not in advice(tmp_path)["warmup_frac=0.1"]


def test_advice_for_a_rate_that_is_too_small_is_that_of_the_verdict(tmp_path):
    leave(tmp_path, learns=False, verdict="not learning", optimizer__lr=1e-6)
    assert advice(tmp_path) == {"lr=1e-6": "Try optimizer.lr=0.1."}  # conftest's advice
    leave(tmp_path, learns=False, verdict="not learning", optimizer__lr=0.1)
    assert advice(tmp_path)["lr=1e-6"] == ""


def test_advice_where_no_rule_flagged_is_none(tmp_path):
    leave(tmp_path, learns=False, verdict="slow", optimizer__lr=1e-6)
    assert advice(tmp_path) == {"lr=1e-6": ""}


def test_remedies_of_a_plan_with_correction_are_a_smaller_rate(tmp_path):
    leave(tmp_path, learns=False, optimizer__bias_correction=True, schedule__warmup_frac=0.7)
    run = read_sweep([tmp_path]).runs[0]
    assert [(remedy.key, remedy.value) for remedy in remedies(run)] == [("optimizer.lr", 2e-4)]
