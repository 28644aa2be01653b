"""The window of learning rates that learn, and the sensitivity to the learning rate."""

import csv
import math
from pathlib import Path

import pytest
from conftest import comparison, write_run

from bertmon.compare import summary, tables
from bertmon.compare.rates import rate_windows
from bertmon.compare.results import read_sweep


def write_rates(folder, losses, seeds=1, **more):
    """Write one setting per learning rate, whose runs have the given loss; None means diverged. Chance is 1.4."""
    for lr, loss in losses.items():
        for seed in range(seeds):
            learns = loss is not None and loss < 1.3
            evaluations = [{"step": 100, "loss": loss, "accuracy": 0.8 if learns else 0.25}]
            overrides = {**more, "optimizer.lr": lr}
            name = f"{','.join(map(str, overrides.values()))}/seed={seed}"
            write_run(folder / name, learns=learns, seed=seed, overrides=overrides, evaluations=evaluations)
    return folder


def test_rate_window_is_where_all_runs_learned(tmp_path):
    write_rates(tmp_path, {1e-3: 0.5, 1e-4: 0.6, 3e-4: 0.4, 3e-3: 1.4, 1e-2: None})
    (window,) = rate_windows(read_sweep([tmp_path]))
    assert window.rates == (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    assert window.all_learned == (1e-4, 3e-4, 1e-3)
    assert window.text() == "1e-4 to 1e-3"
    # the mean of 0.6, 0.4, 0.5 and chance twice, less the best
    assert window.sensitivity == pytest.approx((0.6 + 0.4 + 0.5 + 1.4 + 1.4) / 5 - 0.4)


def test_rate_window_with_a_gap_lists_its_rates(tmp_path):
    write_rates(tmp_path, {1e-4: 0.5, 3e-4: 1.4, 1e-3: 0.5, 3e-3: 0.5})
    (window,) = rate_windows(read_sweep([tmp_path]))
    assert window.text() == "1e-4, 1e-3, 3e-3"


def test_rate_window_of_equal_losses_has_no_sensitivity(tmp_path):
    write_rates(tmp_path, {1e-4: 0.5, 1e-3: 0.5}, seeds=2)
    (window,) = rate_windows(read_sweep([tmp_path]))
    assert window.sensitivity == 0


def test_rate_windows_are_one_per_value_of_other_keys(tmp_path):
    for warmup, losses in ((0.1, {1e-4: 0.5, 1e-3: 1.4}), (0.7, {1e-4: 0.5, 1e-3: 0.5})):
        write_rates(tmp_path, losses, **{"schedule.warmup_frac": warmup})
    sweep = read_sweep([tmp_path])
    table = tables.rates_table(sweep)
    assert table.header == ("warmup_frac", "all runs learned at rates", "of rates", "learning-rate sensitivity")
    assert table.rows == (("0.1", "1e-4", "1 of 2", "0.450"), ("0.7", "1e-4, 1e-3", "2 of 2", "0.000"))
    assert "Learning rates at which all runs learned: warmup_frac=0.1: 1 of 2; warmup_frac=0.7: 2 of 2." in (
        summary.conclusions(sweep)
    )


def test_rate_windows_of_a_sweep_without_rates_are_none(tmp_path):
    assert rate_windows(read_sweep([comparison(tmp_path)])) == []


def test_sensitivity_without_a_chance_loss_is_unknown(tmp_path):
    for lr in (1e-4, 1e-3):
        write_run(tmp_path / f"{lr}/seed=0", overrides={"optimizer.lr": lr}, measured=False)
    (window,) = rate_windows(read_sweep([tmp_path]))
    assert math.isnan(window.sensitivity)
    assert tables.rates_table(read_sweep([tmp_path])).rows[0][-1] == ""


def test_article_study_of_warmups_gives_the_known_windows(tmp_path):
    """The rates at which every seed learned, from the published runs of benchmarks/results/article.csv."""
    with (Path(__file__).parents[2] / "benchmarks/results/article.csv").open() as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["study"] == "phase_docstrings" and row["bias_correction"] == "False"
        ]
    assert rows
    for row in rows:
        overrides = {"schedule.warmup_frac": float(row["warmup_frac"]), "optimizer.lr": float(row["lr"])}
        name = f"{row['warmup_frac']}-{row['lr']}/seed={row['seed']}"
        accuracy, learned = float(row["accuracy"]), row["did_not_learn"] == "False"
        write_run(tmp_path / name, learns=learned, accuracy=accuracy, overrides=overrides, seed=int(row["seed"]))
    windows = rate_windows(read_sweep([tmp_path]))
    learned = {window.values["schedule.warmup_frac"]: len(window.all_learned) for window in windows}
    assert learned == {0.0: 0, 0.1: 1, 0.3: 2, 0.5: 2, 0.7: 3}
    assert {len(window.rates) for window in windows} == {5}
