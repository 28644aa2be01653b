"""The labeled runs that verdicts are scored on, and the file that holds their histories.

    python benchmarks/labeled_runs.py pack FOLDER    store the histories that verdict_grid.py wrote to FOLDER

Shapes: K watched steps, L layers, S statistics. Only what the rules use is stored, in reduced precision: 16 logarithmic
steps per factor of two, losses in units of 1e-4. tests/benchmarks/test_labeled_runs.py compares the verdicts.
"""

import functools
import io
import json
import lzma
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bertmon import optimizer, schedule
from bertmon.config import OptimizerConfig
from bertmon.metrics import EvalResult, did_not_learn, precision_recall
from bertmon.monitor.history import HISTORY_FILE, STATISTICS, FloatArray, History, RunPlan, Snapshot, WeightTable
from bertmon.result import RunResult

STORE = Path(__file__).parent / "results" / "verdict_histories.npz.xz"
PRETRAINED_STORE = STORE.with_name("pretrained_histories.npz.xz")
BASE_STORE = STORE.with_name("bert_base_histories.npz.xz")
ADVICE = STORE.with_name("verdict_advice.json")
STORED_STATISTICS = [STATISTICS.index(name) for name in ("grad_mean", "update_ratio", "weight_rms")]
CALIBRATION_SETTINGS = 137
BLIND_FROM = 197  # no rule was changed after these settings were scored
PRETRAINED_FROM = 1000  # settings of pretrained_grid.py from here on are MiniLM's
WIDE_FROM = 2000  # and from here on those of wide models
BASE_FROM = 3000  # and from here on those of bert_base.py
_BASE = "experiment=article data.max_length=64 schedule.warmup_frac={} optimizer.bias_correction=false optimizer.lr={}"
CALIBRATION_BASE = {
    (_BASE.format(0.1, "3e-5"), 0),
    (_BASE.format(0.1, "3e-5"), 1),
    (_BASE.format(0.7, "3e-5"), 0),
    (_BASE.format(0.1, "2.25e-5"), 0),
}
"""Overrides and seed of the runs that prompted changes of rules."""
MAX_MAJORITY = 0.8  # above it, an accuracy 20 points above the majority class is impossible
PLATEAU = 0.25  # a run whose loss first falls after this share of its steps learned late


class Label(StrEnum):
    """The outcome of a run that was trained to the end."""

    did_not_learn = "did not learn"
    learned = "learned"
    between = "between"  # left out of the score


class Family(StrEnum):
    """The kind of model that was trained."""

    small = "small, random weights"
    pretrained = "pretrained MiniLM"
    wide = "wide, random weights"
    base = "BERT-base, random weights"


def label(
    accuracy: float,
    majority_share: float,
    test_texts: int,
    guesses: bool | None = None,
    recall_above_chance: float | None = None,
) -> Label:
    """The label by the final test accuracy alone; a run at least 20 points above the majority class has learned.

    guesses: RunResult.did_not_learn, which also uses the confusion matrix if it was recorded. recall_above_chance: mean
    recall over the classes minus that of guessing; it replaces the accuracy if the majority class has more than 80 % of
    the texts.
    """
    if guesses is None:
        guesses = did_not_learn(EvalResult(0, math.nan, accuracy), majority_share, test_texts)
    if guesses:
        return Label.did_not_learn
    if majority_share > MAX_MAJORITY and recall_above_chance is not None:
        learned = recall_above_chance >= 0.2
    else:
        learned = accuracy >= majority_share + 0.2
    return Label.learned if learned else Label.between


@dataclass(frozen=True)
class LabeledRun:
    """A run of the study, with its history and outcome."""

    setting: int
    seed: int
    overrides: str
    accuracy: float
    majority_share: float
    test_texts: int
    recorded: str | None  # the final verdict of the run itself, if it had one
    history: History
    guesses: bool | None = None  # RunResult.did_not_learn; None for runs of version 0.1
    recall_above_chance: float | None = None  # mean recall over classes minus 1 / classes; likewise
    evaluations: tuple[tuple[int, float], ...] = ()  # updates done and test accuracy; empty for older runs

    @property
    def label(self) -> Label:
        return label(self.accuracy, self.majority_share, self.test_texts, self.guesses, self.recall_above_chance)

    @property
    def family(self) -> Family:
        if self.setting < PRETRAINED_FROM:
            return Family.small
        if self.setting >= BASE_FROM:
            return Family.base
        return Family.pretrained if self.setting < WIDE_FROM else Family.wide

    @property
    def complete(self) -> bool:
        """Whether the run was trained to the end rather than stopped."""
        return len(self.history.losses) == len(self.history.plan)

    @property
    def calibration(self) -> bool:
        """Whether thresholds were set on this run; all others are held out."""
        if self.family is Family.small:
            return self.setting < CALIBRATION_SETTINGS and self.seed == 0
        if self.family is Family.base:
            return (self.overrides, self.seed) in CALIBRATION_BASE
        return not self.blind

    @property
    def blind(self) -> bool:
        """Whether no rule or threshold was changed because of the run."""
        if self.family is Family.base:
            return not self.calibration
        return self.setting >= BLIND_FROM if self.family is Family.small else self.setting % 1000 % 3 == 2

    @property
    def logits_shrank(self) -> bool:
        """Whether the logits spread less at the end (median of the last three snapshots) than at step 0.

        If they spread more in a run that did not learn, it had too few steps for its rate or for its rare classes.
        """
        spreads = [shot.logit_std for shot in self.history.snapshots if not math.isnan(shot.logit_std)]
        return bool(np.median(spreads[-3:]) < spreads[0])

    @property
    def task(self) -> str:
        """The data source; losses are comparable between runs of the same task."""
        overrides = dict(override.split("=", 1) for override in self.overrides.split())
        return overrides.get("data", "docstrings")

    @property
    def learned_at(self) -> float:
        """Share of the steps after which the smoothed loss first fell below 0.95 of chance; inf if it never did."""
        smoothed, window = smooth_loss(self.history)
        below = np.flatnonzero(smoothed < 0.95 * self.history.plan.chance_loss)
        return float((below[0] + window) / len(self.history.plan)) if len(below) else np.inf

    @property
    def plateau(self) -> float:
        """Share of the steps before the window behind `learned_at`; inf if the loss stayed at chance."""
        _, window = smooth_loss(self.history)
        return self.learned_at - window / len(self.history.plan)


def smooth_loss(history: History) -> tuple[FloatArray, int]:
    """The mean loss of every window of steps (a twentieth of the run, at least 20), and the window's length."""
    window = max(20, len(history.plan) // 20)
    return np.convolve(history.losses, np.full(window, 1 / window), "valid"), window


# --- folders of runs -----------------------------------------------------------------------------


def read_folder(folder: Path) -> Iterator[LabeledRun]:
    """The runs in a folder of verdict_grid.py; those that have not ended are skipped."""
    for path in sorted(folder.glob(f"*/seed=?/{HISTORY_FILE}")):
        overrides = path.with_name("overrides.txt").read_text().split()
        run = read_run(path.parent, int(path.parent.parent.name), overrides)
        if run is not None:
            yield run


def read_run(run_dir: Path, setting: int, overrides: Sequence[str]) -> LabeledRun | None:
    """The run in a folder; None if it has not ended."""
    result = RunResult.read_ended(run_dir)
    if result is None:
        return None
    assert result.final is not None
    assert result.data is not None
    assert result.seed is not None
    confusion = result.final.confusion
    return LabeledRun(
        setting=setting,
        seed=result.seed,
        overrides=" ".join(overrides),
        accuracy=result.final.accuracy,
        majority_share=result.data.majority_share,
        test_texts=result.data.test_texts,
        recorded=result.diagnosis.verdict if result.diagnosis else None,
        history=History.load(run_dir / HISTORY_FILE),
        guesses=result.did_not_learn,
        recall_above_chance=None if confusion is None else _recall_above_chance(np.array(confusion)),
        evaluations=tuple((each.step, each.accuracy) for each in result.evaluations),
    )


def _recall_above_chance(confusion: npt.NDArray[np.int64]) -> float:
    """Mean recall over the classes minus that of guessing, 1 / classes."""
    return float(precision_recall(confusion)[1].mean() - 1 / len(confusion))


def read_advice(folder: Path) -> Iterator[dict[str, Any]]:
    """The runs that were trained again as advised, in the format of verdict_advice.json."""
    for path in sorted(folder.glob("*/result.json")):
        result = RunResult.read_ended(path.parent)
        if result is None:
            continue
        assert result.final is not None
        assert result.data is not None
        setting, verdict, advice = path.parent.name.split(",")
        yield {
            "setting": int(setting),
            "verdict": verdict,
            "advice": advice,
            "accuracy": result.final.accuracy,
            "majority": result.data.majority_share,
            "test_texts": result.data.test_texts,
        }


# --- the store -----------------------------------------------------------------------------------

_STORED_NAMES = {name: name for name in LabeledRun.__annotations__ if name != "history"} | {
    "majority_share": "majority"
}
"""Fields of LabeledRun and their names in the file."""


def pack(runs: list[LabeledRun], store: Path = STORE) -> None:
    """Write the runs to one compressed file."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    metadata = []
    for number, run in enumerate(runs):
        history, plan = run.history, run.history.plan
        layers = history.snapshots[0].layers
        values = np.stack([shot.values[:, STORED_STATISTICS] for shot in history.snapshots])
        arrays[f"values{number}"] = _quantize(values).transpose(2, 1, 0)  # compresses best with time last
        arrays[f"spread{number}"] = _quantize(np.array([shot.logit_std for shot in history.snapshots]))
        arrays[f"loss{number}"] = _quantize_losses(np.array(history.losses))
        arrays[f"norm{number}"] = _quantize(np.array(history.grad_norms))
        metadata.append(
            {stored: getattr(run, name) for name, stored in _STORED_NAMES.items()}
            | {"steps": [shot.step for shot in history.snapshots], "total": len(plan), "peak": float(plan.lr.max())}
            | {"warmup_frac": plan.warmup_frac, "bias_correction": plan.bias_correction, "chance": plan.chance_loss}
            | {"labels": layers.labels, "kinds": layers.kinds, "depths": layers.depths, "lr_scales": layers.lr_scales}
        )
    file = io.BytesIO()
    np.savez(file, about=np.array(json.dumps(metadata)), **arrays)
    store.write_bytes(lzma.compress(file.getvalue(), preset=9))
    _unpack.cache_clear()


def unpack(store: Path = STORE) -> list[LabeledRun]:
    """The runs of the study, without duplicates; a process reads each file once."""
    return list(_unpack(store))


@functools.cache
def _unpack(store: Path) -> tuple[LabeledRun, ...]:
    with np.load(io.BytesIO(lzma.decompress(store.read_bytes())), allow_pickle=False) as stored:
        metadata = json.loads(str(stored["about"]))
        return tuple(without_repeats(_unpack_run(stored, number, about) for number, about in enumerate(metadata)))


def without_repeats(runs: Iterable[LabeledRun]) -> list[LabeledRun]:
    """One run per overrides and seed, preferably from the calibration part, because it has been inspected."""
    unique: dict[tuple[str, int | None], LabeledRun] = {}
    for run in runs:
        other = unique.setdefault((_distinct(run.overrides), run.seed), run)
        if run.calibration and not other.calibration:
            unique[_distinct(run.overrides), run.seed] = run
    return sorted(unique.values(), key=lambda run: (run.setting, run.seed))


def _distinct(overrides: str) -> str:
    """The overrides without a key that is at its default and that only later settings have."""
    return " ".join(word for word in overrides.split() if word != "model.frozen_layers=null")


def _unpack_run(stored: Any, number: int, about: dict[str, Any]) -> LabeledRun:
    plan = _plan(about)
    layers = WeightTable(*(tuple(about.get(key, ())) for key in ("labels", "kinds", "depths", "lr_scales")))
    measured = _dequantize(stored[f"values{number}"].transpose(2, 1, 0))
    values = np.full((*measured.shape[:2], len(STATISTICS)), np.nan)  # [K, L, S]
    values[:, :, STORED_STATISTICS] = measured
    spreads = _dequantize(stored[f"spread{number}"])
    snapshots = [
        Snapshot(step, plan.lr[step], plan.effective_lr[step], spread, layers, value)
        for step, spread, value in zip(about["steps"], spreads, values, strict=True)
    ]
    losses = _loss_values(stored[f"loss{number}"]).tolist()
    history = History(plan, losses, _dequantize(stored[f"norm{number}"]).tolist(), snapshots)
    fields = {name: about.get(stored) for name, stored in _STORED_NAMES.items()}
    fields["evaluations"] = tuple(map(tuple, fields["evaluations"] or ()))
    return LabeledRun(**fields, history=history)


def _plan(about: dict[str, Any]) -> RunPlan:
    """The plan of a stored run; all have the linear schedule and the default betas."""
    total, config = about["total"], OptimizerConfig(bias_correction=about["bias_correction"])
    factors = [
        schedule.lr_factor(step, decay="linear", warmup_frac=about["warmup_frac"], total_steps=total)
        for step in range(total)
    ]
    lr = about["peak"] * np.array(factors)
    effective = lr * np.array([optimizer.bias_correction_gain(config, step) for step in range(total)])
    return RunPlan(lr, effective, about["chance"], about["warmup_frac"], about["bias_correction"])


_NAN_LOSS, _INFINITE_LOSS = 10**9, 2**31 - 1


def _quantize_losses(losses: FloatArray) -> npt.NDArray[np.int32]:
    finite = np.minimum(np.round(1e4 * np.nan_to_num(losses, posinf=0.0)), _NAN_LOSS - 1)
    quantized = np.where(np.isnan(losses), _NAN_LOSS, np.where(np.isinf(losses), _INFINITE_LOSS, finite))
    return quantized.astype(np.int32)


def _loss_values(quantized: npt.NDArray[np.int32]) -> FloatArray:
    return np.select([quantized == _NAN_LOSS, quantized == _INFINITE_LOSS], [np.nan, np.inf], quantized / 1e4)


_ZERO, _NAN, _INFINITE = -32768, -32767, 32767


def _quantize(values: FloatArray) -> npt.NDArray[np.int16]:
    with np.errstate(divide="ignore", invalid="ignore"):
        sixteenths = np.round(16 * np.log2(values))
    quantized = np.where(np.isnan(values), _NAN, np.where(values == 0, _ZERO, np.minimum(sixteenths, _INFINITE)))
    return quantized.astype(np.int16)


def _dequantize(quantized: npt.NDArray[np.int16]) -> FloatArray:
    values = 2 ** (quantized / 16)
    return np.select([quantized == _ZERO, quantized == _NAN, quantized == _INFINITE], [0.0, np.nan, np.inf], values)


def main(arguments: list[str]) -> None:
    """See the module's docstring."""
    match arguments:
        case ["pack", folder]:
            pack(list(read_folder(Path(folder))))
            ADVICE.write_text(json.dumps(list(read_advice(Path(folder, "advice"))), indent=1) + "\n")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
