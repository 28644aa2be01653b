"""docs/article.md in numbers and pictures: does warm-up 0.1 fail, and why?

    python benchmarks/article.py                     the tables, from the stored runs, in seconds
    python benchmarks/article.py pictures docs       the figures
    python benchmarks/article.py sweep cpu           the runs: two hours on two cores; or cuda, or names of studies
    python benchmarks/article.py pack FOLDER...      store what the sweeps in these folders came to

A sweep's folder has the name of its study. Rates are effective ones: without bias correction the nominal rate times
(1 - beta1^t) / sqrt(1 - beta2^t) at update t.
"""

import csv
import itertools
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import verdicts
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.metrics import roc_auc_score

from bertmon import compare
from bertmon.errors import InputError
from bertmon.monitor.history import History

STORE = Path(__file__).parent / "results" / "article.csv"


@dataclass(frozen=True)
class Study:
    """A sweep: its name in a figure or its row in a table, and its overrides."""

    words: str
    overrides: str


CPU = "device=cpu hydra/launcher=joblib monitor.figures=false"
CUDA = "device=cuda monitor.figures=false experiment=article schedule.warmup_frac=0,0.05,0.1,0.3,0.5,0.7,0.9"
NEWS = "experiment=article model=bert_small data.max_length=64"
BOTH = "optimizer.bias_correction=false,true"
TEN = "seed=0,1,2,3,4,5,6,7,8,9"
PHASES = {
    "phase_docstrings": Study(
        "docstrings, 32 tokens",
        f"{CPU} experiment=quickstart model=bert_small seed=0,1,2 schedule.warmup_frac=0,0.1,0.3,0.5,0.7 "
        f"optimizer.lr=2e-4,4e-4,7e-4,1.2e-3,2e-3 {BOTH}",
    ),
    "phase_newsgroups": Study(
        "20 newsgroups, 64 tokens",
        f"{CPU} {NEWS} seed=0,1,2 schedule.warmup_frac=0,0.1,0.7 optimizer.lr=2e-4,4e-4,7e-4,1.2e-3 {BOTH} "
        "monitor.on_doomed=stop",
    ),
    "warmup_bert_base": Study("20 newsgroups, BERT-base", f"{CUDA} {TEN} {BOTH}"),
    "warmup_bert_base_bf16": Study("20 newsgroups, BERT-base in bf16", f"{CUDA} {TEN} {BOTH} train.precision=bf16"),
    "cliff_bert_base": Study(
        "20 newsgroups, BERT-base, five rates",
        f"{CUDA} seed=0,1,2,3,4 optimizer.lr=1e-5,3e-5,1e-4,3e-4,1e-3 {BOTH} monitor.on_doomed=stop",
    ),
}
ONE = f"{CPU} experiment=quickstart seed=0,1,2,3,4 monitor.on_doomed=stop"
CHANGES = {  # what differs from the run that fails; in words, by cell
    "change_warmup": Study("`schedule.warmup_frac={warmup_frac:g}`", f"{ONE} schedule.warmup_frac=0.1,0.3,0.7"),
    "change_bias_correction": Study("`optimizer.bias_correction=true`", f"{ONE} optimizer.bias_correction=true"),
    "change_lr": Study("`optimizer.lr={lr:g}`", f"{ONE} optimizer.lr=2.5e-4"),
    "change_lr_smaller": Study("`optimizer.lr={lr:g}`", f"{ONE} optimizer.lr=1.8e-4"),
    "change_lr_0.7": Study(
        "`schedule.warmup_frac={warmup_frac:g} optimizer.lr={lr:g}`",
        f"{ONE} schedule.warmup_frac=0.7 optimizer.lr=1.2e-3",
    ),
    "change_no_decay": Study(
        "`schedule={shape} schedule.warmup_frac={warmup_frac:g}`",
        f"{ONE} schedule=constant schedule.warmup_frac=0.1,0.7",
    ),
    "change_clip": Study("`train.max_grad_norm={clip}`", f"{ONE} train.max_grad_norm=null,0.1"),
    "change_pre_ln": Study("`model.model_type={model_type}`", f"{ONE} model.model_type=roberta-prelayernorm"),
    "change_dropout": Study(
        "dropout of 0.1, `schedule.warmup_frac={warmup_frac:g}`",
        f"{ONE} schedule.warmup_frac=0.1,0.7 model.hidden_dropout_prob=0.1 model.attention_probs_dropout_prob=0.1",
    ),
    "change_steps": Study("`train.epochs={epochs}`", f"{ONE} train.epochs=9"),
    "change_steps_same_warmup": Study(
        "`train.epochs={epochs} schedule.warmup_frac={warmup_frac:g}`",
        f"{ONE} train.epochs=9 schedule.warmup_frac=0.0333",
    ),
}
TO_THE_END = {  # runs that were stopped though they had learned something, not stopped
    "flag_to_the_end": Study(
        "docstrings, `train.epochs=9`, seed 4", f"{CPU} experiment=quickstart seed=4 train.epochs=9"
    ),
    "flag_news_to_the_end": Study(
        "20 newsgroups, warm-up 0.1, 7e-4, bias correction, seed 2",
        f"{CPU} {NEWS} seed=2 schedule.warmup_frac=0.1 optimizer.lr=7e-4 optimizer.bias_correction=true",
    ),
}
STUDIES = PHASES | CHANGES | TO_THE_END


def sweep(asked: Sequence[str]) -> None:
    """Run these studies, or all of a device; one whose folder is there goes on."""
    _known(asked, "cpu", "cuda")
    of_a_device = tuple(f"device={each} " for each in asked)
    names = [name for name, study in STUDIES.items() if name in asked or study.overrides.startswith(of_a_device)]
    for name in names:
        folder = Path("multirun", name)
        where = f"resume={folder}" if folder.exists() else f"hydra.sweep.dir={folder}"
        given = ["-m", "bertmon.run", "-m", *STUDIES[name].overrides.split(), where]
        print("python", *given, flush=True)
        subprocess.run([sys.executable, *given], check=True)


def _known(names: Sequence[str], *others: str) -> None:
    if unknown := set(names) - STUDIES.keys() - set(others):
        sys.exit(f"no study {', '.join(sorted(unknown))}; there are {', '.join([*others, *STUDIES])}")


@dataclass(frozen=True)
class Row:
    """One run."""

    study: str
    seed: int
    warmup_frac: float
    lr: float
    bias_correction: bool
    shape: str
    clip: str
    model_type: str
    epochs: int
    steps_planned: int
    steps: int
    status: str
    accuracy: float
    failed: bool  # as the report has it: no better than the most frequent class, at the 99 % bound
    verdict: str
    flagged: int  # the first step at which it was called doomed, as the rules are now; -1: never
    peak: float
    mean: float
    late: float  # mean of the second half of the steps


def rates(effective: npt.NDArray[np.float64]) -> dict[str, float]:
    half = effective[len(effective) // 2 :]
    return {"peak": float(effective.max()), "mean": float(effective.mean()), "late": float(half.mean())}


# --- the store -----------------------------------------------------------------------------------


def flag(run: compare.Run, history: History) -> int:
    """See Row.flagged; of a run that a flag has stopped, that one."""
    if run.status == "stopped":
        return int(run.result["verdict_step"])
    told = verdicts.verdicts(history, 30)
    return next((step for step, diagnosis in told if diagnosis.verdict.doomed), -1)


def read(folders: Sequence[Path]) -> Iterator[Row]:
    for folder in folders:
        for run in read_sweep([folder]).runs:
            history = run.history()
            if not run.finished or history is None:
                print(f"{run.folder}: {run.status}, left out", file=sys.stderr)
                continue
            told = run.result["settings"]
            yield Row(
                study=folder.name,
                seed=int(run.seed or 0),
                warmup_frac=told["schedule"]["warmup_frac"],
                lr=told["optimizer"]["lr"],
                bias_correction=told["optimizer"]["bias_correction"],
                shape=told["schedule"]["shape"],
                clip="null" if told["train"]["clip"] is None else f"{told['train']['clip']:g}",
                model_type=told["model"]["model_type"] or "bert",
                epochs=told["train"]["epochs"],
                steps_planned=run.result["steps_planned"],
                steps=run.result["steps"],
                status=run.status,
                accuracy=round(run.final("accuracy"), 6),
                failed=bool(run.failed),
                verdict=str(run.verdict),
                flagged=flag(run, history),
                **{name: float(f"{value:.5g}") for name, value in rates(history.plan.effective_lr).items()},
            )


def pack(folders: Sequence[Path]) -> None:
    """Rows of other studies stay."""
    _known([folder.name for folder in folders])
    packed = {folder.name for folder in folders}
    kept = [row for row in unpack() if row.study not in packed] if STORE.exists() else []
    rows = sorted([*kept, *read(folders)], key=lambda row: (row.study, *map(str, asdict(row).values())))
    with STORE.open("w", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        table.writeheader()
        table.writerows(map(asdict, rows))


def unpack() -> list[Row]:
    kinds: dict[str, Callable[[str], Any]] = {"bool": lambda text: text == "True"}
    kinds |= {"int": int, "float": float, "str": str}
    with STORE.open(newline="") as file:
        return [
            Row(**{field.name: kinds[field.type.__name__](row[field.name]) for field in fields(Row)})  # type: ignore[union-attr]
            for row in csv.DictReader(file)
        ]


# --- tables --------------------------------------------------------------------------------------


def cells(rows: Sequence[Row]) -> list[list[Row]]:
    """Runs that differ by their seed alone."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        key = (row.study, row.shape, row.clip, row.model_type, row.epochs, row.bias_correction, row.warmup_frac, row.lr)
        found.setdefault(key, []).append(row)
    return [found[key] for key in sorted(found, key=str)]


def summary(cell: Sequence[Row]) -> str:
    """Accuracy, failures and when they were known, as columns."""
    accuracies = [100 * row.accuracy for row in cell]
    failed = sum(row.failed for row in cell)
    low, high = wilson_interval(failed, len(cell))
    known = sorted(row.flagged for row in cell if row.failed and row.flagged >= 0)
    spread = f" ± {np.std(accuracies, ddof=1):.1f}" if len(cell) > 1 else ""
    first = f"{known[0]} to {known[-1]}" if known and known[0] < known[-1] else f"{known[0]}" if known else ""
    return (
        f"{cell[0].peak:.1e} | {np.mean(accuracies):.1f}{spread} "
        f"| {failed} of {len(cell)} ({100 * low:.0f} to {100 * high:.0f} %) | {first}"
    )


def changes(rows: Sequence[Row]) -> None:
    print("| change | peak effective rate | test accuracy [%] | failed (95 % interval) | known at step |")
    print("|---|---|---|---|---|")
    for name, study in CHANGES.items():
        for cell in cells([row for row in rows if row.study == name]):
            print(f"| {study.words.format(**asdict(cell[0]))} | {summary(cell)} |")


def phases(rows: Sequence[Row]) -> None:
    print("| bias correction | warm-up | rate | peak effective rate | test accuracy [%] | failed | known at step |")
    print("|---|---|---|---|---|---|---|")
    for cell in cells(rows):
        row = cell[0]
        print(f"| {'yes' if row.bias_correction else 'no'} | {row.warmup_frac:g} | {row.lr:g} | {summary(cell)} |")


def bands(rows: Sequence[Row]) -> None:
    """Failures by the peak effective rate alone."""
    print("| peak effective rate | failed |\n|---|---|")
    for low, high, words in ((0, 1e-3, "below 1e-3"), (1e-3, 1.9e-3, "1e-3 to 1.9e-3"), (1.9e-3, 1, "above 1.9e-3")):
        inside = [row.failed for row in rows if low <= row.peak < high]
        print(f"| {words} | {sum(inside)} of {len(inside)} |")


def same_peak(rows: Sequence[Row], lr: float) -> None:
    """Failures by warm-up alone: with bias correction the peak is the rate, whatever the warm-up."""
    of = [row for row in rows if row.bias_correction and row.lr == lr]
    print(f"| warm-up, all with a peak of {lr:g} | failed |\n|---|---|")
    for warmup in sorted({row.warmup_frac for row in of}):
        failed = [row.failed for row in of if row.warmup_frac == warmup]
        print(f"| {warmup:g} | {sum(failed)} of {len(failed)} |")


def to_the_end(rows: Sequence[Row]) -> None:
    print("| stopped once, and now not | test accuracy [%] |\n|---|---|")
    for row in rows:
        if row.study in TO_THE_END:
            print(f"| {TO_THE_END[row.study].words} | {100 * row.accuracy:.1f} |")


TOO_SLOW = 1.5e-4  # below this peak the runs drawn at random fail since their few steps are too small
Predictors = dict[str, Callable[[Any], float]]
PREDICTORS: Predictors = {
    "peak effective rate": lambda row: row.peak,
    "nominal rate": lambda row: row.lr,
    "mean effective rate": lambda row: row.mean,
    "mean effective rate of the second half": lambda row: row.late,
    "warm-up, the shorter the worse": lambda row: -row.warmup_frac,
}


def best_threshold(values: Sequence[float], failed: Sequence[bool]) -> tuple[float, int]:
    """Where "failed if above" is wrong least often, between two values, and how often that is."""
    ordered = sorted(set(values))
    between = [(low + high) / 2 for low, high in itertools.pairwise(ordered)]
    wrong = [sum((value > at) != fail for value, fail in zip(values, failed, strict=True)) for at in between]
    least = int(np.argmin(wrong))
    return between[least], wrong[least]


def predictors(studies: dict[str, Sequence[Any]]) -> None:
    heads = [f"{name}: {sum(row.failed for row in rows)} of {len(rows)} failed" for name, rows in studies.items()]
    print(f"| failed if larger | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for name, of in PREDICTORS.items():
        told = []
        for rows in studies.values():
            values, failed = [of(row) for row in rows], [row.failed for row in rows]
            at, wrong = best_threshold(values, failed)
            told.append(f"{roc_auc_score(failed, values):.2f}; {wrong} wrong at {abs(at):.2g}")
        print(f"| {name} | {' | '.join(told)} |")


def by_warmup(rows: Sequence[Row]) -> None:
    """What warm-up does beside its part in the peak."""
    print("| warm-up | cliff at a peak effective rate of | runs on the wrong side |\n|---|---|---|")
    for warmup in sorted({row.warmup_frac for row in rows}):
        of = [row for row in rows if row.warmup_frac == warmup]
        at, wrong = best_threshold([row.peak for row in of], [row.failed for row in of])
        print(f"| {warmup:g} | {at:.1e} | {wrong} of {len(of)} |")


def verdicts_told(rows: Sequence[Row]) -> str:
    """How the verdicts did on runs that were all trained to the end."""
    failed = [row for row in rows if row.failed]
    flagged = [100 * row.flagged / row.steps_planned for row in failed if row.flagged >= 0]
    others = sorted(row.accuracy for row in rows if not row.failed and row.flagged >= 0)
    return (
        f"called doomed at some step: {len(flagged)} of {len(failed)} that failed, first after "
        f"{np.median(flagged):.0f} % of the steps (median), and {len(others)} of {len(rows) - len(failed)} others"
        + (f", which ended at {100 * others[0]:.1f} to {100 * others[-1]:.1f} %" if others else "")
    )


@dataclass(frozen=True)
class Drawn:
    """A run of the verdicts' study, with settings drawn at random."""

    failed: bool
    layers: int
    width: int
    lr: float
    warmup_frac: float
    peak: float
    mean: float
    late: float


def drawn() -> list[Drawn]:
    """Those of benchmarks/verdict_grid.py that clearly failed or learned."""
    found = []
    for run in verdicts.unpack():
        given = dict(override.split("=") for override in run.overrides.split())
        if run.label != "between" and "model.hidden_size" in given:
            found.append(
                Drawn(
                    run.label == "failed",
                    int(given["model.num_hidden_layers"]),
                    int(given["model.hidden_size"]),
                    float(run.history.plan.lr.max()),
                    run.history.plan.warmup_frac,
                    **rates(run.history.plan.effective_lr),
                )
            )
    return found


def architectures(runs: Sequence[Drawn]) -> None:
    """Where the cliff is for each size of model."""
    print("| layers | width 64: cliff at | wrong | width 128: cliff at | wrong |\n|---|---|---|---|---|")
    for layers in sorted({run.layers for run in runs}):
        told = []
        for width in (64, 128):
            of = [run for run in runs if (run.layers, run.width) == (layers, width)]
            at, wrong = best_threshold([run.peak for run in of], [run.failed for run in of])
            told.append(f"{at:.1e} | {wrong} of {len(of)}")
        print(f"| {layers} | {' | '.join(told)} |")


# --- pictures ------------------------------------------------------------------------------------

COLOURS = colormaps["cividis_r"]


def diagram(axes: Axes, rows: Sequence[Row], height: Callable[[Row], float]) -> None:
    """Failure rate of each cell over warm-up; in a column the left half is without bias correction."""
    warmups = sorted({row.warmup_frac for row in rows})
    for cell in cells(rows):
        row, share = cell[0], sum(row.failed for row in cell) / len(cell)
        left = warmups.index(row.warmup_frac) + (0.02 if row.bias_correction else -0.44)
        low = height(row) / 1.19
        tile = Rectangle((left, low), 0.42, low * (1.19**2 - 1), facecolor=COLOURS(share), edgecolor="white")
        axes.add_patch(tile)
        axes.text(
            left + 0.21,
            height(row),
            f"{sum(row.failed for row in cell)}/{len(cell)}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if share > 0.5 else "#1d2126",
        )
    span = (min(row.lr for row in rows) / 1.4, 1.4 * max(row.peak for row in rows))
    axes.set(yscale="log", xlim=(-0.55, len(warmups) - 0.45), ylim=span)
    axes.set_xticks(range(len(warmups)), [f"{warmup:g}" for warmup in warmups])
    axes.set_xlabel("warm-up, share of the steps (each left: no bias correction, right: with)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def phase_picture(rows: Sequence[Row]) -> Figure:
    studies = [study for study in PHASES if any(row.study == study for row in rows)]
    figure = Figure(figsize=(11, 4.2 * len(studies)), layout="constrained")
    panels = figure.subplots(len(studies), 2, sharey="row", squeeze=False)
    for (left, right), study in zip(panels, studies, strict=True):
        of = [row for row in rows if row.study == study]
        diagram(left, of, lambda row: row.lr)
        diagram(right, of, lambda row: row.peak)
        left.set_title(f"{PHASES[study].words}: by the nominal rate", fontsize=10, loc="left")
        threshold, wrong = best_threshold([row.peak for row in of], [row.failed for row in of])
        title = f"by the peak effective rate: {wrong} of {len(of)} on the wrong side of {threshold:.1e}"
        right.set_title(title, fontsize=10, loc="left")
        right.axhline(threshold, color="#D55E00", linewidth=1.2, linestyle="--", zorder=0)
        left.set_ylabel("learning rate", fontsize=8)
    colours = figure.colorbar(ScalarMappable(cmap=COLOURS), ax=panels, shrink=0.6, aspect=30, pad=0.01)
    colours.set_label("share of seeds that failed (in the tiles: failed/seeds)", fontsize=8)
    colours.ax.tick_params(labelsize=8)
    colours.outline.set_visible(False)
    return figure


def cliff_picture(studies: dict[str, Sequence[Any]]) -> Figure:
    """Failure rate against the peak effective rate, in bins of a factor of 1.6, with 95 % intervals."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    edges = 2e-5 * 1.6 ** np.arange(18)
    for (name, rows), colour in zip(studies.items(), ("#0072B2", "#D55E00", "#7A7A7A"), strict=False):
        points = []
        for low, high in itertools.pairwise(edges):
            inside = [row for row in rows if low <= row.peak < high]
            if len(inside) >= 3:
                failed = sum(row.failed for row in inside)
                points.append(
                    (math.sqrt(low * high), failed / len(inside), *wilson_interval(failed, len(inside)), len(inside))
                )
        x, share, least, most, _ = map(np.array, zip(*points, strict=True))
        axes.fill_between(x, 100 * least, 100 * most, color=colour, alpha=0.13, linewidth=0)
        axes.plot(x, 100 * share, "o-", color=colour, linewidth=1.6, markersize=4, label=name)
    axes.set(xscale="log", ylim=(-3, 103), xlabel="peak effective learning rate", ylabel="runs that failed [%]")
    axes.grid(color="#d9dce1", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center", bbox_to_anchor=(0.38, 0.85))
    return figure


def main(asked: Sequence[str]) -> None:
    match list(asked):
        case ["pack", *folders]:
            try:
                pack([Path(folder) for folder in folders])
            except InputError as error:
                sys.exit(str(error))
            return
        case ["sweep", *names] if names:
            sweep(names)
            return
        case [] | ["pictures", _]:
            pass
        case _:
            sys.exit(__doc__)
    rows = unpack()
    studies: dict[str, Sequence[Any]] = {
        study.words: of for name, study in PHASES.items() if (of := [row for row in rows if row.study == name])
    }
    studies["settings drawn at random"] = at_random = drawn()
    if asked:
        folder = Path(asked[1])
        folder.mkdir(parents=True, exist_ok=True)
        phase_picture(rows).savefig(folder / "article_phase.png", dpi=150)
        cliff_picture(studies).savefig(folder / "article_cliff.png", dpi=150)
        return
    small = [row for row in rows if row.study in ("phase_docstrings", "phase_newsgroups")]
    changes(rows)
    print()
    to_the_end(rows)
    print()
    bands(small)
    print()
    same_peak(small, 1.2e-3)
    print()
    fast = [run for run in at_random if run.peak > TOO_SLOW]
    predictors({**studies, f"those above {TOO_SLOW:g}": fast})
    print()
    architectures(fast)
    for name, study in PHASES.items():
        whole = [row for row in rows if row.study == name]
        if not whole:
            continue
        print(f"\n{study.words}:\n")
        phases(whole)
        print()
        by_warmup(whole)
        stopped = sum(row.status == "stopped" for row in whole)
        print(f"\nstopped when called doomed: {stopped} of {len(whole)}" if stopped else f"\n{verdicts_told(whole)}")


if __name__ == "__main__":
    main(sys.argv[1:])
