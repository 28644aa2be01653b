"""Prune Optuna trials by training state: doomed ones at once, but never those on a plateau that can still end.

    study = optuna.create_study(direction="maximize", pruner=LearnedPruner(BehindPruner()))
    ...
    report(trial, watch.diagnosis, step, accuracy, history=watch.history)     # instead of trial.report
    if trial.should_prune():
        raise optuna.TrialPruned

A pruner that compares losses or accuracies stops runs on their first plateau, even if they would learn later.
LearnedPruner consults it only about runs that have learned. What each combination saves and loses:
benchmarks/compute_saved.py.
"""

import math
from typing import Any

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from bertmon.errors import InputError
from bertmon.monitor.behind import BehindThresholds, best_case, loss_reduction
from bertmon.monitor.diagnosis import Diagnosis, Verdict
from bertmon.monitor.history import History

VERDICT = "bertmon:verdict"
"""User attribute of a trial: the verdict at its last report."""
PROGRESS = "bertmon:progress"
"""User attribute of a trial: its loss reduction now, and at best at the end; see bertmon.monitor.behind."""


def report(
    trial: Trial, diagnosis: Diagnosis | None, step: int, value: float, *, history: History | None = None
) -> None:
    """Call trial.report(value, step) and store the state of the run that the pruners below read.

    diagnosis: from Watch, Monitor or RunResult; None before the first one. history: needed by BehindPruner only.
    """
    for name, attribute in trial_attributes(diagnosis, history).items():
        trial.set_user_attr(name, attribute)
    trial.report(value, step)


def trial_attributes(diagnosis: Diagnosis | None, history: History | None = None) -> dict[str, Any]:
    """The user attributes that `report` stores in a trial, as JSON-compatible values."""
    attributes: dict[str, Any] = {VERDICT: (diagnosis.verdict if diagnosis else Verdict.undecided).value}
    if history is not None and history.losses:
        reachable = best_case(history)
        attributes[PROGRESS] = [loss_reduction(history), reachable if math.isfinite(reachable) else None]
    return attributes


class LearnedPruner(BasePruner):
    """Prunes doomed trials at once, consults `inner` once a run has learned, and leaves all others alone.

    inner: any Optuna pruner; None: prune doomed trials only.
    Raises InputError for a trial whose values were not reported by `report`.
    """

    def __init__(self, inner: BasePruner | None = None) -> None:
        self._inner = inner

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial should be pruned after its last report."""
        if trial.last_step is None:
            return False
        verdict = Verdict(_attribute(trial, VERDICT, "LearnedPruner"))
        if verdict.doomed:
            return True
        return verdict is Verdict.healthy and self._inner is not None and self._inner.prune(study, trial)


class BehindPruner(BasePruner):
    """Prunes a trial that, even at twice its pace, would not reach half the loss reduction of the best trial so far.

    Meant to be the `inner` of a LearnedPruner. It compares training losses, whatever value is reported, so all trials
    of a study should train on the same data. min_share_of_best: the share called "half" above, in (0, 1).
    Raises InputError for a trial that was reported without its history.
    """

    def __init__(self, min_share_of_best: float = BehindThresholds().min_share_of_best) -> None:
        if not 0 < min_share_of_best < 1:
            raise InputError(f"min_share_of_best: expected a number between 0 and 1, got {min_share_of_best}.")
        self._share = min_share_of_best

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial should be pruned after its last report."""
        if trial.last_step is None:
            return False
        _, reachable = _attribute(trial, PROGRESS, "BehindPruner")
        if reachable is None:
            return False
        others = (other for other in study.get_trials(deepcopy=False) if other.number != trial.number)
        reductions = (other.user_attrs[PROGRESS][0] for other in others if PROGRESS in other.user_attrs)
        finite = [reduction for reduction in reductions if math.isfinite(reduction)]  # nan: that trial diverged
        return bool(finite) and reachable < self._share * max(finite)


def _attribute(trial: FrozenTrial, name: str, pruner: str) -> Any:
    if name not in trial.user_attrs:
        call = "report(trial, diagnosis, step, value, history=...)" if name == PROGRESS else "report(trial, ...)"
        raise InputError(f"{pruner}: expected values reported by bertmon.integrations.optuna.{call}, got trial.report.")
    return trial.user_attrs[name]
