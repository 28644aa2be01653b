"""What a sweep saves and loses with each way of stopping runs early: from stored histories, in a minute.

    python benchmarks/compute_saved.py [calibration | held_out | blind] [sweeps]

Random sweeps of 16 labeled runs are replayed, run by run, in real Optuna studies with Optuna's own pruners. A run
reports the ratio of its smoothed training loss to the chance loss 27 times; verdicts use a snapshot every 30 steps. The
runs of a sweep come from one task, or from both. A pruned run has no accuracy; the best run is lost if it was pruned.

- Ray's ASHAScheduler() has max_t=100, grace_period=1, reduction_factor=4, like SuccessiveHalvingPruner by default.
- W&B's example `early_terminate: {type: hyperband, min_iter: 3}` has brackets at 3, 9 and 27 reports, eta 3.

LearnedPruner's rules were chosen on the calibration part. held_out (the default) contains all other runs, blind those
whose settings were trained after the last change of a rule.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from labeled_runs import BLIND_FROM, LabeledRun, unpack
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, PercentilePruner, SuccessiveHalvingPruner
from verdicts import verdicts

from bertmon.integrations.optuna import BehindPruner, LearnedPruner, trial_attributes
from bertmon.monitor.behind import loss_reduction
from bertmon.monitor.history import History
from bertmon.notation import format_percent

REPORTS = 27
RUNS = 16
EVERY = 30

PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "MedianPruner()": MedianPruner,
    "MedianPruner(n_warmup_steps=5)": lambda: MedianPruner(n_warmup_steps=5),
    "MedianPruner(n_warmup_steps=8)": lambda: MedianPruner(n_warmup_steps=8),
    "MedianPruner(n_warmup_steps=14)": lambda: MedianPruner(n_warmup_steps=14),
    "PercentilePruner(25.0)": lambda: PercentilePruner(25.0),
    "PercentilePruner(75.0)": lambda: PercentilePruner(75.0),
    "SuccessiveHalvingPruner(), as Ray's ASHAScheduler()": SuccessiveHalvingPruner,
    "SuccessiveHalvingPruner(3, 3), as W&B's hyperband": lambda: SuccessiveHalvingPruner(3, 3),
    "SuccessiveHalvingPruner(1, 2)": lambda: SuccessiveHalvingPruner(1, 2),
    "HyperbandPruner()": HyperbandPruner,
}


@dataclass(frozen=True)
class ReplayedRun:
    """A labeled run as a study sees it."""

    task: str
    accuracy: float
    majority_share: float
    steps: tuple[int, ...]  # [REPORTS] steps done at each report; the last one is the end of the run
    values: tuple[float, ...]  # [REPORTS] smoothed loss relative to the chance loss
    attributes: tuple[dict[str, Any], ...]  # [REPORTS] trial attributes reported with them
    flagged_step: int | None


def replay(run: LabeledRun) -> ReplayedRun:
    """The run with its diagnoses and reports."""
    history, done = run.history, len(run.history.losses)
    diagnoses = list(verdicts(history, EVERY))
    steps = [min(done, max(1, round(len(history.plan) * report / REPORTS))) for report in range(1, REPORTS + 1)]
    parts = [History(history.plan, history.losses[:step], history.grad_norms[:step]) for step in steps]
    earlier = [[diagnosis for at, diagnosis in diagnoses if at < step] for step in steps]
    return ReplayedRun(
        run.task,
        run.accuracy,
        run.majority_share,
        tuple(steps),
        tuple(1 - loss_reduction(part) for part in parts),
        tuple(
            trial_attributes(so_far[-1] if so_far else None, part) for so_far, part in zip(earlier, parts, strict=True)
        ),
        next((step for step, diagnosis in diagnoses if diagnosis.verdict.doomed), None),
    )


# --- one sweep ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saved:
    """The outcome of a sweep."""

    steps_share: float  # steps trained, relative to training all runs to the end
    best_lost: bool
    accuracy_lost: float  # of the best run, in [0, 1]


def saved(runs: Sequence[ReplayedRun], steps: Sequence[int]) -> Saved:
    """The outcome of a sweep whose runs were each trained for `steps`."""
    complete = [run for run, done in zip(runs, steps, strict=True) if done == run.steps[-1]]
    best = max(run.accuracy for run in runs)
    achieved = max((run.accuracy for run in complete), default=min(run.majority_share for run in runs))
    return Saved(sum(steps) / sum(run.steps[-1] for run in runs), achieved < best, best - achieved)


def to_the_end(runs: Sequence[ReplayedRun]) -> Saved:
    """The outcome if all runs are trained to the end."""
    return saved(runs, [run.steps[-1] for run in runs])


def doomed_stopped(runs: Sequence[ReplayedRun]) -> Saved:
    """The outcome with monitor.on_doomed=stop."""
    return saved(runs, [run.steps[-1] if run.flagged_step is None else run.flagged_step + 1 for run in runs])


def pruned(runs: Sequence[ReplayedRun], pruner: BasePruner, name: str) -> Saved:
    """The outcome of an Optuna study. HyperbandPruner's brackets depend on its name and on PYTHONHASHSEED."""
    study = optuna.create_study(study_name=name, pruner=pruner, sampler=optuna.samplers.RandomSampler(0))
    return saved(runs, [_run_trial(study, run) for run in runs])


def _run_trial(study: optuna.Study, run: ReplayedRun) -> int:
    """Replay the run as a trial; returns the steps that it was trained for."""
    trial = study.ask()
    for report in range(REPORTS - 1):
        for key, attribute in run.attributes[report].items():
            trial.set_user_attr(key, attribute)
        trial.report(run.values[report], report + 1)
        if trial.should_prune():
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return run.steps[report]
    trial.report(run.values[-1], REPORTS)
    study.tell(trial, run.values[-1])
    return run.steps[-1]


# --- the table ------------------------------------------------------------------------------------

Policy = Callable[[Sequence[ReplayedRun], str], Saved]


def policies() -> Iterator[tuple[str, Policy]]:
    """The rows of the table: a title, and a function from a sweep and its name to the outcome."""
    yield "all runs to the end", lambda runs, name: to_the_end(runs)
    yield "doomed runs stopped (`monitor.on_doomed=stop`)", lambda runs, name: doomed_stopped(runs)
    for title, make in PRUNERS.items():
        yield f"`{title.replace(', as', '`, as')}" + ("" if ", as" in title else "`"), _study(make)
    for title, make in PRUNERS.items():
        yield f"`LearnedPruner({title.split(', as')[0]})`", _study(lambda make=make: LearnedPruner(make()))
    yield "`LearnedPruner(BehindPruner())`", _study(lambda: LearnedPruner(BehindPruner()))


def _study(make: Callable[[], BasePruner]) -> Policy:
    return lambda runs, name: pruned(runs, make(), name)


def draw_sweeps(runs: Sequence[ReplayedRun], count: int, *, one_task: bool) -> Iterator[list[ReplayedRun]]:
    """Random sweeps in random order, the same for every call; tasks are weighted by their number of runs."""
    rng = np.random.default_rng(0)
    pools = [[run for run in runs if run.task == task] for task in sorted({run.task for run in runs})]
    pools = [pool for pool in pools if len(pool) >= RUNS] if one_task else [list(runs)]
    weights = np.array([len(pool) for pool in pools], dtype=float)
    for _ in range(count):
        pool = pools[rng.choice(len(pools), p=weights / weights.sum())]
        yield [pool[index] for index in rng.permutation(len(pool))[:RUNS]]


def print_table(runs: Sequence[ReplayedRun], count: int) -> None:
    """One row per policy; the columns are means over sweeps."""
    sweeps = [list(draw_sweeps(runs, count, one_task=one_task)) for one_task in (True, False)]
    for title, group in zip(("one task", "both"), sweeps, strict=True):
        best = {id(max(sweep, key=lambda run: run.accuracy)) for sweep in group}
        print(f"{title}: {len(best)} different best runs")
    heads = [f"{name}{suffix}" for suffix in (", one task", ", both") for name in ("steps", "best lost", "points lost")]
    print(f"| how a sweep is cut short | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for title, policy in policies():
        columns = []
        for group in sweeps:
            results = [policy(sweep, f"sweep {number}") for number, sweep in enumerate(group)]
            columns.append(f"{np.mean([result.steps_share for result in results]):.2f}")
            columns.append(format_percent(float(np.mean([result.best_lost for result in results]))))
            columns.append(f"{100 * np.mean([result.accuracy_lost for result in results]):.2f}")
        print(f"| {title} | {' | '.join(columns)} |", flush=True)


PARTS: dict[str, Callable[[LabeledRun], bool]] = {
    "calibration": lambda run: run.calibration,
    "held_out": lambda run: not run.calibration,
    "blind": lambda run: run.setting >= BLIND_FROM,
}


def main(arguments: Sequence[str]) -> None:
    """See the module's docstring."""
    numbers = [word for word in arguments if word.isdigit()]
    names = [word for word in arguments if not word.isdigit()]
    if any(name not in PARTS for name in names):
        sys.exit(__doc__)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    started, count = time.perf_counter(), int((numbers or ["100"])[0])
    runs = unpack()
    for name in names or ["held_out"]:
        part = [replay(run) for run in runs if PARTS[name](run)]
        print(f"{name}: {count} sweeps of {RUNS} of {len(part)} runs each\n")
        print_table(part, count)
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
