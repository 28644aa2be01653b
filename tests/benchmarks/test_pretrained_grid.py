"""The study of pretrained weights: its settings, its texts, and its blind runs."""

import dataclasses
from collections import Counter

import pretrained_grid
import pytest
from labeled_runs import PRETRAINED_FROM, PRETRAINED_STORE, WIDE_FROM, Family, LabeledRun, pack, unpack
from pretrained_grid import FROZEN_FROM, SETTINGS, TASKS, numbers, setting, subject_and_body
from recorded_signals import unpack_signals

from bertmon.launch.compose import load_config


@pytest.fixture(scope="module")
def stored():
    return unpack(PRETRAINED_STORE)


def test_settings_match_the_stored_runs(stored):
    for run in stored:
        assert " ".join(setting(run.setting)) == run.overrides


def test_store_holds_signals_of_every_run(stored):
    recorded = unpack_signals()
    assert set(recorded) >= {run.setting for run in stored}
    for run in stored:
        assert [row.step for row in recorded[run.setting]] == [shot.step for shot in run.history.snapshots]


def test_packing_adds_new_runs_and_keeps_the_stored_ones(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained_grid, "PRETRAINED_STORE", tmp_path / "runs")
    monkeypatch.setattr(pretrained_grid, "pack_signals", lambda folder: None)
    pack(stored[1:4:2], tmp_path / "runs")
    monkeypatch.setattr(pretrained_grid, "read_folder", lambda folder: iter(stored[2:3]))
    pretrained_grid.pack_all(tmp_path)
    for before, after in zip(stored[1:4], unpack(tmp_path / "runs"), strict=True):
        assert dataclasses.replace(after, history=before.history) == before
        assert after.history.losses == before.history.losses
        for one, other in zip(before.history.snapshots, after.history.snapshots, strict=True):
            assert one == other


@pytest.mark.parametrize("number", [PRETRAINED_FROM, FROZEN_FROM, WIDE_FROM])
def test_setting_is_a_valid_config_of_at_least_100_steps(number):
    config = load_config(["experiment=quickstart", *setting(number)])
    texts = int(config.data.train.split("_")[-1].removesuffix(".csv"))
    assert config.train.epochs * -(-texts // config.train.batch_size) >= 100
    assert setting(number) == setting(number)


def test_settings_cover_the_study_design():
    seen = Counter(override for number in range(1000, 1120) for override in setting(number))
    for override in ("train.precision=bf16", "optimizer.bias_correction=false", "optimizer.layer_decay=0.5"):
        assert seen[override] >= 5
    for task in TASKS:
        assert seen[f"data.test=texts/{task}_test.csv"] >= 10
    assert sum(count for override, count in seen.items() if override.startswith("optimizer.lr=")) == 120
    later = [setting(number) for number in range(FROZEN_FROM, PRETRAINED_FROM + SETTINGS)]
    for layers in (0, 2, 4):
        assert sum(f"model.frozen_layers={layers}" in overrides for overrides in later) >= 3


def test_numbers_put_a_wide_model_after_every_ten():
    assert list(numbers(11, 1)) == [*range(1000, 1010), 2000, 1010]
    assert list(numbers(0, 2)) == [2000, 2001]


def test_every_third_setting_is_blind_and_no_other_is_held_out(stored):
    def run(number):
        return LabeledRun(number, 0, "", 0.5, 0.25, 300, None, stored[0].history)

    assert [run(number).blind for number in (1000, 1001, 1002, 1003, 2000, 2002)] == [False, False, True] * 2
    assert all(run(number).blind != run(number).calibration for number in (1001, 1002, 2001, 2002))
    assert [run(number).family for number in (236, 1000, 2000, 3000)] == list(Family)


def test_text_is_one_line_of_subject_and_body():
    post = "From: a@b\nSubject: Re: two  words\nLines: 3\n\nA body,\n\nof lines\tand tabs.\n"
    assert subject_and_body(post) == "Re: two words A body, of lines and tabs."
    assert subject_and_body("From: a@b\n\nNo subject.") == "No subject."


def test_texts_of_unbalanced_tasks_are_nine_to_one():
    names = ["comp.x", "rec.x", "sci.x", "talk.x", "misc.forsale"] * 200
    texts = [f"text {number}" for number in range(len(names))]
    rows = list(pretrained_grid._choose(texts, names, 4, 200, unbalanced=True))
    counts = Counter(label for _, label in rows)
    assert counts == {"computers": 180, "leisure": 7, "science": 7, "society": 7}
    assert rows == list(pretrained_grid._choose(texts, names, 4, 200, unbalanced=True))
    balanced = Counter(label for _, label in pretrained_grid._choose(texts, names, 2, 200, unbalanced=False))
    assert balanced == {"computers": 100, "leisure": 100}
