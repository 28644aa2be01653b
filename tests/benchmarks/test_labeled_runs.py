"""The store of labeled runs: its contents, and runs that are packed and unpacked unchanged."""

import dataclasses

import numpy as np
import pytest
from labeled_runs import (
    BASE_STORE,
    PRETRAINED_STORE,
    STORE,
    STORED_STATISTICS,
    Label,
    label,
    pack,
    read_folder,
    unpack,
    without_repeats,
)
from scipy.stats import binom

from bertmon.metrics import EvalResult
from bertmon.monitor.history import HISTORY_FILE
from bertmon.result import RESULT_FILE, DataSummary, RunResult, Status


@pytest.fixture(scope="module")
def runs():
    return unpack()


def test_store_holds_enough_runs_of_every_kind(runs):
    labels = [run.label for run in runs]
    assert len(runs) >= 150
    assert labels.count(Label.did_not_learn) >= len(runs) / 3
    assert sum(run.label is Label.learned and run.plateau > 0.25 for run in runs) >= 40
    assert {run.task for run in runs} == {"docstrings", "newsgroups"}
    assert not {(run.setting, run.seed) for run in runs if run.calibration} & {
        (run.setting, run.seed) for run in runs if not run.calibration
    }


@pytest.mark.parametrize("store", [STORE, PRETRAINED_STORE, BASE_STORE])
def test_no_run_is_counted_twice(store):
    """Settings of the second study were drawn at random, five of them twice."""
    runs = unpack(store)
    drawn = [(run.overrides.replace(" model.frozen_layers=null", ""), run.seed) for run in runs]
    assert len(set(drawn)) == len(drawn)


def test_without_repeats_keeps_the_calibration_run(runs):
    seen = next(run for run in unpack(PRETRAINED_STORE) if run.calibration)
    blind = dataclasses.replace(seen, setting=seen.setting + (2 - seen.setting % 1000) % 3)
    assert blind.blind
    again = dataclasses.replace(blind, overrides=f"{seen.overrides} model.frozen_layers=null")
    for duplicates in ([seen, blind], [blind, seen], [again, blind, seen]):
        assert without_repeats(duplicates) == [seen]


def test_non_finite_losses_survive_packing(runs, tmp_path):
    history = dataclasses.replace(runs[0].history, losses=[1.25, float("nan"), float("inf"), 1e30])
    pack([dataclasses.replace(runs[0], history=history)], tmp_path / "store")
    (read,) = unpack(tmp_path / "store")
    assert read.history.losses == pytest.approx([1.25, np.nan, np.inf, 99999.9999], nan_ok=True)


def test_labels_match_the_two_sided_binomial_interval(runs):
    """Version 0.1 labeled runs by scipy's interval; today's function gives the same labels."""
    for run in runs:
        low, high = binom.interval(0.99, run.test_texts, run.majority_share)
        guessing = low <= run.accuracy * run.test_texts <= high
        assert (run.label is Label.did_not_learn) == guessing, run.overrides


def test_label_between_the_two_bounds_is_between():
    assert label(0.30, 0.25, 400) is Label.did_not_learn
    assert label(0.32, 0.25, 400) is Label.between
    assert label(0.45, 0.25, 400) is Label.learned


def test_label_with_a_large_majority_uses_the_mean_recall():
    assert label(0.93, 0.9, 300, guesses=False, recall_above_chance=0.3) is Label.learned
    assert label(0.93, 0.9, 300, guesses=False, recall_above_chance=0.1) is Label.between
    assert label(0.93, 0.9, 300, guesses=True, recall_above_chance=0.3) is Label.did_not_learn
    assert label(0.70, 0.5, 300, guesses=False, recall_above_chance=0.1) is Label.learned  # 20 points are possible


def test_labels_of_the_first_study_have_not_changed(runs):
    counts = [sum(run.label is each for run in runs) for each in Label]
    assert dict(zip(Label, counts, strict=True)) == {
        Label.did_not_learn: 156,
        Label.learned: 164,
        Label.between: 54,
    }


def test_recall_above_chance_is_read_from_the_confusion_matrix(runs, tmp_path):
    run_dir = tmp_path / "1000" / "seed=0"
    run_dir.mkdir(parents=True)
    result = RunResult(status=Status.finished, seed=0, steps=9, total_steps=9)
    result.data = DataSummary("", 1, 200, (), 0.9)
    result.evaluations = [EvalResult.from_confusion(9, 1.0, np.array([[175, 5], [8, 12]]))]
    (run_dir / RESULT_FILE).write_bytes(result.to_json())
    (run_dir / HISTORY_FILE).write_bytes(runs[0].history.to_bytes())
    (run_dir / "overrides.txt").write_text("optimizer.lr=1e-3\n")
    (run,) = read_folder(tmp_path)
    assert run.recall_above_chance == pytest.approx((175 / 180 + 12 / 20) / 2 - 0.5)
    assert run.label is Label.learned


def test_packing_rounds_statistics_to_a_sixteenth_of_an_octave(runs, tmp_path):
    some = runs[::100]
    pack(some, tmp_path / "store")
    for before, after in zip(some, unpack(tmp_path / "store"), strict=True):
        assert dataclasses.replace(after, history=before.history) == before
        assert np.array_equal(after.history.plan.effective_lr, before.history.plan.effective_lr)
        assert after.history.losses == pytest.approx(before.history.losses, abs=5e-5)
        for one, other in zip(before.history.snapshots, after.history.snapshots, strict=True):
            assert (one.step, one.layers) == (other.step, other.layers)
            stored = other.values[:, STORED_STATISTICS]
            np.testing.assert_allclose(stored, one.values[:, STORED_STATISTICS], rtol=2 ** (1 / 32) - 1)


def test_read_folder_skips_runs_that_have_not_ended(runs, tmp_path):
    for seed, status in enumerate((Status.finished, Status.interrupted)):
        run_dir = tmp_path / "007" / f"seed={seed}"
        run_dir.mkdir(parents=True)
        result = RunResult(status=status, seed=seed, steps=9, total_steps=9)
        result.data, result.evaluations = DataSummary("", 1, 400, (), 0.25), [EvalResult(9, 1.0, 0.5)]
        (run_dir / RESULT_FILE).write_bytes(result.to_json())
        (run_dir / HISTORY_FILE).write_bytes(runs[0].history.to_bytes())
        (run_dir / "overrides.txt").write_text("data=newsgroups\noptimizer.lr=1e-3\n")
    (run,) = read_folder(tmp_path)
    assert (run.setting, run.seed, run.overrides) == (7, 0, "data=newsgroups optimizer.lr=1e-3")
    assert (run.label, run.recorded, run.task) == (Label.learned, None, "newsgroups")
