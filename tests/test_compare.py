"""The report of a sweep: what is read, what is counted, what is said, what the page holds."""

import dataclasses
import io
import json
import math
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from conftest import DEAD, LEARNS, comparison, leave_run, synthetic_history
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bertmon.compare import plots, report, selection, summary, tensorboard
from bertmon.compare.__main__ import main
from bertmon.compare.results import read_sweep, wilson_interval
from bertmon.errors import InputError
from bertmon.monitor.history import HISTORY_FILE, History

# --- reading -------------------------------------------------------------------------------------


def test_runs_that_differ_by_their_seed_alone_are_a_cell(tmp_path):
    sweep = read_sweep([comparison(tmp_path)])
    assert sweep.swept == ["schedule.warmup_frac"]
    assert [(cell.name, [run.seed for run in cell.runs]) for cell in sweep.settings] == [
        ("warmup_frac=0.1", [0, 1]),
        ("warmup_frac=0.7", [0, 1]),
    ]
    assert [[run.did_not_learn for run in cell.runs] for cell in sweep.settings] == [[True, True], [False, False]]
    assert [run.flagged_step for run in sweep.runs] == [20, 20, None, None]


def test_runs_that_have_not_started_or_not_come_far_stand_in_their_cell(tmp_path):
    comparison(tmp_path, seeds=1)
    names = [f"warmup_frac={warmup}/seed={seed}" for warmup in (0.1, 0.7) for seed in (0, 1)]
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": names}))
    early = tmp_path / "warmup_frac=0.7/seed=1"
    early.mkdir()
    (early / "result.json").write_text(json.dumps({"status": "running"}))
    sweep = read_sweep([tmp_path])
    assert [(cell.name, [run.status for run in cell.runs]) for cell in sweep.settings] == [
        ("warmup_frac=0.1", ["ok", "waiting"]),
        ("warmup_frac=0.7", ["ok", "running"]),
    ]
    assert summary.conclusions(sweep)[-1] == "Not in the numbers: 1 not started, 1 running."
    assert summary.settings_table(sweep).rows[0][1] == "1 of 2"


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "\x00\xff"])
def test_a_damaged_result_is_named_and_harms_nothing(tmp_path, content):
    comparison(tmp_path, seeds=1)
    broken = tmp_path / "warmup_frac=0.7/seed=1"
    broken.mkdir()
    (broken / "result.json").write_text(content, encoding="latin-1")
    sweep = read_sweep([tmp_path])
    ((name, status, why),) = summary.unfinished_table(sweep).rows
    assert (name, status) == ("warmup_frac=0.7/seed=1", "unreadable")
    assert why == f"{broken}/result.json is empty, damaged, or not a run's"
    assert "damaged" in report.render_html(sweep)


@pytest.mark.parametrize("content", [b"", b"PK", DEAD[: len(DEAD) // 2], b"\x93NUMPY"])
def test_a_damaged_history_costs_its_curves_alone(tmp_path, content):
    comparison(tmp_path, seeds=1)
    (tmp_path / "warmup_frac=0.1/seed=0" / HISTORY_FILE).write_bytes(content)
    curves = selection.select_curves(read_sweep([tmp_path]))
    assert [curve.setting.name for curve in curves] == ["warmup_frac=0.7"]


def test_folders_without_a_run(tmp_path):
    with pytest.raises(InputError, match=r"holds no run: there is no result\.json in it, nor below it"):
        read_sweep([tmp_path])
    with pytest.raises(InputError, match="nowhere is no folder: give that of a sweep"):
        read_sweep([tmp_path / "nowhere"])


def test_several_sweeps_stand_beside_each_other(tmp_path):
    for name in ("monday", "tuesday"):
        comparison(tmp_path / name, seeds=1)
    sweep = read_sweep([tmp_path / "monday", tmp_path / "tuesday"])
    assert [run.name for run in sweep.runs] == [
        "monday/warmup_frac=0.1/seed=0",
        "tuesday/warmup_frac=0.1/seed=0",
        "monday/warmup_frac=0.7/seed=0",
        "tuesday/warmup_frac=0.7/seed=0",
    ]
    assert [len(cell.runs) for cell in sweep.settings] == [2, 2]  # the same settings are the same cell


WRONG = [  # what a finished run's result.json cannot be
    {"evaluations": "x"},
    {"evaluations": [1]},
    {"evaluations": [{"loss": 1.0, "accuracy": 0.5}]},
    {"metrics": None},
    {"metrics": []},
    {"metrics": {"final": {"loss": 1.0, "accuracy": "high"}}},
    {"seconds": None},
    {"seconds": math.inf},
    {"seed": "0"},
    {"settings": "none"},
    {"data": None},
    {"data": {"majority": 0.25, "test_texts": 0}},
    {"verdict_step": None},
    {"verdict_step": "20"},
    {"steps_planned": 0},
    {"steps": None},
    {"differs": "lr"},
    {"cause": ["x"]},
    {"cause": "\ud800"},
    {"status": 3},
]


@pytest.mark.parametrize("changes", WRONG, ids=str)
def test_a_result_of_the_wrong_shape_is_unreadable_and_costs_itself_alone(tmp_path, changes):
    comparison(tmp_path, seeds=1)
    leave_run(tmp_path / "warmup_frac=0.7/seed=1", **{"seed": 1, **changes})
    names = ["warmup_frac=0.1/seed=0", "warmup_frac=0.7/seed=0", "warmup_frac=0.7/seed=2"]
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": names}))
    sweep = report.write_report([tmp_path], tmp_path)
    assert [name for name, *_ in summary.unfinished_table(sweep).rows] == ["warmup_frac=0.7/seed=1"]
    assert summary.progress_line(sweep) == "run 4 of 4, about 30 s left; so far 1 collapsed, 1 healthy, 1 broken off"
    assert [len(cell.finished) for cell in sweep.settings] == [1, 1]


@pytest.mark.parametrize("content", ['{"runs": null}', '{"runs": [1]}', "[]", "{", "\x00"])
def test_a_damaged_plan_is_none(tmp_path, content):
    comparison(tmp_path, seeds=1)
    (tmp_path / "sweep.json").write_text(content)
    assert len(read_sweep([tmp_path]).runs) == 2


def test_settings_that_differ_are_two_cells_in_one_folder_too(tmp_path):
    for number, learns in enumerate([True, False]):
        leave_run(tmp_path / f"runs/{number}", learns=learns, settings={"optimizer": {"lr": number}})
    sweep = read_sweep([tmp_path / "runs"])
    assert [(cell.name, len(cell.runs)) for cell in sweep.settings] == [("0", 1), ("1", 1)]


def test_texts_that_differ_are_two_cells(tmp_path):
    for seed in range(2):
        data = {"fingerprint": str(seed), "test_texts": 400, "majority": 0.25}
        leave_run(tmp_path / f"a/seed={seed}", seed=seed, data=data)
    assert [len(cell.runs) for cell in read_sweep([tmp_path]).settings] == [1, 1]


@pytest.mark.parametrize("key", ["seed", "device", "cache", "experiment", "resume"])
def test_what_makes_no_other_cell(tmp_path, key):
    for seed in range(2):
        leave_run(tmp_path / f"{seed}/x", seed=seed, settings={key: str(seed), "lr": 1})
    assert len(read_sweep([tmp_path]).settings) == 1


def test_a_run_counts_once(tmp_path):
    comparison(tmp_path / "sweep")
    folders = [tmp_path / "sweep", tmp_path / "sweep", tmp_path / "sweep/warmup_frac=0.1"]
    assert len(read_sweep(folders).runs) == 4


def test_cells_are_named_by_what_differs(tmp_path):
    for name in ("a", "b"):
        differs = {"data.train": f"data/{name}.csv", "schedule.lr": 1, "optimizer.lr": 2}
        leave_run(tmp_path / f"train=data-{name}-1a2b3c/seed=0", overrides=differs)
    names = [cell.name for cell in read_sweep([tmp_path]).settings]
    assert names == [f"train=data/{name}.csv, schedule.lr=1, optimizer.lr=2" for name in ("a", "b")]


# --- numbers and words ---------------------------------------------------------------------------


def test_failed_is_what_the_test_set_cannot_tell_from_guessing(tmp_path):
    bound = 0.25 + 2.576 * math.sqrt(0.25 * 0.75 / 400)
    for seed, accuracy in enumerate([0.25, bound - 1e-6, bound + 1e-6, 0.9]):
        leave_run(tmp_path / f"a/seed={seed}", accuracy=accuracy, seed=seed)
    leave_run(tmp_path / "a/seed=9", seed=9, status="failed", error="RuntimeError: no\nmore")
    (cell,) = read_sweep([tmp_path]).settings
    assert [run.did_not_learn for run in cell.runs] == [True, True, False, False, None]


def test_the_interval_of_a_rate():
    # Wilson's interval; scipy.stats.binomtest(k, n).proportion_ci(method="wilson") gives the same
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(3, 10) == pytest.approx((0.1078, 0.6032), abs=1e-4)
    assert wilson_interval(25, 25) == pytest.approx((0.8668, 1.0), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_the_table_of_cells(tmp_path):
    comparison(tmp_path, seeds=1)
    leave_run(
        tmp_path / "warmup_frac=0.7/seed=1", accuracy=0.6, seed=1, overrides={"schedule.warmup_frac": 0.7}, seconds=90.0
    )
    table = summary.settings_table(read_sweep([tmp_path]))
    heads = "warmup_frac, runs, test accuracy, best, test loss, failed, verdict, known at step, time, saved"
    assert table.heads == tuple(heads.split(", "))
    assert table.rows == (
        ("0.1", "1", "25.0 %", "25.0 %", "1.150", "1 of 1 (21 to 100 %)", "collapsed", "20", "30 s", ""),
        ("0.7", "2", "70.0 ± 14.1 %", "70.0 %", "0.700 ± 0.141", "0 of 2 (0 to 66 %)", "healthy", "", "60 s", ""),
    )
    assert table.plain().splitlines()[1].startswith("0.1          1     25.0 %")
    assert table.markdown().splitlines()[1] == "|" + 10 * " --- |"


def test_what_a_comparison_says(tmp_path):
    assert summary.conclusions(read_sweep([comparison(tmp_path)])) == [
        "Best: warmup_frac=0.7, with 80.0 ± 0.0 % test accuracy (2 seeds).",
        "warmup_frac=0.1: 2 of 2 runs failed to learn (collapsed, known since step 20 of 100, 20 %); "
        "likely cause: a learning rate of 1 is too large. Try optimizer.lr=0.1.",
    ]


def test_what_is_said_of_one_run_of_none_and_of_many(tmp_path):
    leave_run(tmp_path / "one/quickstart/seed=0")
    assert summary.conclusions(read_sweep([tmp_path / "one"])) == ["quickstart: 80.0 % test accuracy."]
    (tmp_path / "two").mkdir()
    (tmp_path / "two/sweep.json").write_text('{"runs": ["a/seed=0", "b/seed=0"]}')
    assert summary.conclusions(read_sweep([tmp_path / "two"])) == ["No run has ended yet."]
    for number in range(5):
        leave_run(tmp_path / f"three/{number}/seed=0", learns=number == 0, overrides={"n": number})
    assert summary.conclusions(read_sweep([tmp_path / "three"]))[1] == (
        "In 4 of 5 cells runs failed to learn, in 4 of them all; verdicts on those that failed: collapsed."
    )


def test_a_run_that_was_stopped_tells_what_it_saved(tmp_path):
    leave_run(tmp_path / "a/seed=0", learns=False, status="stopped", steps=21)
    assert summary.settings_table(read_sweep([tmp_path])).rows[0][-1] == "79 steps"


def test_a_failure_that_no_rule_saw(tmp_path):
    leave_run(tmp_path / "a/seed=0", learns=False, verdict="slow", cause=None, advice=None)
    assert summary.conclusions(read_sweep([tmp_path]))[1] == (
        "a: failed to learn, and no rule called it doomed at the end."
    )


def test_the_best_is_not_the_last_and_time_not_that_of_others(tmp_path):
    for seed, (last, best, seconds) in enumerate([(0.5, 0.9, 10.0), (0.7, 0.7, 20.0)]):
        metrics = {"final": {"loss": 1.0, "accuracy": last}, "best": {"loss": 0.5, "accuracy": best}}
        leave_run(tmp_path / f"a/seed={seed}", seed=seed, metrics=metrics, seconds=seconds)
    leave_run(tmp_path / "a/seed=2", seed=2, status="interrupted", seconds=500.0)
    (row,) = summary.settings_table(read_sweep([tmp_path])).rows
    assert row == (
        "a", "2 of 3", "60.0 ± 14.1 %", "80.0 %", "1.000 ± 0.000", "0 of 2 (0 to 66 %)", "healthy", "", "15 s", ""
    )  # fmt: skip
    ((_, status, _),) = summary.unfinished_table(read_sweep([tmp_path])).rows
    assert status == "interrupted"


def test_a_mean_over_fewer_runs_says_so(tmp_path):
    leave_run(tmp_path / "a/seed=0", accuracy=0.8)
    metrics = {"final": {"loss": None, "accuracy": 0.25}, "best": None}
    for seed in (1, 2):
        leave_run(tmp_path / f"a/seed={seed}", status="diverged", seed=seed, metrics=metrics, verdict="diverged")
    (row,) = summary.settings_table(read_sweep([tmp_path])).rows
    assert row[2:6] == ("43.3 ± 31.8 %", "80.0 % (1 of 3)", "0.600 (1 of 3)", "2 of 3 (21 to 94 %)")
    for seed in (1, 2):
        leave_run(tmp_path / f"b/a/seed={seed}", status="diverged", seed=seed, metrics=metrics, verdict="diverged")
    assert summary.settings_table(read_sweep([tmp_path / "b"])).rows[0][2:5] == ("25.0 ± 0.0 %", "", "")
    assert "nan" not in report.render_html(read_sweep([tmp_path / "b"])).split("<h2>Over")[0]


def test_nothing_is_best_where_nothing_learned(tmp_path):
    for number in range(2):
        leave_run(tmp_path / f"{number}/seed=0", learns=False, overrides={"n": number})
    assert (
        summary.conclusions(read_sweep([tmp_path]))[0]
        == "No run has learned more than guessing the most frequent class gives."
    )


def test_how_many_of_the_failed_were_called(tmp_path):
    for seed, (verdict, step) in enumerate([("collapsed", 20), ("collapsed", 40), ("slow", 30), ("collapsed", 90)]):
        cause = "often" if step > 20 else "once"
        leave_run(tmp_path / f"a/seed={seed}", learns=False, seed=seed, verdict=verdict, verdict_step=step, cause=cause)
    assert summary.conclusions(read_sweep([tmp_path]))[1] == (
        "a: 4 of 4 runs failed to learn (3 of them collapsed, known since step 40 (20 to 90) of 100, 40 %); "
        "likely cause: often. Try optimizer.lr=0.1."
    )
    leave_run(tmp_path / "b/a/seed=0", learns=False, verdict=None, verdict_step=None)
    leave_run(tmp_path / "b/a/seed=1", seed=1, verdict="collapsed")
    assert summary.conclusions(read_sweep([tmp_path / "b"]))[1:] == [
        "a: 1 of 2 runs failed to learn, and it was not watched.",
        "Called doomed, and yet better than guessing: a/seed=1.",
    ]


def test_markdown_has_no_columns_and_no_markup_of_its_own():
    assert summary.Table(("a|b",), (("<b>x",),)).markdown() == "| a\\|b |\n| --- |\n| &lt;b>x |"


def test_progress_of_runs_that_overlap(tmp_path):
    comparison(tmp_path, seeds=1)
    names = [f"warmup_frac={warmup}/seed={seed}" for warmup in (0.1, 0.7) for seed in range(6)]
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": names}))
    for seed in (1, 2):
        folder = tmp_path / f"warmup_frac=0.1/seed={seed}"
        folder.mkdir()
        (folder / "result.json").write_text('{"status": "running"}')
    assert (
        summary.progress_line(read_sweep([tmp_path])) == "run 5 of 12, about 80 s left; so far 1 collapsed, 1 healthy"
    )


def test_progress_of_a_sweep(tmp_path):
    comparison(tmp_path, seeds=1)
    names = [f"warmup_frac={warmup}/seed={seed}" for warmup in (0.1, 0.7) for seed in range(4)]
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": names}))
    leave_run(tmp_path / "warmup_frac=0.1/seed=1", status="failed", measured=False)
    assert summary.progress_line(read_sweep([tmp_path])) == (
        "run 4 of 8, about 2 min 30 s left; so far 1 collapsed, 1 healthy, 1 broken off"
    )
    leave_run(tmp_path / "one/a/seed=0")
    assert summary.progress_line(read_sweep([tmp_path / "one"])) == ""


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 s"), (119.4, "119 s"), (120, "2 min 00 s"), (7199, "119 min 59 s"), (7260, "2 h 01 min"), (math.nan, "")],
)
def test_durations(seconds, shown):
    assert summary.format_duration(seconds) == shown


# --- the pictures --------------------------------------------------------------------------------


def lines(panel):
    return [(line.get_linestyle(), line.get_xdata().tolist(), line.get_ydata().tolist()) for line in panel.lines]


def test_what_the_curves_hold(tmp_path):
    leave_run(tmp_path / "a/seed=0", accuracy=0.8)
    sweep = read_sweep([tmp_path])
    loss, test_loss, accuracy, rates, profile, spread = plots.training_curves(
        selection.select_curves(sweep), plots.setting_colors(sweep)
    ).axes
    (losses,) = lines(loss)
    made = History.from_bytes(LEARNS)
    assert len(losses[1]) == 11
    assert losses[2][0] == pytest.approx(np.mean(made.losses[:9]))
    assert losses[1][0] == 4
    assert lines(test_loss) == [("-", [50, 100], pytest.approx([0.6, 0.6]))]
    assert lines(accuracy) == [("-", [50, 100], pytest.approx([80, 80]))]
    (effective, nominal) = lines(rates)
    assert (effective[0], set(effective[2])) == ("-", {2e-3})
    assert (nominal[0], set(nominal[2])) == ("--", {1e-3})
    assert lines(profile)[0][2] == pytest.approx([shot.depth_ratio[0] for shot in made.snapshots])
    assert lines(spread) == [("-", [0, 20, 40, 60, 80], 5 * [1.0])]


def test_a_loss_that_is_not_finite_leaves_the_others(tmp_path):
    leave_run(tmp_path / "a/seed=0", measured=False)
    made = synthetic_history(learns=False, every=1000)
    made.losses[-1] = math.nan
    (tmp_path / "a/seed=0" / HISTORY_FILE).write_bytes(made.to_bytes())
    sweep = read_sweep([tmp_path])
    panels = plots.training_curves(selection.select_curves(sweep), plots.setting_colors(sweep)).axes
    assert np.isfinite(lines(panels[0])[0][2]).all()
    assert [line[0] for line in lines(panels[5])] == ["None"]  # one point, as a mark
    made.snapshots[0] = dataclasses.replace(made.snapshots[0], logit_std=math.nan)
    (tmp_path / "a/seed=0" / HISTORY_FILE).write_bytes(made.to_bytes())
    panels = plots.training_curves(selection.select_curves(sweep), plots.setting_colors(sweep)).axes
    assert [text.get_text() for text in panels[5].texts] == ["nothing measured"]


def test_the_layers_are_those_of_the_nearest_step(tmp_path):
    comparison(tmp_path, seeds=1)
    (tmp_path / "warmup_frac=0.7/seed=0" / HISTORY_FILE).write_bytes(
        synthetic_history(learns=True, every=30).to_bytes()
    )
    sweep = read_sweep([tmp_path])
    figure = plots.layer_figures(selection.select_layer_runs(sweep), 20, plots.setting_colors(sweep))["gradient_flow"]
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["warmup_frac=0.1", "warmup_frac=0.7, step 30"]
    assert selection.select_steps(selection.select_layer_runs(sweep)) == [20, 0, 90]


def test_values_at_the_end_of_floats_are_drawn(tmp_path):
    comparison(tmp_path, seeds=1)
    made = synthetic_history(learns=True)
    made.snapshots[2].values[:] = 1e308
    made.snapshots[3].values[:] = np.inf
    (tmp_path / "warmup_frac=0.7/seed=0" / HISTORY_FILE).write_bytes(made.to_bytes())
    assert "<svg" in report.render_html(read_sweep([tmp_path]))


def test_worst_and_best_are_of_all_cells(tmp_path):
    for number in range(70):
        accuracy = 0.3 + (0.5 if number == 1 else 0.0)
        leave_run(tmp_path / f"{number:02}/seed=0", status="failed", overrides={"n": number}, measured=False)
        leave_run(tmp_path / f"{number:02}/seed=1", seed=1, accuracy=accuracy, overrides={"n": number})
    sweep = read_sweep([tmp_path])
    assert [curve.setting.name for curve in selection.select_layer_runs(sweep)] == ["n=0", "n=1"]
    assert len(selection.select_curves(sweep)) == 35


def test_no_run_stands_beside_itself(tmp_path):
    for number in range(6):
        leave_run(tmp_path / f"{number}/seed=0", learns=False, overrides={"n": number}, measured=number == 3)
    assert [curve.setting.name for curve in selection.select_layer_runs(read_sweep([tmp_path]))] == ["n=3"]


# --- the page ------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else(tmp_path):
    sweep = report.write_report([comparison(tmp_path)], tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!#|data:)', text)
    assert "url(http" not in text
    assert "<script" not in text
    assert text.count("<svg") == 1 + 2 * 3 + 6  # overview, two figures at three steps, a heat map a statistic
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ElementTree.fromstring(svg)
        assert "currentColor" in svg
        assert len(svg) < 150_000
    for sentence in summary.conclusions(sweep):
        assert sentence in text
    markdown = (tmp_path / "report.md").read_text()
    assert summary.settings_table(sweep).markdown() in markdown
    assert summary.conclusions(sweep)[1] in markdown


def test_what_runs_are_called_and_say_is_no_markup(tmp_path):
    leave_run(tmp_path / "<b>x<!--/seed=0", overrides={"data.train": "<script>alert(1)</script>"})
    leave_run(tmp_path / "y/seed=0", status="failed", error="<img src=x onerror=alert(1)>", measured=False)
    text = report.render_html(read_sweep([tmp_path]))
    for bad in ("<script", "<img", "<b>x", "<!--/"):
        assert bad not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_colours_are_a_cells_own(tmp_path):
    for number in range(8):
        leave_run(tmp_path / f"few/{number}/seed=0", overrides={"n": number})
    few = plots.setting_colors(read_sweep([tmp_path / "few"]))
    assert len(set(few.values())) == 8
    for number in range(12):
        leave_run(tmp_path / f"many/{number:02}/seed=0", accuracy=0.3 + number / 20, overrides={"n": number})
    many = plots.setting_colors(read_sweep([tmp_path / "many"]))
    assert len(set(many.values())) == 12
    assert [*many.values()][::11] == ["#414487", "#dfe318"]


def test_what_is_shown_of_many_cells(tmp_path):
    for number in range(6):
        known = 20 * (3 - number) % 80
        leave_run(tmp_path / f"{number}/seed=0", learns=number > 2, overrides={"n": number}, verdict_step=known)
    sweep = read_sweep([tmp_path])
    beside = selection.select_layer_runs(sweep)
    assert [curve.setting.name for curve in beside] == [
        "n=2",
        "n=3",
    ]  # doomed first, and a best
    assert selection.select_steps(beside) == [20, 0, 80]


def test_a_run_of_other_layers_has_labels_of_its_own(tmp_path):
    comparison(tmp_path, seeds=1)
    deep = synthetic_history(learns=True, depth=5)
    (tmp_path / "warmup_frac=0.7/seed=0" / HISTORY_FILE).write_bytes(deep.to_bytes())
    assert "enc.l.4.output.dense" in report.render_html(read_sweep([tmp_path]))


def test_pictures_for_tensorboard(tmp_path):
    sweep = read_sweep([comparison(tmp_path)])
    for _ in range(2):  # the second time takes the place of the first
        tensorboard.write_comparison(sweep, tmp_path)
    assert len(list((tmp_path / "side by side").iterdir())) == 1
    stored = EventAccumulator(str(tmp_path / "side by side"), size_guidance={"images": 0}).Reload()
    assert stored.Tags()["images"] == ["side_by_side/gradient_flow", "side_by_side/update_ratio"]
    images = stored.Images("side_by_side/gradient_flow")
    assert [image.step for image in images] == [0, 20, 80]
    assert abs(images[0].wall_time - time.time()) < 100
    assert Image.open(io.BytesIO(images[0].encoded_image_string)).width == 1100


@pytest.mark.parametrize("depth", [2, 12, 24])
def test_no_picture_is_large(tmp_path, depth):
    comparison(tmp_path, seeds=1, measured=False)
    for folder in tmp_path.glob("*/*"):
        (folder / HISTORY_FILE).write_bytes(
            synthetic_history(learns=True, depth=4 * depth).to_bytes()
        )  # as many rows as BERT has
    sweep = read_sweep([tmp_path])
    beside, colours = selection.select_layer_runs(sweep), plots.setting_colors(sweep)
    for figure in plots.layer_figures(beside, 0, colours).values():
        assert len(plots.to_png(figure)) < 150_000


def test_a_thousand_runs(tmp_path):
    for number in range(1000):
        leave_run(
            tmp_path / f"lr={number % 250}/seed={number // 250}",
            learns=number % 3 > 0,
            seed=number // 250,
            overrides={"optimizer.lr": number % 250},
        )
    sweep = report.write_report([tmp_path], tmp_path)
    assert (len(sweep.settings), len(sweep.runs)) == (250, 1000)
    assert len(selection.select_curves(sweep)) <= 60
    assert (tmp_path / "report.html").stat().st_size < 3_000_000
    assert len(summary.console_summary(sweep).splitlines()) < 50


# --- the command ---------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys, monkeypatch):
    comparison(tmp_path / "sweep")
    main([str(tmp_path / "sweep")])
    assert (tmp_path / "sweep/report.html").exists()
    told = capsys.readouterr().out
    assert told.startswith("warmup_frac  runs  test accuracy")
    assert told.endswith(f"Report: {tmp_path}/sweep/report.html\n")
    monkeypatch.chdir(tmp_path)
    main(["sweep", "sweep/warmup_frac=0.1"])
    assert (tmp_path / "report.html").exists()
    main(["sweep", "--out", "elsewhere/deep"])
    assert (tmp_path / "elsewhere/deep/report.md").exists()


def test_mistakes_at_the_command(tmp_path):
    def fails(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "bertmon", "compare", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        return done.stderr

    assert fails("nowhere") == ("nowhere is no folder: give that of a sweep, such as multirun/2026-11-23_07-17-49.\n")
    (tmp_path / "file").touch()
    comparison(tmp_path / "sweep", seeds=1)
    assert fails("sweep", "--out", "file/deep") == "file/deep cannot be read or written: Not a directory.\n"


def test_a_report_is_not_made_again_at_once(tmp_path, caplog):
    comparison(tmp_path, seeds=1)
    (tmp_path / "sweep.json").write_text('{"runs": ["warmup_frac=0.1/seed=0", "later/seed=0"]}')
    report = tmp_path / "report.html"
    report.refresh(tmp_path)
    first = report.stat().st_mtime_ns
    report.refresh(tmp_path)
    assert report.stat().st_mtime_ns == first
    hour_ago = time.time() - 3600
    os.utime(report, (hour_ago, hour_ago))
    report.refresh(tmp_path)
    assert report.stat().st_mtime > hour_ago + 1
    report.refresh(Path("/nowhere"))
    assert "could not be written" in caplog.text
