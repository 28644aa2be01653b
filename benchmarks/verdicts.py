"""How often the verdicts are right, and how early: scored on labelled runs, in seconds, without training.

    python benchmarks/verdicts.py                    the table, from the stored histories
    python benchmarks/verdicts.py pack FOLDER        store the histories that verdict_grid.py left in FOLDER
    python benchmarks/verdicts.py misses             the runs that the rules get wrong, one a line
    python benchmarks/verdicts.py picture FILE       signals and flags of the held-out runs, drawn

The label is the end of the full run alone: a test accuracy within the 99 % interval of the majority class (binomial,
two-sided) has failed, one at least 20 points above it has learned, the others are listed and left out. Thresholds were
set on the calibration part, settings 0 to 136 with seed 0; everything else is only scored.
"""

import io
import json
import lzma
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import binom

from bertmon import optimizer, schedule
from bertmon.compare.plots import to_png
from bertmon.config import OptimizerConfig, VerdictThresholds
from bertmon.monitor.diagnosis import Diagnosis, diagnose
from bertmon.monitor.history import STATISTICS, History, RunPlan, Snapshot, WeightTable

STORE = Path(__file__).parent / "results" / "verdict_histories.npz.xz"
ADVICE = STORE.with_name("verdict_advice.json")
KEPT = ("grad_mean", "update_ratio", "weight_rms")
CALIBRATION_SETTINGS = 137
BLIND_FROM = 197  # no rule was changed after these were scored
PLATEAU = 0.25  # a run whose loss first falls after this share of its steps learned late


@dataclass(frozen=True)
class Run:
    """A labelled run."""

    setting: int
    seed: int
    overrides: str
    accuracy: float
    majority: float
    test_texts: int
    recorded: str | None  # the verdict that the run itself ended with, where it had one
    history: History

    @property
    def label(self) -> str:
        return label(self.accuracy, self.majority, self.test_texts)

    @property
    def calibration(self) -> bool:
        return self.setting < CALIBRATION_SETTINGS and self.seed == 0

    @property
    def learned_at(self) -> float:
        """Share of the steps after which the smoothed loss first fell below 0.95 of chance; inf where it never did."""
        smoothed, window = _smoothed(self.history)
        below = np.flatnonzero(smoothed < 0.95 * self.history.plan.chance_loss)
        return float((below[0] + window) / len(self.history.plan)) if len(below) else np.inf


def label(accuracy: float, majority: float, test_texts: int) -> str:
    low, high = binom.interval(0.99, test_texts, majority)
    if low <= accuracy * test_texts <= high:
        return "failed"
    return "learned" if accuracy >= majority + 0.2 else "between"


# --- the store -----------------------------------------------------------------------------------


def read_folder(folder: Path) -> Iterator[Run]:
    for path in sorted(folder.glob("*/seed=?/history.npz")):
        result = json.loads(path.with_name("result.json").read_text())
        yield Run(
            setting=int(path.parent.parent.name),
            seed=result["seed"],
            overrides=" ".join(path.with_name("overrides.txt").read_text().split()),
            accuracy=result["metrics"]["final"]["accuracy"],
            majority=result["data"]["majority"],
            test_texts=result["data"]["test_texts"],
            recorded=result.get("verdict"),
            history=History.load(path),
        )


def read_advice(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*/result.json")):
        result = json.loads(path.read_text())
        setting, verdict, advice = path.parent.name.split(",")
        yield {
            "setting": int(setting),
            "verdict": verdict,
            "advice": advice,
            "accuracy": result["metrics"]["final"]["accuracy"],
            "majority": result["data"]["majority"],
            "test_texts": result["data"]["test_texts"],
        }


def pack(runs: list[Run]) -> None:
    """Logarithms in sixteenths of a factor of two, losses in 1e-4; what the rules do not use is left out."""
    kept = [STATISTICS.index(name) for name in KEPT]
    arrays: dict[str, npt.NDArray[Any]] = {}
    about = []
    for number, run in enumerate(runs):
        history, plan = run.history, run.history.plan
        layers = history.snapshots[0].layers
        values = np.stack([shot.values[:, kept] for shot in history.snapshots])
        arrays[f"values{number}"] = _coarse(values).transpose(2, 1, 0)  # neighbours in time lie side by side
        arrays[f"spread{number}"] = _coarse(np.array([shot.logit_std for shot in history.snapshots]))
        arrays[f"loss{number}"] = np.round(1e4 * np.nan_to_num(history.losses, nan=1e5)).astype(np.int32)
        arrays[f"norm{number}"] = _coarse(np.array(history.grad_norms))
        about.append(
            {name: getattr(run, name) for name in Run.__annotations__ if name != "history"}
            | {"steps": [shot.step for shot in history.snapshots], "total": len(plan), "peak": float(plan.lr.max())}
            | {"warmup_frac": plan.warmup_frac, "bias_correction": plan.bias_correction, "chance": plan.chance_loss}
            | {"labels": layers.labels, "kinds": layers.kinds, "depths": layers.depths}
        )
    file = io.BytesIO()
    np.savez(file, about=np.array(json.dumps(about)), **arrays)
    STORE.write_bytes(lzma.compress(file.getvalue(), preset=9))


def unpack() -> list[Run]:
    runs = []
    with np.load(io.BytesIO(lzma.decompress(STORE.read_bytes())), allow_pickle=False) as stored:
        for number, about in enumerate(json.loads(str(stored["about"]))):
            plan = _plan(about)
            layers = WeightTable(*(tuple(about[key]) for key in ("labels", "kinds", "depths")))
            kept = _fine(stored[f"values{number}"].transpose(2, 1, 0))
            values = np.full((*kept.shape[:2], len(STATISTICS)), np.nan)
            values[:, :, [STATISTICS.index(name) for name in KEPT]] = kept
            shots = [
                Snapshot(step, plan.lr[step], plan.effective_lr[step], spread, layers, value)
                for step, spread, value in zip(about["steps"], _fine(stored[f"spread{number}"]), values, strict=True)
            ]
            losses = (stored[f"loss{number}"] / 1e4).tolist()
            history = History(plan, losses, _fine(stored[f"norm{number}"]).tolist(), shots)
            runs.append(
                Run(**{name: about[name] for name in Run.__annotations__ if name != "history"}, history=history)
            )
    return runs


def _plan(about: dict[str, Any]) -> RunPlan:
    """All stored runs have the linear schedule and the default betas."""
    total, config = about["total"], OptimizerConfig(bias_correction=about["bias_correction"])
    factors = [
        schedule.lr_factor(step, shape="linear", warmup_frac=about["warmup_frac"], total_steps=total)
        for step in range(total)
    ]
    lr = about["peak"] * np.array(factors)
    effective = lr * np.array([optimizer.bias_correction_gain(config, step) for step in range(total)])
    return RunPlan(lr, effective, about["chance"], about["warmup_frac"], about["bias_correction"])


_ZERO, _NAN, _INFINITE = -32768, -32767, 32767


def _coarse(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int16]:
    with np.errstate(divide="ignore", invalid="ignore"):
        sixteenths = np.round(16 * np.log2(values))
    coarse = np.where(np.isnan(values), _NAN, np.where(values == 0, _ZERO, np.minimum(sixteenths, _INFINITE)))
    return coarse.astype(np.int16)


def _fine(coarse: npt.NDArray[np.int16]) -> npt.NDArray[np.float64]:
    values = 2 ** (coarse / 16)
    return np.select([coarse == _ZERO, coarse == _NAN, coarse == _INFINITE], [0.0, np.nan, np.inf], values)


# --- the rules -----------------------------------------------------------------------------------

Rule = Callable[[Run, int], int | None]
"""The step at which a run is first called doomed, None if never; the number is the steps between two snapshots."""


def bertmon_rules(run: Run, every: int) -> int | None:
    return next((step for step, said in verdicts(run.history, every) if said.verdict.doomed), None)


def verdicts(history: History, every: int) -> Iterator[tuple[int, Diagnosis]]:
    """What `diagnose` says after each snapshot, at the cadence asked for."""
    said = None
    shots = [shot for shot in history.snapshots if shot.step % every == 0]
    for number, shot in enumerate(shots, start=1):
        done = shot.step + 1
        so_far = History(history.plan, history.losses[:done], history.grad_norms[:done], shots[:number])
        said = diagnose(so_far, VerdictThresholds(), said)
        yield shot.step, said


def loss_rule(window: float) -> Rule:
    """The smoothed loss is no lower than it was `window` of the whole run before."""

    def rule(run: Run, every: int) -> int | None:
        smoothed, width = _smoothed(run.history)
        back = max(1, round(window * len(run.history.plan)))
        flat = np.flatnonzero(smoothed[back:] >= smoothed[:-back])
        return int(flat[0]) + back + width - 1 if len(flat) else None

    return rule


def chance_rule(share: float) -> Rule:
    """The smoothed loss has never been below 0.95 of chance when `share` of the run has passed."""

    def rule(run: Run, every: int) -> int | None:
        return None if run.learned_at <= share else math.ceil(share * len(run.history.plan))

    return rule


def vanishing_gradient(run: Run, every: int) -> int | None:
    """SageMaker Debugger: the mean |gradient| of any tensor is below 1e-7."""
    return _first(run, every, lambda shot: bool((shot["grad_mean"] < 1e-7).any()))


def weight_update_ratio(run: Run, every: int) -> int | None:
    """SageMaker Debugger: the update of any tensor is more than 10 or less than 1e-8 of it."""
    return _first(run, every, lambda shot: bool(((shot["update_ratio"] > 10) | (shot["update_ratio"] < 1e-8)).any()))


def loss_not_decreasing(run: Run, every: int) -> int | None:
    """SageMaker Debugger: over 10 steps the loss has fallen by less than 0.1 %."""
    losses = np.array(run.history.losses)
    flat = np.flatnonzero(losses[10:] > losses[:-10] * (1 - 0.001))
    return int(flat[0]) + 10 if len(flat) else None


def thousandth(run: Run, every: int) -> int | None:
    """The article's bare rule of thumb: the middle matrix's update ratio is not within a factor of 10 of 1e-3."""

    def off(shot: Snapshot) -> bool:
        linear = [kind == "linear" for kind in shot.layers.kinds]
        return not 1e-4 <= np.median(shot["update_ratio"][linear]) <= 1e-2

    return _first(run, every, off)


def _first(run: Run, every: int, holds: Callable[[Snapshot], bool]) -> int | None:
    return next((shot.step for shot in run.history.snapshots if shot.step % every == 0 and holds(shot)), None)


def _smoothed(history: History) -> tuple[npt.NDArray[np.float64], int]:
    window = max(20, len(history.plan) // 20)
    return np.convolve(history.losses, np.full(window, 1 / window), "valid"), window


# --- the table -----------------------------------------------------------------------------------

RULES: dict[str, Rule] = {
    "bertmon": bertmon_rules,
    "loss no lower than 5 % of the run before": loss_rule(0.05),
    "loss no lower than 10 % of the run before": loss_rule(0.1),
    "loss no lower than 20 % of the run before": loss_rule(0.2),
    "loss still at chance after 30 % of the run": chance_rule(0.3),
    "loss still at chance after 60 % of the run": chance_rule(0.6),
    "SageMaker VanishingGradient": vanishing_gradient,
    "SageMaker WeightUpdateRatio": weight_update_ratio,
    "SageMaker LossNotDecreasing": loss_not_decreasing,
    "update ratio within a factor of 10 of 1e-3": thousandth,
}


def table(runs: list[Run], every: int) -> None:
    """A row a rule. A lead is how many steps before the rule bertmon flags the same run."""
    failed = [run for run in runs if run.label == "failed"]
    learned = [run for run in runs if run.label == "learned"]
    between = [run for run in runs if run.label == "between"]
    ours = [bertmon_rules(run, every) for run in failed]
    print("| rule | failed runs flagged | learned runs flagged | between | median flag | median lead, steps |")
    print("|---|---|---|---|---|---|")
    for name, rule in RULES.items():
        steps = [rule(run, every) for run in failed]
        flags = [step / len(run.history.plan) for step, run in zip(steps, failed, strict=True) if step is not None]
        leads = [step - own for step, own in zip(steps, ours, strict=True) if step is not None and own is not None]
        alarms = sum(rule(run, every) is not None for run in learned)
        print(
            f"| {name} | {_share(len(flags), len(failed))} | {_share(alarms, len(learned))} "
            f"| {sum(rule(run, every) is not None for run in between)} of {len(between)} "
            f"| {f'{np.median(flags):.1%}' if flags else ''} "
            f"| {f'{np.median(leads):+.0f}' if leads and rule is not bertmon_rules else ''} |"
        )


def _share(count: int, total: int) -> str:
    return f"{count} of {total} ({count / total:.1%})" if total else "none"


def advice_table() -> None:
    """What became of failed runs that were trained once more as their verdict advised."""
    tried: dict[tuple[str, str], list[str]] = {}
    for run in json.loads(ADVICE.read_text()):
        outcome = label(run["accuracy"], run["majority"], run["test_texts"])
        tried.setdefault((run["verdict"], run["advice"].split("=")[0]), []).append(outcome)
    print("| verdict | advice | tried | learned | between | failed |")
    print("|---|---|---|---|---|---|")
    for (verdict, key), outcomes in sorted(tried.items()):
        counts = " | ".join(str(outcomes.count(outcome)) for outcome in ("learned", "between", "failed"))
        print(f"| {verdict} | `{key}` | {len(outcomes)} | {counts} |")


def picture(runs: list[Run], path: Path) -> None:
    """Left: the spread of the logits over the run. Right: how many failed runs have been flagged by when."""
    figure = Figure(figsize=(10.5, 4), dpi=100)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    colours = {"learned": "#0072B2", "failed": "#D55E00"}
    for name in ("learned", "failed"):
        for run in runs:
            if run.label == name:
                shots = run.history.snapshots
                at = [100 * shot.step / len(run.history.plan) for shot in shots]
                left.plot(at, [shot.logit_std for shot in shots], color=colours[name], linewidth=0.7, alpha=0.45)
    left.axhline(VerdictThresholds().min_logit_std, color="#222222", linewidth=1, linestyle=(0, (4, 3)))
    left.set(
        yscale="log", ylim=(1e-10, 10), xlim=(0, 100), xlabel="steps [% of the run]", ylabel="spread of the logits"
    )
    lines = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    lines.append(Line2D([], [], color="#222222", linewidth=1, linestyle=(0, (4, 3)), label="threshold"))
    left.legend(handles=lines, loc="lower right", fontsize=8.5, frameon=False, ncols=3)
    left.set_title("What the logits say", fontsize=11, loc="left")

    failed = [run for run in runs if run.label == "failed"]
    shown = {
        "bertmon, every 10 steps": (bertmon_rules, 10, "#0072B2", "-"),
        "bertmon, every 30 steps": (bertmon_rules, 30, "#56B4E9", "-"),
        "SageMaker VanishingGradient": (vanishing_gradient, 10, "#E69F00", "--"),
        "loss still at chance after 60 %": (chance_rule(0.6), 10, "#777777", "-."),
    }
    for name, (rule, every, colour, style) in shown.items():
        flags = sorted(100 * step / len(run.history.plan) for run in failed if (step := rule(run, every)) is not None)
        heights = 100 * np.arange(len(flags) + 1) / len(failed)
        alarms = np.mean([rule(run, every) is not None for run in runs if run.label == "learned"])
        text = f"{name} ({alarms:.0%} false alarms)"
        right.step([0, *flags, 100], [*heights, heights[-1]], where="post", color=colour, linestyle=style, label=text)
    right.set(xlim=(0, 100), ylim=(0, 103), xlabel="steps [% of the run]", ylabel="failed runs flagged [%]")
    right.legend(loc="lower right", fontsize=8.5, facecolor="white", edgecolor="none", framealpha=1)
    right.set_title("When it is known", fontsize=11, loc="left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#D5D7DB", linewidth=0.5)
        axes.set_axisbelow(True)
    figure.tight_layout(w_pad=2.5)
    path.write_bytes(to_png(figure))


def misses(runs: list[Run], every: int) -> None:
    for run in runs:
        flag = bertmon_rules(run, every)
        wrong = (run.label == "failed" and flag is None) or (run.label == "learned" and flag is not None)
        if wrong:
            print(f"{run.setting}/{run.seed} {run.label} {run.accuracy:.1%}, flagged at {flag}: {run.overrides}")


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["pack"]:
        folder = Path(arguments[1])
        pack(list(read_folder(folder)))
        ADVICE.write_text(json.dumps(list(read_advice(folder / "advice")), indent=1) + "\n")
        return
    runs = unpack()
    if arguments == ["misses"]:
        misses(runs, every=30)
        return
    if arguments[:1] == ["picture"]:
        picture([run for run in runs if not run.calibration], Path(arguments[1]))
        return
    late = sum(run.label == "learned" and run.learned_at > PLATEAU for run in runs)
    counts = {label: sum(run.label == label for run in runs) for label in ("failed", "learned", "between")}
    print(f"{len(runs)} runs: {counts}; {late} learned after a plateau of more than {PLATEAU:.0%} of the steps\n")
    parts = {
        "calibration": [run for run in runs if run.calibration],
        "held out": [run for run in runs if not run.calibration],
        "held out, new seed of known settings": [
            run for run in runs if run.setting < CALIBRATION_SETTINGS and run.seed
        ],
        "held out, settings 137 to 196": [run for run in runs if CALIBRATION_SETTINGS <= run.setting < BLIND_FROM],
        "held out, settings 197 to 236": [run for run in runs if run.setting >= BLIND_FROM],
    }
    for every in (30, 10):
        for name, part in parts.items():
            print(f"\n{name}, a snapshot every {every} steps\n")
            table(part, every)
    print("\nFailed runs of seed 0, trained again as advised\n")
    advice_table()


if __name__ == "__main__":
    main(sys.argv[1:])
