"""The tables and sentences that summarize a sweep."""

import dataclasses
import json
import math

import pytest
from conftest import comparison, synthetic_history, write_run

from bertmon import notation
from bertmon.compare import summary, tables
from bertmon.compare.results import read_sweep
from bertmon.monitor.history import HISTORY_FILE
from bertmon.result import Status


def test_settings_table_has_a_row_for_each_setting(tmp_path):
    comparison(tmp_path, seeds=1)
    overrides = {"schedule.warmup_frac": 0.7}
    write_run(tmp_path / "warmup_frac=0.7/seed=1", accuracy=0.6, seed=1, overrides=overrides, seconds=90.0)
    table = tables.settings_table(read_sweep([tmp_path]))
    header = "warmup_frac, runs, test accuracy, did not learn, verdict, flagged at step, peak rate, best, macro F1"
    assert table.header == (*header.split(", "), "test loss", "time", "saved")
    assert table.rows == (
        ("0.1", "1", "25.0 %", "1 of 1 (21 to 100 %)", "collapsed", "20", "2e-3", "25.0 %", "", "1.150", "30 s", ""),
        (
            "0.7", "2", "70.0 ± 14.1 %", "0 of 2 (0 to 66 %)", "healthy", "", "2e-3", "70.0 %", "", "0.700 ± 0.141",
            "60 s", "",
        ),
    )  # fmt: skip
    assert table.plain().splitlines()[1].startswith("0.1          1     25.0 %")
    assert table.markdown().splitlines()[1] == "|" + 12 * " --- |"


def test_settings_table_of_two_sweeps_has_a_column_for_every_key_that_differs(tmp_path):
    for name, lr in (("a", 1e-3), ("b", 3e-3)):
        write_run(tmp_path / f"{name}/x/seed=0", config={"optimizer": {"lr": lr}})
    table = tables.settings_table(read_sweep([tmp_path / "a", tmp_path / "b"]))
    assert table.header[0] == "lr"
    assert [row[0] for row in table.rows] == ["1e-3", "3e-3"]


def test_settings_table_counts_runs_that_have_not_ended(tmp_path):
    comparison(tmp_path, seeds=1)
    names = [f"warmup_frac={warmup}/seed={seed}" for warmup in (0.1, 0.7) for seed in (0, 1)]
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": names}))
    sweep = read_sweep([tmp_path])
    assert [row[1] for row in tables.settings_table(sweep).rows] == ["1 of 2", "1 of 2"]
    assert summary.conclusions(sweep)[-1] == "Excluded: 2 not started."


def test_settings_table_means_over_fewer_runs_say_so(tmp_path):
    write_run(tmp_path / "a/seed=0", accuracy=0.8)
    evaluations = [{"step": 100, "loss": None, "accuracy": 0.25}]
    for seed in (1, 2):
        changes = {"status": "diverged", "evaluations": evaluations, "verdict": "diverged"}
        write_run(tmp_path / f"a/seed={seed}", seed=seed, **changes)
        write_run(tmp_path / f"b/a/seed={seed}", seed=seed, **changes)
    (row,) = tables.settings_table(read_sweep([tmp_path / "a"])).rows
    assert row[2:4] == ("43.3 ± 31.8 %", "2 of 3 (21 to 94 %)")
    assert (row[7], row[9]) == ("80.0 % (1 of 3)", "0.600 (1 of 3)")
    (row,) = tables.settings_table(read_sweep([tmp_path / "b"])).rows
    assert (row[2], row[7], row[9]) == ("25.0 ± 0.0 %", "", "")


def test_settings_table_separates_best_from_last_and_leaves_out_unfinished_time(tmp_path):
    for seed, (last, best, seconds) in enumerate([(0.5, 0.9, 10.0), (0.7, 0.7, 20.0)]):
        evaluations = [{"step": step, "loss": 1.0, "accuracy": each} for step, each in ((50, best), (100, last))]
        write_run(tmp_path / f"a/seed={seed}", seed=seed, evaluations=evaluations, seconds=seconds)
    write_run(tmp_path / "a/seed=2", seed=2, status="interrupted", seconds=500.0)
    sweep = read_sweep([tmp_path])
    (row,) = tables.settings_table(sweep).rows
    assert row == (
        "a", "2 of 3", "60.0 ± 14.1 %", "0 of 2 (0 to 66 %)", "healthy", "", "2e-3", "80.0 %", "", "1.000 ± 0.000",
        "15 s", "",
    )  # fmt: skip
    assert [row[:2] for row in tables.unfinished_table(sweep).rows] == [("a/seed=2", "interrupted")]


def test_settings_table_shows_the_steps_that_stopping_saved(tmp_path):
    write_run(tmp_path / "a/seed=0", learns=False, status="stopped", steps=21)
    assert tables.settings_table(read_sweep([tmp_path])).rows[0][-1] == "79 steps"


def test_unfinished_table_names_a_corrupt_file(tmp_path):
    corrupt = tmp_path / "a/seed=0"
    corrupt.mkdir(parents=True)
    (corrupt / "result.json").write_text("{")
    ((name, status, why),) = tables.unfinished_table(read_sweep([tmp_path])).rows
    assert (name, status) == ("a/seed=0", "unreadable")
    assert why == f"{corrupt}/result.json is empty, corrupt, or not the result of a run"


def test_conclusions_of_a_comparison_name_the_best_and_the_failure(tmp_path):
    assert summary.conclusions(read_sweep([comparison(tmp_path)]))[:2] == [
        "Best: warmup_frac=0.7, 80.0 ± 0.0 % test accuracy (2 seeds).",
        "warmup_frac=0.1: 2 of 2 runs did not learn (collapsed, flagged at step 20 of 100, 20 %); "
        "likely cause: a learning rate of 1 is too large. With warmup_frac=0.7 both runs learned. "
        "Not tried: optimizer.lr=3e-4 (peak effective rate 6e-4).",
    ]


def test_conclusions_of_one_run_no_run_and_many_settings(tmp_path):
    write_run(tmp_path / "one/quickstart/seed=0")
    assert summary.conclusions(read_sweep([tmp_path / "one"])) == ["quickstart: 80.0 % test accuracy."]
    (tmp_path / "two").mkdir()
    (tmp_path / "two/sweep.json").write_text('{"runs": ["a/seed=0", "b/seed=0"]}')
    assert summary.conclusions(read_sweep([tmp_path / "two"])) == ["No run has ended yet: 2 not started."]
    for number in range(5):
        write_run(tmp_path / f"three/{number}/seed=0", learns=number == 0, overrides={"n": number})
    assert summary.conclusions(read_sweep([tmp_path / "three"]))[1] == (
        "In 4 of 5 settings no run learned; verdicts on those that did not: collapsed."
    )


def test_conclusions_name_the_peak_rate_that_separates_settings(tmp_path):
    for number, peak in enumerate([1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 4e-3]):
        folder = write_run(tmp_path / f"{number}/seed=0", learns=number < 2, overrides={"n": number}, measured=False)
        history = synthetic_history(learns=number < 2)
        history.plan.effective_lr[:] = peak
        (folder / HISTORY_FILE).write_bytes(history.to_bytes())
    sentence = "The peak effective rate separates them: up to 2e-4, all runs learned; from 5e-4, some or all did not."
    assert sentence in summary.conclusions(read_sweep([tmp_path]))


def test_conclusions_of_a_single_run_that_crashed_say_why(tmp_path):
    write_run(tmp_path / "a/seed=0", status="failed", error="RuntimeError: out of memory\nmore")
    assert summary.conclusions(read_sweep([tmp_path])) == ["a/seed=0: failed (RuntimeError: out of memory)."]


def test_conclusions_of_a_setting_with_one_ended_run_say_so(tmp_path):
    write_run(tmp_path / "a/seed=0", learns=False)
    write_run(tmp_path / "a/seed=1", seed=1, status="interrupted")
    assert summary.conclusions(read_sweep([tmp_path]))[1].startswith(
        "a: the one run that has ended did not learn (coll"
    )


def test_conclusions_of_an_unflagged_failure_say_so(tmp_path):
    write_run(tmp_path / "a/seed=0", learns=False, verdict="slow", cause=None, advice=None)
    assert summary.conclusions(read_sweep([tmp_path]))[1] == "a: did not learn, and no rule flagged it by the end."


@pytest.mark.parametrize("weights", [None, "balanced"])
def test_conclusions_say_that_a_run_below_chance_predicts_one_class(tmp_path, weights):
    evaluation = {"step": 100, "loss": 0.25, "accuracy": 0.9, "confusion": [[0, 100], [0, 900]]}
    data = {"fingerprint": "f", "train_texts": 900, "test_texts": 1000, "label_names": ["rare", "fre\nquent"]}
    config = {"train": {"class_weights": weights}}
    write_run(tmp_path / "a/seed=0", evaluations=[evaluation], data={**data, "majority_share": 0.9}, config=config)
    advice = "Try train.class_weights=balanced or more steps." if weights is None else "Try more steps."
    assert summary.conclusions(read_sweep([tmp_path]))[1] == (
        f"a: did not learn: the training loss is below chance, but fre\\nquent is predicted for every text. {advice}"
    )


def test_conclusions_advise_no_class_weights_for_balanced_classes(tmp_path):
    evaluation = {"step": 100, "loss": 0.9, "accuracy": 0.5, "confusion": [[0, 500], [0, 500]]}
    data = {"fingerprint": "f", "train_texts": 900, "test_texts": 1000, "label_names": ["a", "b"]}
    write_run(tmp_path / "a/seed=0", evaluations=[evaluation], data={**data, "majority_share": 0.5})
    assert summary.conclusions(read_sweep([tmp_path]))[1] == (
        "a: did not learn: the training loss is below chance, but b is predicted for every text."
    )


def test_conclusions_name_no_best_setting_if_nothing_learned(tmp_path):
    for number in range(2):
        write_run(tmp_path / f"{number}/seed=0", learns=False, overrides={"n": number})
    assert summary.conclusions(read_sweep([tmp_path]))[0] == (
        "No run did better than always predicting the most frequent class."
    )


def test_conclusions_count_the_failures_that_were_flagged(tmp_path):
    for seed, (verdict, step) in enumerate([("collapsed", 20), ("collapsed", 40), ("slow", 30), ("collapsed", 90)]):
        cause = "often" if step > 20 else "once"
        write_run(tmp_path / f"a/seed={seed}", learns=False, seed=seed, verdict=verdict, verdict_step=step, cause=cause)
    assert summary.conclusions(read_sweep([tmp_path]))[1].startswith(
        "a: 4 of 4 runs did not learn (3 of them collapsed, flagged at step 40 (20 to 90) of 100, 40 %); "
        "likely cause: often."
    )


def test_conclusions_name_runs_that_diverged_after_learning(tmp_path):
    for folder, changes in (("a", {}), ("b", {"status": "diverged", "verdict": "diverged", "verdict_step": 90})):
        write_run(
            tmp_path / f"{folder}/seed=0", accuracy=0.8, overrides={"optimizer.lr": 1e-3 * len(changes)}, **changes
        )
    sentences = " ".join(summary.conclusions(read_sweep([tmp_path / "a", tmp_path / "b"])))
    assert "Diverged after they had learned: b/seed=0." in sentences
    assert "All runs learned" not in sentences
    assert "False alarms" not in sentences


def test_conclusions_name_false_alarms(tmp_path):
    write_run(tmp_path / "b/a/seed=0", learns=False, verdict=None, verdict_step=None)
    write_run(tmp_path / "b/a/seed=1", seed=1, verdict="collapsed")
    assert summary.conclusions(read_sweep([tmp_path / "b"]))[1:] == [
        "a: 1 of 2 runs did not learn; it was not monitored.",
        "False alarms (flagged as doomed but learned): a/seed=1.",
    ]


def test_conclusions_name_the_accuracy_that_the_best_setting_was_chosen_by(tmp_path):
    """Of models saved at their best evaluations, one of which got worse afterwards."""
    for rate, best, last in ((3e-3, 0.975, 0.975), (4e-3, 1.0, 0.5)):
        evaluations = [
            {"step": step, "loss": 0.3, "accuracy": accuracy} for step, accuracy in ((50, best), (100, last))
        ]
        config = {"seed": 0, "optimizer": {"lr": rate}, "train": {"save_model": "best"}}
        changes = {"config": config, "evaluations": evaluations}
        write_run(tmp_path / f"lr={rate}/seed=0", accuracy=last, overrides={"optimizer.lr": rate}, **changes)
    assert summary.conclusions(read_sweep([tmp_path]))[0] == (
        "Best: lr=4e-3, 100.0 % test accuracy at the best evaluation."
    )


def test_conclusions_of_test_texts_with_one_label_ask_for_no_number(tmp_path):
    data = {"fingerprint": "f", "majority_share": 1.0, "test_texts": 30}
    write_run(tmp_path / "a/seed=0", accuracy=1.0, data=data)
    assert summary.conclusions(read_sweep([tmp_path]))[1] == (
        "All test texts have the same label: their accuracy cannot tell learning from guessing."
    )


def test_conclusions_of_too_few_test_texts_say_how_many_are_needed(tmp_path):
    data = {"fingerprint": "f", "majority_share": 0.5, "test_texts": 10}
    write_run(tmp_path / "a/seed=0", accuracy=0.6, learns=False, data=data)
    assert summary.conclusions(read_sweep([tmp_path])) == [
        "a: 60.0 % test accuracy.",
        "10 test texts are too few to tell learning from guessing: at least 26 are needed.",
    ]


def test_markdown_escapes_columns_and_markup():
    assert tables.Table(("a|b",), (("<b>x",),)).markdown() == "| a\\|b |\n| --- |\n| &lt;b>x |"


def test_fitted_table_drops_the_least_important_columns(tmp_path):
    comparison(tmp_path)
    table = tables.settings_table(read_sweep([tmp_path])).without_empty_columns()
    assert "saved" not in table.header
    importance = ("runs", "test accuracy", "verdict", "did not learn", "flagged at step", "peak rate", "time", "best")
    fitted = table.fitted(80, (*importance, "test loss"))
    assert max(map(len, fitted.plain().splitlines())) <= 80
    assert fitted.header == ("warmup_frac", "runs", "test accuracy", "did not learn", "verdict")


def test_console_summary_in_a_pipe_has_no_colors_and_all_columns(tmp_path, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    text = summary.console_summary(read_sweep([comparison(tmp_path)]))
    assert "\x1b" not in text
    assert text.splitlines()[0].split("  ")[-1] == "time"


@pytest.mark.parametrize("no_color", [False, True])
def test_console_summary_on_a_terminal_fits_it_and_respects_no_color(tmp_path, monkeypatch, no_color):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal, for rich
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    text = summary.console_summary(read_sweep([comparison(tmp_path)]))
    assert ("\x1b[31mcollapsed\x1b[0m" in text) is not no_color
    assert "\x1b[3" not in text or not no_color
    table = text.splitlines()[:3]
    assert all(len(line.replace("\x1b[31m", "").replace("\x1b[32m", "").replace("\x1b[0m", "")) <= 80 for line in table)


def test_console_summary_of_many_settings_lists_the_best(tmp_path):
    for number in range(50):
        write_run(tmp_path / f"{number:02}/seed=0", accuracy=0.4 + number / 100, overrides={"n": number})
    lines = summary.console_summary(read_sweep([tmp_path])).splitlines()
    assert lines[1].startswith("49")
    assert lines[41] == "(the best 40 of 50 settings)"


def test_progress_line_of_overlapping_runs(tmp_path):
    comparison(tmp_path, seeds=1)
    names = [f"warmup_frac={warmup}/seed={seed}" for warmup in (0.1, 0.7) for seed in range(4)]
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": names}))
    write_run(tmp_path / "warmup_frac=0.1/seed=1", status="failed", measured=False)
    sweep = read_sweep([tmp_path])
    assert summary.progress_line(sweep) == (
        "run 4 of 8, about 2 min 30 s left; 2 ended: 1 collapsed, 1 healthy, 1 unfinished"
    )
    running = [run for run in sweep.runs if run.status == "not started"][:2]
    for run in running:
        object.__setattr__(run, "result", dataclasses.replace(sweep.ended[0].result, status=Status.running))
    assert summary.progress_line(sweep) == (
        "run 6 of 8, about 30 s left; 2 ended: 1 collapsed, 1 healthy, 1 unfinished"
    )  # fmt: skip
    write_run(tmp_path / "one/a/seed=0")
    assert summary.progress_line(read_sweep([tmp_path / "one"])) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119.4, "119 s"), (120, "2 min 00 s"), (7199, "119 min 59 s"), (7260, "2 h 01 min"), (math.nan, "")],
)
def test_format_duration_has_two_units(seconds, text):
    assert notation.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[
            (1e-3, "1e-3"),
            (5.5e-4, "5.5e-4"),
            (0.1, "0.1"),
            (0.02, "2e-2"),
            (2.128e-3, "2.13e-3"),
            (-2e-5, "-2e-5"),
            (1e12, "1e12"),
        ],
        *[(0.0, "0"), (999.5, "999.5"), (1234.0, "1234"), (math.inf, "inf")],
    ],
)
def test_format_rate_has_one_notation(value, text):
    assert notation.format_rate(value) == text


def test_format_value_is_short():
    values = [True, None, 1e-4, 0.05, 16, "data/a.csv", "google/bert/", ["numpy", "torch"], "linear"]
    assert [notation.format_value(value) for value in values] == [
        "true", "null", "1e-4", "0.05", "16", "a.csv", "bert", "numpy, torch", "linear"
    ]  # fmt: skip


def test_format_percent_has_one_digit():
    assert notation.format_percent(0.7649) == "76.5 %"
    assert notation.format_percent(0.8123, 0.06) == "81.2 ± 6.0 %"
    assert notation.format_percent(math.nan) == ""


def test_conclusions_name_runs_whose_data_changed_during_the_sweep(tmp_path):
    comparison(tmp_path, seeds=1)
    assert not any("The data changed" in sentence for sentence in summary.conclusions(read_sweep([tmp_path])))
    path = tmp_path / "warmup_frac=0.7" / "seed=0" / "result.json"
    fields = json.loads(path.read_text())
    fields["data"]["fingerprint"] = "g"
    path.write_text(json.dumps(fields))
    sentence = "The data changed between runs: warmup_frac=0.1/seed=0, warmup_frac=0.7/seed=0 had different texts"
    assert any(each.startswith(sentence) for each in summary.conclusions(read_sweep([tmp_path])))
    fields["config"]["data"] = {"train": "other.csv"}
    path.write_text(json.dumps(fields))
    assert not any("The data changed" in sentence for sentence in summary.conclusions(read_sweep([tmp_path])))
