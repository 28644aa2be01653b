"""The contents of a report's figures."""

import dataclasses
import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from conftest import LEARNS, comparison, synthetic_history, write_run
from matplotlib.text import Text

from bertmon.compare import answer_plots, curve_plots, layer_plots, plots, selection
from bertmon.compare.results import read_sweep
from bertmon.monitor.history import HISTORY_FILE, History


def lines(panel):
    return [(line.get_linestyle(), list(line.get_xdata()), list(line.get_ydata())) for line in panel.lines]


def training_curves(folder):
    sweep = read_sweep([folder])
    figure, _ = curve_plots.training_curves(selection.select_curves(sweep), plots.setting_colors(sweep))
    return figure.axes


def grid(folder, seeds=2):
    """A sweep over three rates and two warm-ups; the largest fails, the median only with the shorter warm-up."""
    for lr in (3e-4, 1e-3, 3e-3):
        for warmup in (0.1, 0.7):
            learns = lr < 1e-3 or (lr == 1e-3 and warmup == 0.7)
            for seed in range(seeds):
                overrides = {"schedule.warmup_frac": warmup, "optimizer.lr": lr}
                run_dir = folder / f"lr={lr},warmup_frac={warmup}/seed={seed}"
                write_run(run_dir, learns=learns, seed=seed, overrides=overrides)
    return folder


# --- over the steps -------------------------------------------------------------------------------


def test_training_curves_of_one_run_show_its_values(tmp_path):
    write_run(tmp_path / "a/seed=0", accuracy=0.8)
    loss, accuracy, rate, depth, logits, steps = training_curves(tmp_path)
    history = History.from_bytes(LEARNS)
    smoothed, chance = lines(loss)
    assert len(smoothed[1]) == 11
    assert smoothed[2][0] == pytest.approx(np.mean(history.losses[:9]))
    assert smoothed[1][0] == 4
    assert set(chance[2]) == {1.4}
    assert lines(accuracy) == [("-", [50, 100], pytest.approx([80, 80])), ("--", [0, 1], [25, 25])]
    assert set(lines(rate)[0][2]) == {2e-3}
    assert lines(depth)[0][2] == pytest.approx([shot.depth_ratio[0] for shot in history.snapshots])
    assert lines(logits) == [("-", [0, 20, 40, 60, 80], 5 * [1.0])]
    assert lines(steps)[0][2] == pytest.approx([shot.signals["update_per_lr/linear"] for shot in history.snapshots])


def test_training_curves_of_seeds_show_a_mean_and_a_band(tmp_path):
    for seed, (accuracy, scale) in enumerate([(0.7, 1.0), (0.9, 100.0)]):
        write_run(tmp_path / f"a/seed={seed}", seed=seed, accuracy=accuracy, measured=False)
        history = synthetic_history(learns=True)
        history.snapshots = [dataclasses.replace(shot, logit_std=scale) for shot in history.snapshots]
        (tmp_path / f"a/seed={seed}" / HISTORY_FILE).write_bytes(history.to_bytes())
    _, accuracy, _, _, logits, _ = training_curves(tmp_path)
    assert lines(accuracy)[0] == ("-", [50, 100], pytest.approx([80, 80]))
    assert lines(logits)[0][2] == pytest.approx(5 * [10.0])  # geometric mean
    band = logits.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((1.0, 100.0))


def test_training_curves_with_a_stopped_run_cover_all_steps(tmp_path):
    for seed, run_steps in enumerate([100, 42]):
        write_run(tmp_path / f"a/seed={seed}", seed=seed, measured=False)
        history = synthetic_history(learns=True, every=1)
        history.losses[:] = [1.0 + seed] * len(history.losses)
        history.rewind(run_steps)
        (tmp_path / f"a/seed={seed}" / HISTORY_FILE).write_bytes(history.to_bytes())
    loss, _, _, _, logits, _ = training_curves(tmp_path)
    _, steps, means = lines(loss)[0]
    assert np.diff(steps) == pytest.approx(9, abs=1)
    assert means == pytest.approx([1.5 if step < 45 else 1.0 for step in steps])  # a mean of both, then of one
    assert np.diff(lines(logits)[0][1]).tolist() == [2] * 49


def test_training_curves_shade_thresholds_and_mark_verdicts(tmp_path):
    _, _, _, depth, logits, steps = training_curves(comparison(tmp_path))
    labels = [[text.get_text() for text in panel.texts] for panel in (depth, logits, steps)]
    assert labels == [["gradients vanish (< 3e-2)"], ["ignores the text (< 3e-5)"], ["weights have stopped (< 1e-2)"]]
    marks = [line for line in depth.lines if line.get_linestyle() == ":"]
    assert [list(mark.get_xdata()) for mark in marks] == [[20, 20]]  # of the setting that collapsed
    legend = [text.get_text() for text in depth.figure.legends[0].get_texts()]
    assert legend == ["warmup_frac=0.1 (2 runs): collapsed since step 20", "warmup_frac=0.7 (2 runs): healthy"]


def test_training_curves_leave_out_non_finite_values(tmp_path):
    write_run(tmp_path / "a/seed=0", measured=False)
    history = synthetic_history(learns=False, every=1000)
    history.losses[-1] = math.nan
    (tmp_path / "a/seed=0" / HISTORY_FILE).write_bytes(history.to_bytes())
    panels = training_curves(tmp_path)
    assert np.isfinite(lines(panels[0])[0][2]).all()
    assert lines(panels[4])[0][0] == "None"  # one point, as a mark
    history.snapshots[0] = dataclasses.replace(history.snapshots[0], logit_std=math.nan)
    (tmp_path / "a/seed=0" / HISTORY_FILE).write_bytes(history.to_bytes())
    assert "nothing measured" in [text.get_text() for text in training_curves(tmp_path)[4].texts]


# --- weights --------------------------------------------------------------------------------------


def test_gradient_depth_has_all_settings_on_one_axis(tmp_path):
    comparison(tmp_path, seeds=1)
    deep = synthetic_history(learns=True, depth=5, every=30)
    (tmp_path / "warmup_frac=0.7/seed=0" / HISTORY_FILE).write_bytes(deep.to_bytes())
    curves = selection.select_layer_runs(read_sweep([tmp_path]))
    figure = layer_plots.gradient_depth(curves, 20)
    titles = [panel.get_title(loc="left") for panel in figure.axes]
    assert titles == ["warmup_frac=0.1: collapsed, step 20", "warmup_frac=0.7: healthy, step 30"]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert [len(line.get_xdata()) for panel in figure.axes for line in panel.lines] == [2, 2, 5, 5]
    shot = deep.snapshots[1]
    rows = shot.layers.matrix_groups["enc.l.*.output.dense"]
    assert list(figure.axes[1].lines[1].get_ydata()) == pytest.approx(list(shot["grad_mean"][rows]))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["query", "FFN out"]


def test_gradient_depth_of_a_model_without_layers_is_none(tmp_path):
    write_run(tmp_path / "a/seed=0", measured=False)
    (tmp_path / "a/seed=0" / HISTORY_FILE).write_bytes(synthetic_history(learns=True, depth=0).to_bytes())
    assert layer_plots.gradient_depth(selection.select_layer_runs(read_sweep([tmp_path])), 0) is None


def test_layer_bars_show_the_nearest_step(tmp_path):
    comparison(tmp_path, seeds=1)
    later = synthetic_history(learns=True, every=30)
    (tmp_path / "warmup_frac=0.7/seed=0" / HISTORY_FILE).write_bytes(later.to_bytes())
    sweep = read_sweep([tmp_path])
    curves = selection.select_layer_runs(sweep)
    gradients, _ = layer_plots.layer_bars(curves, 20, plots.setting_colors(sweep))
    assert [panel.get_title(loc="left") for panel in gradients.axes] == ["warmup_frac=0.1", "warmup_frac=0.7, step 30"]
    assert selection.select_steps(curves) == [20, 0, 90]


def test_layer_figures_show_huge_and_infinite_values(tmp_path):
    comparison(tmp_path, seeds=1)
    history = synthetic_history(learns=True)
    history.snapshots[2].values[:] = 1e308
    history.snapshots[3].values[:] = np.inf
    (tmp_path / "warmup_frac=0.7/seed=0" / HISTORY_FILE).write_bytes(history.to_bytes())
    sweep = read_sweep([tmp_path])
    curves = selection.select_layer_runs(sweep)
    with plots.suppress_plot_warnings():
        figures = [layer_plots.gradient_depth(curves, 40), layer_plots.layer_heatmap(curves, "grad_max", "x")]
        figures += layer_plots.layer_bars(curves, 60, plots.setting_colors(sweep))
        assert all("<svg" in plots.to_svg(figure) for figure in figures)


# --- the answer -----------------------------------------------------------------------------------


def test_accuracy_over_rate_has_a_point_per_run_colored_by_verdict(tmp_path):
    figure, titles = answer_plots.accuracy_over_rate(read_sweep([comparison(tmp_path)]))
    (axes,) = figure.axes
    assert axes.collections[0].get_offsets().tolist() == [[2e-3, 25], [2e-3, 25], [2e-3, 80], [2e-3, 80]]
    assert axes.get_xscale() == "log"
    assert titles["rate-points"][0] == "warmup_frac=0.1/seed=0: 25.0 %, collapsed, peak rate 2e-3"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["healthy", "collapsed"]
    assert len({tuple(color) for color in axes.collections[0].get_facecolor()}) == 2


def test_accuracy_over_rate_of_one_run_is_none(tmp_path):
    write_run(tmp_path / "a/seed=0")
    assert answer_plots.accuracy_over_rate(read_sweep([tmp_path])) is None


def test_accuracy_over_key_has_a_column_of_points_for_each_value_in_order(tmp_path):
    for warmup in (0.7, 0.05, 0.1):
        for seed in range(2):
            overrides = {"schedule.warmup_frac": warmup}
            write_run(tmp_path / f"{warmup}/{seed}", seed=seed, accuracy=warmup + seed / 10, overrides=overrides)
    figure, titles = answer_plots.accuracy_over_key(read_sweep([tmp_path]))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.05", "0.1", "0.7"]
    heights = [sorted(points.get_offsets()[:, 1]) for points in axes.collections[:3]]
    assert heights == [pytest.approx([5, 15]), pytest.approx([10, 20]), pytest.approx([70, 80])]
    assert titles["strip2"][1] == "0.7/1: 80.0 %, healthy, peak rate 2e-3"


def test_settings_that_differ_only_in_their_data_share_no_figure(tmp_path):
    data = {
        "fingerprint": "other",
        "train_texts": 9,
        "test_texts": 400,
        "label_names": ["a", "b"],
        "majority_share": 0.5,
    }
    for folder, changes in (("one", {}), ("two", {"data": data})):
        for warmup in (0.1, 0.7):
            overrides = {"schedule.warmup_frac": warmup}
            write_run(tmp_path / folder / f"{warmup}/seed=0", overrides=overrides, **changes)
    assert answer_plots.accuracy_over_key(read_sweep([tmp_path / "one"])) is not None
    both = read_sweep([tmp_path / "one", tmp_path / "two"])
    assert len(both.settings) == 4
    assert answer_plots.accuracy_over_key(both) is None


def test_values_with_equal_truncated_labels_have_separate_columns(tmp_path):
    name = "bert-large-uncased-whole-word-masking"
    for end in ("", "-finetuned-squad"):
        write_run(tmp_path / f"model{end}/seed=0", overrides={"model.name": f"{name}{end}"})
    figure, titles = answer_plots.accuracy_over_key(read_sweep([tmp_path]))
    assert [len(column) for column in titles.values()] == [1, 1]
    assert len(figure.axes[0].get_xticklabels()) == 2


def test_accuracy_over_key_of_two_keys_is_none(tmp_path):
    assert answer_plots.accuracy_over_key(read_sweep([grid(tmp_path)])) is None


def test_heat_maps_of_two_keys_have_accuracy_and_failures_in_order(tmp_path):
    (figure,) = answer_plots.heat_maps(read_sweep([grid(tmp_path)]))
    accuracy, failed = figure.axes
    assert (accuracy.get_ylabel(), accuracy.get_xlabel()) == ("optimizer.lr", "schedule.warmup_frac")
    assert [label.get_text() for label in accuracy.get_yticklabels()] == ["3e-4", "1e-3", "3e-3"]
    assert [label.get_text() for label in accuracy.get_xticklabels()] == ["0.1", "0.7"]
    texts = [[text.get_text() for text in axes.texts if isinstance(text, Text)] for axes in (accuracy, failed)]
    assert texts[0] == ["80.0\n± 0.0", "80.0\n± 0.0", "25.0\n± 0.0", "80.0\n± 0.0", "25.0\n± 0.0", "25.0\n± 0.0"]
    assert texts[1] == ["0/2", "0/2", "2/2", "0/2", "2/2", "2/2"]


def test_heat_maps_of_three_keys_are_one_per_value_of_the_third(tmp_path):
    for correction in (False, True):
        for lr in (1e-3, 3e-3):
            for warmup in (0.1, 0.7):
                overrides = {
                    "optimizer.lr": lr,
                    "schedule.warmup_frac": warmup,
                    "optimizer.bias_correction": correction,
                }
                write_run(tmp_path / f"{correction}-{lr}-{warmup}/seed=0", overrides=overrides)
    figures = answer_plots.heat_maps(read_sweep([tmp_path]))
    titles = [figure.axes[0].get_title(loc="left") for figure in figures]
    assert titles == [f"mean test accuracy [%] (bias_correction={value})" for value in ("false", "true")]


# --- colors and SVG -------------------------------------------------------------------------------


def test_setting_colors_are_different(tmp_path):
    for number in range(8):
        write_run(tmp_path / f"few/{number}/seed=0", overrides={"n": number})
    few = plots.setting_colors(read_sweep([tmp_path / "few"]))
    assert len(set(few.values())) == 8
    for number in range(12):
        write_run(tmp_path / f"many/{number:02}/seed=0", accuracy=0.3 + number / 20, overrides={"n": number})
    many = plots.setting_colors(read_sweep([tmp_path / "many"]))
    assert len(set(many.values())) == 12
    assert [*many.values()][::11] == ["#414487", "#dfe318"]


def test_to_svg_uses_the_text_color_of_the_page_and_names_points(tmp_path):
    figure, titles = answer_plots.accuracy_over_rate(read_sweep([comparison(tmp_path)]))
    text = plots.to_svg(figure, titles)
    ElementTree.fromstring(text)
    assert "currentColor" in text
    assert "var(--grid)" in text
    assert re.search(r'<svg style="min-width: 3\d\dpx"', text)
    assert re.findall(r"<title>(.*?):", text) == [
        f"warmup_frac={warmup}/seed={seed}" for warmup in (0.1, 0.7) for seed in (0, 1)
    ]


def test_to_svg_escapes_titles(tmp_path):
    write_run(tmp_path / "<b>x&/seed=0")
    write_run(tmp_path / "y/seed=1", seed=1)
    figure, titles = answer_plots.accuracy_over_rate(read_sweep([tmp_path]))
    text = plots.to_svg(figure, titles)
    ElementTree.fromstring(text)
    assert "&lt;b&gt;x&amp;/seed=0" in text
