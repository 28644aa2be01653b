"""Which runs a report draws, what its figures hold, and the page itself."""

import dataclasses
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
from conftest import LEARNS, comparison, leave_run, synthetic_history

from bertmon.compare import plots, report, selection, summary
from bertmon.compare.__main__ import main
from bertmon.compare.results import read_sweep
from bertmon.monitor.history import HISTORY_FILE, History

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
    sweep = read_sweep([tmp_path])
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


def test_colors_are_a_cells_own(tmp_path):
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


@pytest.mark.parametrize("depth", [2, 12, 24])
def test_no_picture_is_large(tmp_path, depth):
    comparison(tmp_path, seeds=1, measured=False)
    for folder in tmp_path.glob("*/*"):
        (folder / HISTORY_FILE).write_bytes(
            synthetic_history(learns=True, depth=4 * depth).to_bytes()
        )  # as many rows as BERT has
    sweep = read_sweep([tmp_path])
    beside, colors = selection.select_layer_runs(sweep), plots.setting_colors(sweep)
    for figure in plots.layer_figures(beside, 0, colors).values():
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

    assert fails("nowhere") == ("nowhere: expected the folder of a sweep, such as multirun/2026-11-23_07-17-49.\n")
    (tmp_path / "file").touch()
    comparison(tmp_path / "sweep", seeds=1)
    assert fails("sweep", "--out", "file/deep") == "could not read or write file/deep: Not a directory.\n"


def test_refresh_report_is_throttled(tmp_path):
    comparison(tmp_path, seeds=1)
    (tmp_path / "sweep.json").write_text('{"runs": ["warmup_frac=0.1/seed=0", "later/seed=0"]}')
    page = tmp_path / "report.html"
    report.refresh_report(tmp_path)
    assert not page.exists()  # the sweep is young
    hour_ago = time.time() - 3600
    os.utime(tmp_path / "sweep.json", (hour_ago, hour_ago))
    report.refresh_report(tmp_path)
    first = page.stat().st_mtime_ns
    report.refresh_report(tmp_path)
    assert page.stat().st_mtime_ns == first
    os.utime(page, (hour_ago, hour_ago))
    report.refresh_report(tmp_path)
    assert page.stat().st_mtime > hour_ago + 1


def test_refresh_report_of_a_complete_sweep_leaves_it_to_the_launch(tmp_path):
    comparison(tmp_path, seeds=1)
    (tmp_path / "sweep.json").write_text('{"runs": ["warmup_frac=0.1/seed=0", "warmup_frac=0.7/seed=0"]}')
    os.utime(tmp_path / "sweep.json", (0, 0))
    report.refresh_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_refresh_report_logs_errors(tmp_path, caplog):
    report.refresh_report(Path("/nowhere"))
    comparison(tmp_path, seeds=1)
    (tmp_path / "sweep.json").write_text('{"runs": ["later/seed=0"]}')
    os.utime(tmp_path / "sweep.json", (0, 0))
    (tmp_path / "report.html").mkdir()
    os.utime(tmp_path / "report.html", (0, 0))
    report.refresh_report(tmp_path)
    assert [message.partition(" could not be written: ")[0] for message in caplog.messages] == [
        "/nowhere/report.html",
        f"{tmp_path}/report.html",
    ]
    assert "Is a directory" in caplog.messages[1]
