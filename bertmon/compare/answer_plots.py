"""The answer of a sweep in figures: accuracy over one swept key, over two, and over the peak effective rate."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bertmon import plot_style
from bertmon.compare.plots import COLOR_SCALE, Titles, escape_mathtext, label_level, legend_on_top, rate_axis, wrap
from bertmon.compare.results import RunSummary, Sweep, short_names
from bertmon.notation import format_percent, format_rate

_MAX_VALUES = 12  # of a key on an axis
_MAX_FACETS = 4  # values of a third key
_FAILED_SCALE = LinearSegmentedColormap.from_list("failed", ["#eef0f3", plot_style.VERMILION])


def accuracy_over_rate(sweep: Sweep) -> tuple[Figure, Titles] | None:
    """A point a run: last test accuracy over the peak effective learning rate, colored by verdict. None for one run."""
    runs = [run for run in sweep.ended if run.peak_effective_lr > 0]
    if len(runs) < 2:
        return None
    with plot_style.theme():
        figure = Figure(figsize=(5.4, 3.6))
        axes = figure.add_axes((0.115, 0.145, 0.865, 0.71))
        words = [_verdict_word(run) for run in runs]
        seaborn.scatterplot(
            x=[run.peak_effective_lr for run in runs],
            y=[100 * run.final("accuracy") for run in runs],
            hue=words,
            palette={word: _word_color(word) for word in words},
            s=42 if len(runs) < 100 else 18,
            alpha=0.85,
            linewidth=0.4,
            legend=False,
            ax=axes,
        )
        axes.collections[0].set_gid("rate-points")
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        if high / low < 4:
            axes.set_xlim(low / 2, high * 2)
        rate_axis(axes)
        axes.set(xlabel="peak effective learning rate", ylabel="test accuracy [%]")
        _finish(axes, "accuracy over the peak effective rate, a point a run", runs)
        _verdict_legend(figure, words)
    return figure, {"rate-points": [_run_title(run) for run in runs]}


def accuracy_over_key(sweep: Sweep) -> tuple[Figure, Titles] | None:
    """For one swept key: a column of points for each value, with mean and standard deviation. None for other sweeps."""
    if len(sweep.swept) != 1 or len(sweep.settings) < 2:
        return None
    (key,) = sweep.swept
    order = _ordered(sweep, key)
    settings = sorted((each for each in sweep.settings if each.values), key=lambda each: order.index(each.values[key]))
    runs = [run for setting in settings for run in setting.ended]
    if not runs or len(order) > _MAX_VALUES:
        return None
    labels = [_label(sweep, key, value) for value in order]
    x = [_label(sweep, key, setting.values[key]) for setting in settings for _ in setting.ended]
    y = [100 * run.final("accuracy") for run in runs]
    words = [_verdict_word(run) for run in runs]
    with plot_style.theme():
        figure = Figure(figsize=(5.4, 3.6))
        axes = figure.add_axes((0.115, 0.145, 0.865, 0.71))
        seaborn.swarmplot(
            x=x,
            y=y,
            order=labels,
            hue=words,
            palette={word: _word_color(word) for word in words},
            size=6 if len(runs) < 100 else 3,
            alpha=0.85,
            linewidth=0.4,
            legend=False,
            warn_thresh=1.0,
            ax=axes,
        )
        titles = {}
        for column, points in enumerate(axes.collections):
            members = [run for run, label in zip(runs, x, strict=True) if label == labels[column]]
            points.set_gid(f"strip{column}")
            titles[f"strip{column}"] = [_run_title(run) for run in members]
        if len(runs) > len(order):
            seaborn.pointplot(
                x=x,
                y=y,
                order=labels,
                errorbar="sd",
                linestyle="none",
                marker="_",
                markersize=26,
                color=plot_style.TEXT,
                err_kws={"linewidth": 1.2, "color": plot_style.TEXT},
                capsize=0.12,
                ax=axes,
            )
        axes.set(xlabel=escape_mathtext(key), ylabel="test accuracy [%]")
        _finish(axes, "accuracy by setting: a point a run, mean and standard deviation", runs)
        _verdict_legend(figure, words)
    return figure, titles


def heat_maps(sweep: Sweep) -> list[Figure]:
    """For two swept keys (a third one in panels): mean accuracy, and how many runs did not learn. Else empty."""
    if not 2 <= len(sweep.swept) <= 3:
        return []
    third = sweep.swept[2] if len(sweep.swept) == 3 else None
    facets = _ordered(sweep, third) if third else [None]
    rows, columns = sorted(sweep.swept[:2], key=lambda key: key != "optimizer.lr")
    sizes = [len(_ordered(sweep, key)) for key in (rows, columns)]
    if min(sizes) < 2 or max(sizes) > _MAX_VALUES or len(facets) > _MAX_FACETS:
        return []
    return [_heat_map(sweep, rows, columns, third, value) for value in facets]


def _heat_map(sweep: Sweep, rows: str, columns: str, third: str | None, facet: Any) -> Figure:
    """Two panels with the same axes: mean accuracy, and k/n runs that did not learn."""
    ys, xs = _ordered(sweep, rows), _ordered(sweep, columns)
    accuracy, failed = np.full((2, len(ys), len(xs)), np.nan)
    texts = [[["" for _ in xs] for _ in ys] for _ in range(2)]
    for setting in sweep.settings:
        if not setting.ended or not setting.values or (third and setting.values[third] != facet):
            continue
        y, x = ys.index(setting.values[rows]), xs.index(setting.values[columns])
        mean, deviation, _ = setting.mean("accuracy")
        accuracy[y, x] = 100 * mean
        failed[y, x] = len(setting.did_not_learn) / len(setting.ended)
        texts[0][y][x] = f"{100 * mean:.1f}" + ("" if math.isnan(deviation) else f"\n± {100 * deviation:.1f}")
        texts[1][y][x] = f"{len(setting.did_not_learn)}/{len(setting.ended)}"
    height = 1.15 + 0.52 * len(ys)
    short = short_names(sweep.swept)
    where = escape_mathtext(f" ({short[third]}={sweep.label(third, facet)})") if third else ""
    scales = [
        (
            accuracy,
            COLOR_SCALE.with_extremes(bad=(0, 0, 0, 0)),
            {"vmin": np.nanmin(accuracy), "vmax": np.nanmax(accuracy)},
            "mean test accuracy [%]",
        ),
        (failed, _FAILED_SCALE, {"vmin": 0.0, "vmax": 1.0}, "runs that did not learn"),
    ]
    with plot_style.theme():
        figure = Figure(figsize=(11, height))
        grid = figure.add_gridspec(1, 2, left=0.09, right=0.99, bottom=0.52 / height, top=1 - 0.38 / height, wspace=0.1)
        for axes, (values, scale, limits, title), text in zip(
            grid.subplots(squeeze=False)[0], scales, texts, strict=True
        ):
            seaborn.heatmap(
                values,
                cmap=scale,
                annot=np.array(text),
                fmt="",
                cbar=False,
                linewidths=1.5,
                linecolor="none",
                annot_kws={"fontsize": 9},
                xticklabels=[_label(sweep, columns, value) for value in xs],
                yticklabels=[_label(sweep, rows, value) for value in ys],
                ax=axes,
                **limits,
            )
            axes.invert_yaxis()
            axes.set_title(title + where)
            axes.set(xlabel=escape_mathtext(columns), ylabel="")
            axes.tick_params(axis="y", rotation=0)
        figure.axes[0].set_ylabel(escape_mathtext(rows))
    return figure


def _finish(axes: Axes, title: str, runs: Sequence[RunSummary]) -> None:
    """Title, and a line at the majority share."""
    axes.set_title(title, pad=20)
    shares = {100 * run.result.data.majority_share for run in runs if run.result and run.result.data}
    for share in sorted(shares)[:3]:
        axes.axhline(share, color=plot_style.TEXT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, *shares, 100) - 3, min(high + 2, 102))
    if shares:
        label_level(axes, "most frequent class", max(shares), above=False)


def _verdict_legend(figure: Figure, words: Sequence[str]) -> None:
    order = [word for word in (*plot_style.VERDICT_COLORS, "not watched") if word in words]
    handles = [Line2D([], [], ls="none", marker="o", ms=6, color=_word_color(word), label=word) for word in order]
    legend_on_top(figure, handles, left=0.1, top=0.94)


def _verdict_word(run: RunSummary) -> str:
    return str(run.verdict) if run.verdict else "not watched"


def _word_color(word: str) -> str:
    return plot_style.verdict_color(None if word == "not watched" else word)


def _label(sweep: Sweep, key: str, value: Any) -> str:
    """Of a tick."""
    return escape_mathtext(wrap(sweep.label(key, value), 30))


def _run_title(run: RunSummary) -> str:
    result = f"{format_percent(run.final('accuracy'))}, {_verdict_word(run)}"
    return f"{run.name}: {result}, peak rate {format_rate(run.peak_effective_lr)}"


def _ordered(sweep: Sweep, key: str) -> list[Any]:
    """The values of a swept key: numbers ascending, others as they come."""
    values = list(dict.fromkeys(setting.values[key] for setting in sweep.settings if key in setting.values))
    if all(isinstance(value, int | float) for value in values):
        values.sort()
    return values
