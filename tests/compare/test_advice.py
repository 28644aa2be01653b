"""Advice that never contradicts the results of the sweep."""

import pytest
from conftest import nested, write_run

from bertmon.compare.advice import advise, remedies
from bertmon.compare.results import read_sweep
from bertmon.config import Decay, OptimizerConfig, RunConfig, ScheduleConfig
from bertmon.monitor.history import HISTORY_FILE, History
from bertmon.training.plan import plan_run

QUICKSTART = {
    "optimizer.lr": 5.5e-4,
    "optimizer.bias_correction": False,
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.999,
    "schedule.decay": "linear",
    "schedule.warmup_frac": 0.1,
}
DECAYS = {  # with the keys that each needs
    "polynomial": {"power": 2.0, "end_factor": 0.1},
    "cosine_with_restarts": {"cycles": 3},
    "cosine_with_min_lr": {"end_factor": 0.1},
    "warmup_stable_decay": {"end_factor": 0.1, "decay_frac": 0.1},
}


def plan_of(values):
    """The plan of a run with these values by dotted key."""
    config = nested(values)
    decay = Decay(config["schedule"].pop("decay"))
    schedule = ScheduleConfig(decay=decay, **config["schedule"])
    return plan_run(RunConfig(optimizer=OptimizerConfig(**config["optimizer"]), schedule=schedule), 225, 1.4)


def write_runs(folder, *, learns, seeds=2, verdict="collapsed", **changes):
    """Write runs with the quickstart's plan and the changes; their keys have __ for a dot."""
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    for seed in range(seeds):
        name = ",".join(f"{key}={value}" for key, value in overrides.items())
        write_run(
            folder / name / f"seed={seed}", learns=learns, seed=seed, overrides=overrides, steps=675, total_steps=675,
            config=nested(QUICKSTART | overrides), **({} if learns else {"verdict": verdict}),
        )  # fmt: skip
        (folder / name / f"seed={seed}" / HISTORY_FILE).write_bytes(History(plan_of(QUICKSTART | overrides)).to_bytes())


def advice(folder):
    sweep = read_sweep([folder])
    return {setting.name: advise(sweep, setting) for setting in sweep.settings if setting.runs_not_learned}


def test_warm_up_that_leaves_no_room_for_the_decay_is_not_proposed(tmp_path):
    keys = {"schedule__end_factor": 0.1, "schedule__decay_frac": 0.5}
    write_runs(tmp_path, learns=False, seeds=1, schedule__decay="warmup_stable_decay", **keys)
    (run,) = read_sweep([tmp_path]).runs
    assert [remedy.key for remedy in remedies(run)] == ["optimizer.bias_correction"]


@pytest.mark.parametrize("decay", list(Decay))
def test_peaks_of_remedies_match_their_plans(tmp_path, decay):
    values = {"schedule.decay": decay.value} | {f"schedule.{k}": v for k, v in DECAYS.get(decay.value, {}).items()}
    write_runs(tmp_path, learns=False, seeds=1, **{key.replace(".", "__"): value for key, value in values.items()})
    (run,) = read_sweep([tmp_path]).runs
    proposed = remedies(run)
    assert [remedy.key for remedy in proposed] == ["schedule.warmup_frac", "optimizer.bias_correction"]
    for remedy in proposed:
        plan = plan_of(QUICKSTART | values | {remedy.key: remedy.value})
        assert remedy.peak == pytest.approx(plan.effective_lr.max(), rel=2e-3)


def test_longer_warm_up_is_proposed_in_the_key_that_takes_effect(tmp_path):
    write_runs(tmp_path / "short", learns=False, seeds=1, schedule__warmup_steps=67)
    write_runs(tmp_path / "long", learns=False, seeds=1, schedule__warmup_steps=473)
    short, long = (remedies(run)[0] for run in read_sweep([tmp_path]).runs)
    assert {(short.key, short.value), (long.key, long.value)} == {
        ("schedule.warmup_steps", 472),
        ("optimizer.lr", 2e-4),
    }


def test_no_warm_up_is_proposed_for_a_custom_schedule(tmp_path, monkeypatch):
    monkeypatch.setattr("math.constant", lambda step, warmup, total: 1.0, raising=False)
    write_runs(tmp_path, learns=False, seeds=1, schedule__function="math.constant")
    (run,) = read_sweep([tmp_path]).runs
    assert [remedy.key for remedy in remedies(run)] == ["optimizer.bias_correction"]


def test_advice_of_one_failing_setting_names_remedies_with_their_peaks(tmp_path):
    write_runs(tmp_path, learns=False, schedule__warmup_frac=0.1)
    assert advice(tmp_path) == {
        "warmup_frac=0.1": "Try schedule.warmup_frac=0.7 (peak effective rate 8.96e-4) or "
        "optimizer.bias_correction=true (peak effective rate 5.5e-4)."
    }


def test_smaller_rate_is_the_one_that_the_run_itself_advised(tmp_path):
    keys = {"optimizer__bias_correction": True, "optimizer__lr": 1e-2, "schedule__warmup_frac": 0.7}
    write_runs(tmp_path, learns=False, seeds=1, **keys)
    (path,) = tmp_path.rglob("result.json")
    path.write_text(path.read_text().replace('"optimizer.lr=0.1"', '"optimizer.lr=1e-3"'))
    (run,) = read_sweep([tmp_path]).runs
    assert [(remedy.key, remedy.value) for remedy in remedies(run)] == [("optimizer.lr", 1e-3)]
    path.write_text(path.read_text().replace('"optimizer.lr=1e-3"', '"more steps"'))
    (run,) = read_sweep([tmp_path]).runs
    assert [(remedy.key, remedy.value) for remedy in remedies(run)] == [("optimizer.lr", 3e-3)]


def test_advice_does_not_propose_what_failed(tmp_path):
    for warmup in (0.1, 0.7):
        write_runs(tmp_path, learns=False, schedule__warmup_frac=warmup)
    text = advice(tmp_path)["warmup_frac=0.1"]
    assert "warmup_frac=0.7" not in text
    assert text.startswith("Try optimizer.bias_correction=true")


def test_advice_names_what_worked(tmp_path):
    write_runs(tmp_path, learns=False, schedule__warmup_frac=0.1)
    write_runs(tmp_path, learns=True, schedule__warmup_frac=0.5)
    text = advice(tmp_path)["warmup_frac=0.1"]
    assert text.startswith(
        "With warmup_frac=0.5 both runs learned (peak effective rate 1.03e-3 instead of 2.13e-3). Not"
    )


def test_advice_names_the_setting_that_differs_least(tmp_path):
    write_runs(tmp_path, learns=False, schedule__warmup_frac=0.1, optimizer__lr=1e-3)
    write_runs(tmp_path, learns=True, schedule__warmup_frac=0.7, optimizer__lr=1e-4)
    write_runs(tmp_path, learns=True, schedule__warmup_frac=0.1, optimizer__lr=1e-4)
    assert advice(tmp_path)["warmup_frac=0.1, lr=1e-3"].startswith("With lr=1e-4 both runs learned")


def test_advice_does_not_name_a_setting_with_a_failed_run(tmp_path):
    write_runs(tmp_path, learns=False, schedule__warmup_frac=0.1)
    write_runs(tmp_path, learns=True, schedule__warmup_frac=0.5)
    write_run(
        tmp_path / "schedule.warmup_frac=0.5/seed=9", learns=False, seed=9, overrides={"schedule.warmup_frac": 0.5},
        config=nested(QUICKSTART | {"schedule.warmup_frac": 0.5}), steps=675, total_steps=675,
    )  # fmt: skip
    assert "learned" not in advice(tmp_path)["warmup_frac=0.1"]


def test_advice_for_too_small_a_rate_repeats_the_verdicts_advice(tmp_path):
    write_runs(tmp_path, learns=False, verdict="not learning", optimizer__lr=1e-6)
    assert advice(tmp_path) == {"lr=1e-6": "Try optimizer.lr=0.1."}  # conftest's advice
    write_runs(tmp_path, learns=False, verdict="not learning", optimizer__lr=0.1)
    assert advice(tmp_path)["lr=1e-6"] == ""


def test_advice_without_a_flag_is_empty(tmp_path):
    write_runs(tmp_path, learns=False, verdict="slow", optimizer__lr=1e-6)
    assert advice(tmp_path) == {"lr=1e-6": ""}


def test_remedy_with_bias_correction_is_a_smaller_rate(tmp_path):
    write_runs(tmp_path, learns=False, optimizer__bias_correction=True, schedule__warmup_frac=0.7)
    run = read_sweep([tmp_path]).runs[0]
    assert [(remedy.key, remedy.value) for remedy in remedies(run)] == [("optimizer.lr", 2e-4)]
