"""Does a short run with a rising learning rate predict above which rate real runs of a model do not learn?

    python benchmarks/range_validation.py               the tables of docs/range.md, from the stored runs, in seconds
    python benchmarks/range_validation.py predict       make the runs with rising rates: half an hour on one thread
    python benchmarks/range_validation.py train         train the real runs that are in no other study

Newsgroups are read by scikit-learn (SCIKIT_LEARN_DATA). MiniLM is left out unless the current folder is that of
benchmarks/pretrained_grid.py, whose runs it is compared with.

A shape's real runs come from docs/article.md, docs/verdicts.md and `train`. Its cliff is the bracket of all peak
effective rates that separate the runs that did not learn from the others with the fewest errors. OVERSHOOT, the only
constant, is the median over the calibration shapes of the ratio between the rate at which gradients vanished and the
middle of the bracket. The signal and the speed of the rise were chosen on shapes of both parts; only the last three
shapes were added afterwards.
"""

import csv
import functools
import itertools
import logging
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

import article_runs
import labeled_runs
import torch
from environment import compose_config
from labeled_runs import Label

from bertmon.notation import format_rate
from bertmon.training.rate_range import OVERSHOOT, find_cliff
from bertmon.training.run_training import run_training

RESULTS = Path(__file__).parent / "results"
PREDICTIONS, REAL_RUNS = RESULTS / "range_predictions.csv", RESULTS / "range_real_runs.csv"
SEEDS = (0, 1)
LOWEST, HIGHEST = 1e-4, 2e-2
CONSTANT = 1.5e-3  # a prediction for any model: docs/article.md's cliff
NO_CLIFF = "docstrings 8x128, pre-LN"  # no run fails, so that any lower bound counts as right
ADDED_LAST = 3  # of SHAPES, after the method was fixed
CLOSE = 1.5  # the factor by which a close prediction can be outside of the bracket
TOO_SLOW = 5e-4  # runs with a lower peak can fail because they train too slowly


@dataclass(frozen=True)
class Shape:
    """A model and task, on top of experiment=quickstart."""

    name: str
    overrides: str
    calibration: bool = False
    studies: str = ""  # prefixes of the names of docs/article.md's studies
    labeled: str = ""  # task, layers, width and dropout of the labeled runs
    rates: Sequence[float] = ()  # peak rates for `train`, with bias correction and a warm-up of 0.1


def _small(layers: int, width: int, *, newsgroups: bool = False, dropout: bool = False) -> str:
    task = "data=newsgroups data.max_length=32 " if newsgroups else ""
    size = f"model.num_hidden_layers={layers} model.hidden_size={width} model.intermediate_size={4 * width}"
    return f"{task}model=bert_small {size}{DROPOUT if dropout else ''}"


MINILM = (
    "data=files data.train=texts/4_800.csv data.test=texts/4_test.csv data.max_length=16 train.batch_size=8 "
    "model=pretrained model.name=minilm"
)
DROPOUT = " model.hidden_dropout_prob=0.1 model.attention_probs_dropout_prob=0.1"
QUICKSTART = "change_warmup change_bias_correction change_lr change_no_decay change_steps"
SHAPES = (
    Shape("docstrings 2x64", _small(2, 64), True, "", "docstrings 2 64 0.0", (4e-3, 6e-3, 8e-3)),
    Shape("docstrings 4x64", _small(4, 64), False, "", "docstrings 4 64 0.0", (4e-3,)),
    Shape("docstrings 6x64", _small(6, 64), False, "", "docstrings 6 64 0.0", (2.8e-3,)),
    Shape("docstrings 8x64", _small(8, 64), True, "", "docstrings 8 64 0.0"),
    Shape("docstrings 8x64, dropout", _small(8, 64, dropout=True), False, "", "docstrings 8 64 0.1"),
    Shape("docstrings 12x64", _small(12, 64), True, "", "docstrings 12 64 0.0"),
    Shape("docstrings 12x64, dropout", _small(12, 64, dropout=True), False, "", "docstrings 12 64 0.1"),
    Shape("docstrings 6x128", "model=bert_small", True, "phase_docstrings", "docstrings 6 128 0.0"),
    Shape("docstrings 8x128", "", True, QUICKSTART, "docstrings 8 128 0.0"),
    Shape("docstrings 8x128, dropout", DROPOUT, True, "change_dropout", "docstrings 8 128 0.1"),
    Shape("docstrings 8x128, clipping at 0.1", "train.max_grad_norm=0.1", False, "change_clip", "", (4e-3,)),
    Shape(
        "docstrings 8x128, pre-LN", "model.model_type=roberta-prelayernorm", False, "change_pre_ln", "", (1e-2, 2e-2)
    ),
    Shape("newsgroups 4x64", _small(4, 64, newsgroups=True), False, "", "newsgroups 4 64 0.0", (5e-3,)),
    Shape("newsgroups 8x64, dropout", _small(8, 64, newsgroups=True, dropout=True), False, "", "newsgroups 8 64 0.1"),
    Shape("newsgroups 12x64", _small(12, 64, newsgroups=True), True, "", "newsgroups 12 64 0.0"),
    Shape(
        "newsgroups 6x128",
        "data=newsgroups model=bert_small data.max_length=64",
        True,
        "phase_newsgroups flag_news",
        "newsgroups 6 128 0.0",
    ),
    Shape("docstrings 2x32", _small(2, 32), False, "", "", (4e-3, 8e-3, 1.6e-2)),
    Shape("docstrings 8x128, beta2=0.99", "optimizer.beta2=0.99", False, "change_beta2", "", (1e-3, 2e-3, 4e-3)),
    Shape("MiniLM, pretrained", f"{MINILM} {DROPOUT.replace('0.1', '0.0')}"),
)


@dataclass(frozen=True)
class RealRun:
    """The planned peak rate of a real run, and its outcome."""

    shape: str
    seed: int
    peak_effective_lr: float
    did_not_learn: bool


@dataclass(frozen=True)
class Prediction:
    """A run with a rising rate."""

    shape: str
    seed: int
    broke_at: float  # nan: gradients never vanished
    steps: int


@dataclass(frozen=True)
class Cliff:
    """The bracket of peak rates above which a shape's real runs do not learn."""

    low: float  # 0 if no run learned
    high: float  # inf if all did
    wrong: int  # misclassified runs, at any rate of the bracket
    runs: int

    @property
    def middle(self) -> float:
        return math.sqrt(self.low * self.high)

    def miss(self, rate: float) -> float:
        """The factor by which a rate is outside of the bracket; 1 inside."""
        return max(self.low / rate, rate / self.high, 1.0)


def labeled_key(overrides: str) -> str:
    """Task, layers, width and dropout of a labeled run, in the format of Shape.labeled."""
    values = dict(override.split("=", 1) for override in overrides.split())
    layers = values.get("model.num_hidden_layers", "8" if "experiment" in values else "6")
    dropout = values.get("model.hidden_dropout_prob", "0.0")
    return f"{values.get('data', 'docstrings')} {layers} {values.get('model.hidden_size', '128')} {dropout}"


@functools.cache
def all_runs() -> dict[str, list[RealRun]]:
    """The stored real runs of each shape, except those that may train too slowly."""
    extra, article, labeled = read(REAL_RUNS, RealRun), article_runs.unpack(), labeled_runs.unpack()
    runs = {}
    for shape in SHAPES:
        name, prefixes = shape.name, tuple(shape.studies.split())
        own = [run for run in extra if run.shape == name]
        own += [
            RealRun(name, row.seed, row.peak_effective_lr, row.did_not_learn)
            for row in article
            if row.study.startswith(prefixes) and (shape.studies != "change_clip" or row.max_grad_norm == "0.1")
        ]
        own += [
            RealRun(name, run.seed, float(run.history.plan.effective_lr.max()), run.label is Label.did_not_learn)
            for run in labeled
            if labeled_key(run.overrides) == shape.labeled
        ]
        runs[name] = [run for run in own if run.peak_effective_lr >= TOO_SLOW]
    return runs


def find_bracket(runs: Sequence[RealRun]) -> Cliff:
    """The bracket from the lowest to the highest threshold with the fewest errors."""
    peaks = sorted({run.peak_effective_lr for run in runs})
    edges = [0.0, *peaks, math.inf]
    errors = [sum((run.peak_effective_lr > low) is not run.did_not_learn for run in runs) for low in edges[:-1]]
    best = [place for place, count in enumerate(errors) if count == min(errors)]
    return Cliff(edges[best[0]], edges[best[-1] + 1], min(errors), len(runs))


# --- tables --------------------------------------------------------------------------------------


def shape_table(predictions: Sequence[Prediction]) -> Iterator[str]:
    """One row per shape: its cliff, each seed's prediction, and the factor by which that is outside of the bracket."""
    yield "| shape | cliff of real runs | wrong | predicted, seeds 0 and 1 | outside by | the constant |"
    yield "|---|---|---|---|---|---|"
    for shape in SHAPES:
        cliff = find_bracket(all_runs()[shape.name])
        own = [run for run in predictions if run.shape == shape.name]
        bracket = f"{format_rate(cliff.low, 2)} to {format_rate(cliff.high, 2)}"
        bracket = bracket if math.isfinite(cliff.high) else f"above {format_rate(cliff.low, 2)}"
        misses = ", ".join(f"{outside(run):.2f}" for run in own)
        name = shape.name + (" (calibration)" if shape.calibration else "")
        rates = ", ".join(map(_describe, own))
        yield (
            f"| {name} | {bracket} | {cliff.wrong} of {cliff.runs} | {rates} | {misses} | {cliff.miss(CONSTANT):.2f} |"
        )


def predicted(run: Prediction) -> float:
    """The predicted cliff; if gradients never vanished, a lower bound."""
    return (HIGHEST if math.isnan(run.broke_at) else run.broke_at) / OVERSHOOT


def outside(run: Prediction) -> float:
    """The factor by which a prediction is outside of its shape's bracket; 1 for a lower bound below its upper end."""
    cliff = find_bracket(all_runs()[run.shape])
    return max(predicted(run) / cliff.high, 1.0) if math.isnan(run.broke_at) else cliff.miss(predicted(run))


def _describe(run: Prediction) -> str:
    return ("above " if math.isnan(run.broke_at) else "") + format_rate(predicted(run), 2)


def score(name: str, cliffs: Iterable[tuple[str, float, float]]) -> str:
    """A row: how often a rate is close to the bracket, and the share of real runs on its wrong side, mean over shapes.

    cliffs: shape, rate, and the factor by which it is outside of the bracket.
    """
    shapes, rates, misses = zip(*cliffs, strict=True)
    wrong = [
        statistics.fmean((run.peak_effective_lr > rate) is not run.did_not_learn for run in all_runs()[shape])
        for shape, rate in zip(shapes, rates, strict=True)
    ]
    close = sum(miss <= CLOSE for miss in misses)
    typical = statistics.geometric_mean(misses)
    return f"| {name} | {close} of {len(misses)} | {typical:.2f} | {100 * statistics.fmean(wrong):.0f} % |"


def score_table(predictions: Sequence[Prediction]) -> Iterator[str]:
    """Scores of prediction and constants, for shapes not used in calibration, the shapes added last, and all shapes."""
    yield f"| | within {CLOSE} of the bracket | outside by, mean | runs on the wrong side |"
    yield "|---|---|---|---|"
    new = {shape.name for shape in SHAPES if not shape.calibration}
    for part, chosen in (
        ("not calibrated on", new),
        ("not calibrated on, without pre-LN", new - {NO_CLIFF}),
        ("added last", {shape.name for shape in SHAPES[-ADDED_LAST:]}),
        ("all", set(all_runs())),
    ):
        for seed in SEEDS:
            own = [run for run in predictions if run.seed == seed and run.shape in chosen]
            yield score(f"predicted, seed {seed}, {part}", [(run.shape, predicted(run), outside(run)) for run in own])
        for rate in (CONSTANT, calibrated_constant()):
            constant = [(name, rate, find_bracket(all_runs()[name]).miss(rate)) for name in sorted(chosen)]
            yield score(f"{format_rate(rate, 2)} for every shape, {part}", constant)


def distance_table(predictions: Sequence[Prediction]) -> Iterator[str]:
    """Outcomes of real runs by the ratio of their peak to the predicted cliff, or to the constant."""
    yield "| peak over the cliff | predicted: did not learn | constant: did not learn |\n|---|---|---|"
    edges = (0.0, 0.5, 1.0, 2.0, math.inf)
    for low, high in itertools.pairwise(edges):
        cells = []
        for rate in (predicted, lambda _: CONSTANT):
            ends = [
                real.did_not_learn
                for run in predictions
                for real in all_runs()[run.shape]
                if low <= real.peak_effective_lr / rate(run) < high
            ]
            cells.append(f"{sum(ends)} of {len(ends)}")
        yield f"| {low:g} to {high:g} | {' | '.join(cells)} |"


def calibrated_constant() -> float:
    """The best constant according to the calibration shapes: the median of the middles of their brackets."""
    return statistics.median(find_bracket(all_runs()[shape.name]).middle for shape in SHAPES if shape.calibration)


def calibrate(predictions: Sequence[Prediction]) -> float:
    """OVERSHOOT according to the calibration shapes."""
    ratios = []
    for shape in SHAPES:
        if shape.calibration:
            broke = [run.broke_at for run in predictions if run.shape == shape.name]
            ratios.append(statistics.geometric_mean(broke) / find_bracket(all_runs()[shape.name]).middle)
    return statistics.median(ratios)


# --- the runs ------------------------------------------------------------------------------------

Row = TypeVar("Row", RealRun, Prediction)


def read(path: Path, row: type[Row]) -> list[Row]:
    """The rows of a stored table; none if there is no file."""
    if not path.exists():
        return []
    parsers: dict[object, Callable[[str], object]] = {str: str, int: int, float: float, bool: "True".__eq__}
    with path.open(newline="") as file:
        return [
            row(**{field.name: parsers[field.type](values[field.name]) for field in fields(row)})  # type: ignore[arg-type]
            for values in csv.DictReader(file)
        ]


def others(rows: Sequence[Row], shapes: Sequence[Shape]) -> list[Row]:
    """The rows that are not of these shapes."""
    names = {shape.name for shape in shapes}
    return [row for row in rows if row.shape not in names]


def write(path: Path, rows: Sequence[RealRun] | Sequence[Prediction]) -> None:
    """Replace a stored table."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in fields(rows[0])], lineterminator="\n")
        table.writeheader()
        table.writerows(map(asdict, rows))


def predict(shape: Shape, seed: int) -> Prediction:
    """Train a run with a rising rate."""
    config = compose_config(["experiment=quickstart", *shape.overrides.split(), "device=cpu", f"seed={seed}"])
    outcome = find_cliff(config, LOWEST, HIGHEST)
    broke_at = float(f"{outcome.last_rate:.4g}") if outcome.failed else math.nan
    return Prediction(shape.name, seed, broke_at, outcome.steps)


def train(shape: Shape, lr: float) -> RealRun:
    """Train a real run until it ends or is called doomed."""
    overrides = ["device=cpu", "seed=0", "schedule.warmup_frac=0.1", "optimizer.bias_correction=true"]
    overrides += [f"optimizer.lr={lr:g}", "monitor.figures=false", "monitor.every=10", "monitor.on_doomed=stop"]
    with tempfile.TemporaryDirectory() as folder:
        config = compose_config(["experiment=quickstart", *shape.overrides.split(), *overrides])
        result = run_training(config, Path(folder), name=shape.name)
    return RealRun(shape.name, 0, lr, bool(result.did_not_learn))


def main(arguments: Sequence[str]) -> None:
    """See the module's docstring."""
    match list(arguments):
        case []:
            predictions = read(PREDICTIONS, Prediction)
            for table in (shape_table, score_table, distance_table):
                print("\n".join(table(predictions)), end="\n\n")
            print(f"OVERSHOOT, by the calibration shapes: {calibrate(predictions):.2f}")
        case ["predict"]:
            shapes = [
                shape for shape in SHAPES if "model.name=minilm" not in shape.overrides or Path("minilm").exists()
            ]
            new = [predict(shape, seed) for seed in SEEDS for shape in shapes]
            write(PREDICTIONS, [*new, *others(read(PREDICTIONS, Prediction), shapes)])
        case ["train"]:
            shapes = [shape for shape in SHAPES if shape.rates]
            runs = [train(shape, lr) for shape in shapes for lr in shape.rates]
            write(REAL_RUNS, [*runs, *others(read(REAL_RUNS, RealRun), shapes)])
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    main(sys.argv[1:])
