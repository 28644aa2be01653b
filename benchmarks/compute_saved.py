"""What a sweep saves and what it loses, by the way in which its runs are cut short: from stored histories, in a minute.

    python benchmarks/compute_saved.py [calibration | held_out | blind] [sweeps]

Random sweeps of 16 labeled runs, one run after the other, are given to Optuna's own pruners in real studies. A run
reports 27 times, its smoothed training loss over the loss of chance; verdicts come from a snapshot every 30 steps. Runs
come from one task, or from both. A run that was pruned has no accuracy; the best run is lost if it was pruned.

- Ray's ASHAScheduler() has max_t=100, grace_period=1, reduction_factor=4, as SuccessiveHalvingPruner has by default.
- W&B's example `early_terminate: {type: hyperband, min_iter: 3}` has brackets at 3, 9 and 27 reports, eta 3.

LearnedPruner's rules were chosen on the calibration part. held_out (the default) is all other runs, blind those whose
settings were trained after the last change of a rule.
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
    values: tuple[float, ...]  # [REPORTS] smoothed loss over that of chance
    attributes: tuple[dict[str, Any], ...]  # [REPORTS] what bertmon reports with them
    flagged_step: int | None


def replay(run: LabeledRun) -> ReplayedRun:
    """Diagnoses and reports of a run."""
    history, done = run.history, len(run.history.losses)
    diagnoses = list(verdicts(history, EVERY))
    steps = [min(done, max(1, round(len(history.plan) * report / REPORTS))) for report in range(1, REPORTS + 1)]
    parts = [History(history.plan, history.losses[:step], history.grad_norms[:step]) for step in steps]
    known = [[diagnosis for at, diagnosis in diagnoses if at < step] for step in steps]
    return ReplayedRun(
        run.task,
        run.accuracy,
        run.majority_share,
        tuple(steps),
        tuple(1 - loss_reduction(part) for part in parts),
        tuple(
            trial_attributes(so_far[-1] if so_far else None, part) for so_far, part in zip(known, parts, strict=True)
        ),
        next((step for step, diagnosis in diagnoses if diagnosis.verdict.doomed), None),
    )


# --- one sweep ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saved:
    """What came of a sweep."""

    steps_share: float  # steps trained over those of all runs to the end
    best_lost: bool
    accuracy_lost: float  # of the best run, in [0, 1]


def saved(runs: Sequence[ReplayedRun], steps: Sequence[int]) -> Saved:
    """Of runs that were trained for so many steps."""
    complete = [run for run, done in zip(runs, steps, strict=True) if done == run.steps[-1]]
    best = max(run.accuracy for run in runs)
    left = max((run.accuracy for run in complete), default=min(run.majority_share for run in runs))
    return Saved(sum(steps) / sum(run.steps[-1] for run in runs), left < best, best - left)


def to_the_end(runs: Sequence[ReplayedRun]) -> Saved:
    """No run is cut short."""
    return saved(runs, [run.steps[-1] for run in runs])


def doomed_stopped(runs: Sequence[ReplayedRun]) -> Saved:
    """monitor.on_doomed=stop."""
    return saved(runs, [run.steps[-1] if run.flagged_step is None else run.flagged_step + 1 for run in runs])


def pruned(runs: Sequence[ReplayedRun], pruner: BasePruner, name: str) -> Saved:
    """A study of Optuna's, trial by trial; its name seeds HyperbandPruner's brackets."""
    study = optuna.create_study(study_name=name, pruner=pruner, sampler=optuna.samplers.RandomSampler(0))
    return saved(runs, [_run_trial(study, run) for run in runs])


def _run_trial(study: optuna.Study, run: ReplayedRun) -> int:
    """Steps that the run was trained for."""
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
    """The rows: a name, and what makes a sweep and its name into its result."""
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
    """Random sweeps in random order, the same at every call; a task is drawn as often as it has runs."""
    rng = np.random.default_rng(0)
    pools = [[run for run in runs if run.task == task] for task in sorted({run.task for run in runs})]
    pools = [pool for pool in pools if len(pool) >= RUNS] if one_task else [list(runs)]
    weights = np.array([len(pool) for pool in pools], dtype=float)
    for _ in range(count):
        pool = pools[rng.choice(len(pools), p=weights / weights.sum())]
        yield [pool[index] for index in rng.permutation(len(pool))[:RUNS]]


def print_table(runs: Sequence[ReplayedRun], count: int) -> None:
    """A row a policy; the columns are means over sweeps."""
    sweeps = [list(draw_sweeps(runs, count, one_task=one_task)) for one_task in (True, False)]
    heads = [f"{name}{place}" for place in (", one task", ", both") for name in ("steps", "best lost", "points lost")]
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
