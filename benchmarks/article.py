"""The tables and figures of docs/article.md: does a warm-up of 0.1 fail, and why?

    python benchmarks/article.py                     the tables, from the stored runs, in seconds
    python benchmarks/article.py pictures docs       the figures

The runs come from benchmarks/article_runs.py. Rates are effective learning rates unless called nominal.
"""

import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import labeled_runs
import numpy as np
from article_runs import CHANGES, PHASES, TO_THE_END, ArticleRun, rates, unpack
from labeled_runs import Label
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.metrics import roc_auc_score

from bertmon.metrics import wilson_interval


class Rated(Protocol):
    """A run of either study, with its learning rates and outcome."""

    did_not_learn: bool
    lr: float
    warmup_frac: float
    peak_effective_lr: float
    mean_effective_lr: float
    late_effective_lr: float


# --- tables --------------------------------------------------------------------------------------


def group_by_setting(rows: Sequence[ArticleRun]) -> list[list[ArticleRun]]:
    """Runs grouped by setting: those of a group differ only in their seed."""
    groups: dict[tuple[object, ...], list[ArticleRun]] = {}
    for row in rows:
        config = (row.decay, row.max_grad_norm, row.model_type, row.epochs)
        key = (row.study, *config, row.bias_correction, row.warmup_frac, row.lr)
        groups.setdefault(key, []).append(row)
    return [groups[key] for key in sorted(groups, key=str)]


def summary(runs: Sequence[ArticleRun]) -> str:
    """Peak rate, accuracy, runs that did not learn and the steps at which they were flagged, as columns."""
    accuracies = [100 * run.accuracy for run in runs]
    lost = [run for run in runs if run.did_not_learn]
    low, high = wilson_interval(len(lost), len(runs))
    steps = sorted({run.flagged_step for run in lost if run.flagged_step >= 0})
    spread = f" ± {np.std(accuracies, ddof=1):.1f}" if len(runs) > 1 else ""
    return (
        f"{runs[0].peak_effective_lr:.1e} | {np.mean(accuracies):.1f}{spread} "
        f"| {len(lost)} of {len(runs)} ({100 * low:.0f} to {100 * high:.0f} %) "
        f"| {' to '.join(map(str, steps[:: max(len(steps) - 1, 1)]))}"
    )


def print_changes(rows: Sequence[ArticleRun]) -> None:
    """A row for each change to the run that does not learn."""
    print("| change | peak effective rate | test accuracy [%] | did not learn (95 % interval) | flagged at step |")
    print("|---|---|---|---|---|")
    for name, study in CHANGES.items():
        for runs in group_by_setting([row for row in rows if row.study == name]):
            print(f"| {study.title.format(**asdict(runs[0]))} | {summary(runs)} |")


def print_phase(rows: Sequence[ArticleRun]) -> None:
    """A row for each setting of a study over warm-ups and rates."""
    names = ("bias correction", "warm-up", "rate", "peak effective rate", "test accuracy [%]", "did not learn")
    print(f"| {' | '.join(names)} | flagged at step |")
    print("|---|---|---|---|---|---|---|")
    for runs in group_by_setting(rows):
        run = runs[0]
        print(f"| {'yes' if run.bias_correction else 'no'} | {run.warmup_frac:g} | {run.lr:g} | {summary(runs)} |")


def print_bands(rows: Sequence[ArticleRun]) -> None:
    """Runs that did not learn, by peak effective rate alone."""
    print("| peak effective rate | did not learn |\n|---|---|")
    for low, high, title in ((0, 1e-3, "below 1e-3"), (1e-3, 1.9e-3, "1e-3 to 1.9e-3"), (1.9e-3, 1, "above 1.9e-3")):
        inside = [row.did_not_learn for row in rows if low <= row.peak_effective_lr < high]
        print(f"| {title} | {sum(inside)} of {len(inside)} |")


def print_same_peak(rows: Sequence[ArticleRun], lr: float) -> None:
    """Runs that did not learn, by warm-up alone: with bias correction, the peak is the nominal rate for any warm-up."""
    corrected = [row for row in rows if row.bias_correction and row.lr == lr]
    print(f"| warm-up, all with a peak of {lr:g} | did not learn |\n|---|---|")
    for warmup in sorted({row.warmup_frac for row in corrected}):
        lost = [row.did_not_learn for row in corrected if row.warmup_frac == warmup]
        print(f"| {warmup:g} | {sum(lost)} of {len(lost)} |")


def print_to_the_end(rows: Sequence[ArticleRun]) -> None:
    """Outcomes of runs that a verdict had stopped, trained again to the end."""
    print("| stopped at first, then trained to the end | test accuracy [%] |\n|---|---|")
    for row in rows:
        if row.study in TO_THE_END:
            print(f"| {TO_THE_END[row.study].title.format(**asdict(row))} | {100 * row.accuracy:.1f} |")


TOO_SLOW = 1.5e-4  # randomly drawn runs with a lower peak do not learn because their few steps are too small
PREDICTORS: dict[str, Callable[[Rated], float]] = {
    "peak effective rate": lambda row: row.peak_effective_lr,
    "nominal rate": lambda row: row.lr,
    "mean effective rate": lambda row: row.mean_effective_lr,
    "mean effective rate of the second half": lambda row: row.late_effective_lr,
    "warm-up, the shorter the worse": lambda row: -row.warmup_frac,
}


def best_threshold(values: Sequence[float], lost: Sequence[bool]) -> tuple[float, int]:
    """The threshold between two values with the fewest errors of "does not learn if above", and their number."""
    thresholds = [(low + high) / 2 for low, high in itertools.pairwise(sorted(set(values)))]
    errors = [sum((value > at) != end for value, end in zip(values, lost, strict=True)) for at in thresholds]
    best = int(np.argmin(errors))
    return thresholds[best], errors[best]


def cliff(rows: Sequence[Rated]) -> tuple[float, int]:
    """The best threshold of the peak effective rate."""
    return best_threshold([row.peak_effective_lr for row in rows], [row.did_not_learn for row in rows])


def print_predictors(studies: Mapping[str, Sequence[Rated]]) -> None:
    """How well each quantity alone predicts which runs do not learn: area under the ROC curve and best threshold."""
    lost = {name: [row.did_not_learn for row in rows] for name, rows in studies.items()}
    heads = [f"{name}: {sum(ends)} of {len(ends)} did not learn" for name, ends in lost.items()]
    print(f"| does not learn if larger | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for predictor, value in PREDICTORS.items():
        columns = []
        for name, rows in studies.items():
            values = [value(row) for row in rows]
            threshold, wrong = best_threshold(values, lost[name])
            columns.append(f"{roc_auc_score(lost[name], values):.2f}; {wrong} wrong at {abs(threshold):.2g}")
        print(f"| {predictor} | {' | '.join(columns)} |")


def print_by_warmup(rows: Sequence[ArticleRun]) -> None:
    """The effect of warm-up beyond its effect on the peak."""
    print("| warm-up | cliff at a peak effective rate of | runs on the wrong side |\n|---|---|---|")
    for warmup in sorted({row.warmup_frac for row in rows}):
        group = [row for row in rows if row.warmup_frac == warmup]
        threshold, wrong = cliff(group)
        print(f"| {warmup:g} | {threshold:.1e} | {wrong} of {len(group)} |")


def verdict_score(rows: Sequence[ArticleRun]) -> str:
    """The performance of the verdicts on runs that were all trained to the end."""
    lost = [row for row in rows if row.did_not_learn]
    flagged = [100 * row.flagged_step / row.total_steps for row in lost if row.flagged_step >= 0]
    alarms = sorted(row.accuracy for row in rows if not row.did_not_learn and row.flagged_step >= 0)
    return (
        f"called doomed at some step: {len(flagged)} of {len(lost)} that did not learn, first after "
        f"{np.median(flagged):.0f} % of the steps (median), and {len(alarms)} of {len(rows) - len(lost)} others"
        + (f", which ended at {100 * alarms[0]:.1f} to {100 * alarms[-1]:.1f} %" if alarms else "")
    )


@dataclass(frozen=True)
class RandomRun:
    """A run of the verdict study, with randomly drawn settings."""

    did_not_learn: bool
    layers: int
    width: int
    lr: float
    warmup_frac: float
    peak_effective_lr: float
    mean_effective_lr: float
    late_effective_lr: float


def random_runs() -> Iterator[RandomRun]:
    """Runs of benchmarks/verdict_grid.py that clearly learned or clearly did not."""
    for run in labeled_runs.unpack():
        overrides = dict(override.split("=") for override in run.overrides.split())
        if run.label is not Label.between and "model.hidden_size" in overrides:
            yield RandomRun(
                run.label is Label.did_not_learn,
                int(overrides["model.num_hidden_layers"]),
                int(overrides["model.hidden_size"]),
                float(run.history.plan.lr.max()),
                run.history.plan.warmup_frac,
                **rates(run.history.plan.effective_lr),
            )


def print_architectures(runs: Sequence[RandomRun]) -> None:
    """The cliff of each model size."""
    print("| layers | width 64: cliff at | wrong | width 128: cliff at | wrong |\n|---|---|---|---|---|")
    for layers in sorted({run.layers for run in runs}):
        columns = []
        for width in (64, 128):
            group = [run for run in runs if (run.layers, run.width) == (layers, width)]
            threshold, wrong = cliff(group)
            columns.append(f"{threshold:.1e} | {wrong} of {len(group)}")
        print(f"| {layers} | {' | '.join(columns)} |")


# --- pictures ------------------------------------------------------------------------------------

COLORS = colormaps["cividis_r"]


def diagram(axes: Axes, rows: Sequence[ArticleRun], height: Callable[[ArticleRun], float]) -> None:
    """Share of seeds that did not learn by setting, over warm-up; the left half of a column has no bias correction."""
    warmups = sorted({row.warmup_frac for row in rows})
    for runs in group_by_setting(rows):
        run, lost = runs[0], sum(row.did_not_learn for row in runs)
        left = warmups.index(run.warmup_frac) + (0.02 if run.bias_correction else -0.44)
        low = height(run) / 1.19
        face, text = COLORS(lost / len(runs)), "white" if lost > len(runs) / 2 else "#1d2126"
        axes.add_patch(Rectangle((left, low), 0.42, low * (1.19**2 - 1), facecolor=face, edgecolor="white"))
        style = {"ha": "center", "va": "center", "fontsize": 7, "color": text}
        axes.text(left + 0.21, height(run), f"{lost}/{len(runs)}", **style)
    span = (min(row.lr for row in rows) / 1.4, 1.4 * max(row.peak_effective_lr for row in rows))
    axes.set(yscale="log", xlim=(-0.55, len(warmups) - 0.45), ylim=span)
    axes.set_xticks(range(len(warmups)), [f"{warmup:g}" for warmup in warmups])
    axes.set_xlabel("warm-up, share of the steps (each left: no bias correction, right: with)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def phase_picture(rows: Sequence[ArticleRun]) -> Figure:
    """Diagrams by nominal rate and by peak effective rate, one row of panels per study."""
    studies = [study for study in PHASES if any(row.study == study for row in rows)]
    figure = Figure(figsize=(11, 4.2 * len(studies)), layout="constrained")
    panels = figure.subplots(len(studies), 2, sharey="row", squeeze=False)
    for (left, right), study in zip(panels, studies, strict=True):
        runs = [row for row in rows if row.study == study]
        diagram(left, runs, lambda row: row.lr)
        diagram(right, runs, lambda row: row.peak_effective_lr)
        left.set_title(f"{PHASES[study].title}: by the nominal rate", fontsize=10, loc="left")
        threshold, wrong = cliff(runs)
        title = f"by the peak effective rate: {wrong} of {len(runs)} on the wrong side of {threshold:.1e}"
        right.set_title(title, fontsize=10, loc="left")
        right.axhline(threshold, color="#D55E00", linewidth=1.2, linestyle="--", zorder=0)
        left.set_ylabel("learning rate", fontsize=8)
    bar = figure.colorbar(ScalarMappable(cmap=COLORS), ax=panels, shrink=0.6, aspect=30, pad=0.01)
    bar.set_label("share of seeds that did not learn (in the tiles: number/seeds)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure


def cliff_picture(studies: Mapping[str, Sequence[Rated]]) -> Figure:
    """Share of runs that did not learn by peak effective rate, in bins of a factor of 1.6, with 95 % intervals."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    edges = 2e-5 * 1.6 ** np.arange(18)
    for (name, rows), color in zip(studies.items(), ("#0072B2", "#D55E00", "#7A7A7A"), strict=False):
        points = []
        for low, high in itertools.pairwise(edges):
            inside = [row.did_not_learn for row in rows if low <= row.peak_effective_lr < high]
            if len(inside) >= 3:
                lost = sum(inside)
                points.append((math.sqrt(low * high), lost / len(inside), *wilson_interval(lost, len(inside))))
        x, share, low_share, high_share = map(np.array, zip(*points, strict=True))
        axes.fill_between(x, 100 * low_share, 100 * high_share, color=color, alpha=0.13, linewidth=0)
        axes.plot(x, 100 * share, "o-", color=color, linewidth=1.6, markersize=4, label=name)
    axes.set(xscale="log", ylim=(-3, 103), xlabel="peak effective learning rate", ylabel="runs that did not learn [%]")
    axes.grid(color="#d9dce1", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center", bbox_to_anchor=(0.38, 0.85))
    return figure


def print_tables(rows: Sequence[ArticleRun], studies: Mapping[str, Sequence[Rated]], drawn: list[RandomRun]) -> None:
    """Every table of docs/article.md."""
    small = [row for row in rows if row.study in ("phase_docstrings", "phase_newsgroups")]
    fast = [run for run in drawn if run.peak_effective_lr > TOO_SLOW]
    print_changes(rows)
    print()
    print_to_the_end(rows)
    print()
    print_bands(small)
    print()
    print_same_peak(small, 1.2e-3)
    print()
    print_predictors({**studies, f"those above {TOO_SLOW:g}": fast})
    print()
    print_architectures(fast)
    for name, study in PHASES.items():
        if not (phase := [row for row in rows if row.study == name]):
            continue
        print(f"\n{study.title}:\n")
        print_phase(phase)
        print()
        print_by_warmup(phase)
        stopped = sum(row.status == "stopped" for row in phase)
        score = f"stopped when called doomed: {stopped} of {len(phase)}" if stopped else verdict_score(phase)
        print(f"\n{score}")


def main(arguments: Sequence[str]) -> None:
    """See the module's docstring."""
    rows, drawn = unpack(), list(random_runs())
    studies: dict[str, Sequence[Rated]] = {
        study.title: runs for name, study in PHASES.items() if (runs := [row for row in rows if row.study == name])
    }
    studies["settings drawn at random"] = drawn
    match list(arguments):
        case []:
            print_tables(rows, studies, drawn)
        case ["pictures", folder]:
            Path(folder).mkdir(parents=True, exist_ok=True)
            phase_picture(rows).savefig(Path(folder, "article_phase.png"), dpi=150)
            cliff_picture(studies).savefig(Path(folder, "article_cliff.png"), dpi=150)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
