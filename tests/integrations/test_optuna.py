"""Pruners in real Optuna studies."""

import itertools
import json
import math
import warnings

import numpy as np
import pytest
import torch
from toy_data import lines, small_bert
from transformers import get_linear_schedule_with_warmup

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Optuna 2 uses functions that SQLAlchemy 1.4 deprecates
    import optuna
    from optuna.pruners import BasePruner, MedianPruner, NopPruner
    from optuna.trial import TrialState

from bertmon.errors import InputError
from bertmon.integrations.optuna import BehindPruner, LearnedPruner, report, trial_attributes
from bertmon.integrations.own_loop import Watch
from bertmon.monitor.diagnosis import Diagnosis, Verdict
from bertmon.monitor.history import History, RunPlan

STEPS = 100
DOOMED = (Verdict.collapsed, Verdict.diverged, Verdict.not_learning)


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


class CountingPruner(BasePruner):
    """Prunes everything that it is asked about."""

    def __init__(self):
        self.calls = 0

    def prune(self, study, trial):
        self.calls += 1
        return True


def study_of(pruner, **arguments):
    return optuna.create_study(pruner=pruner, sampler=optuna.samplers.RandomSampler(0), **arguments)


def reports_until_pruned(trial, verdicts, value=1.0):
    """Report a value with each verdict in turn. Returns the number of reports until pruning, None without pruning."""
    for step, verdict in enumerate(verdicts, 1):
        report(trial, verdict and Diagnosis(verdict, step), step, value)
        if trial.should_prune():
            return step
    return None


@pytest.mark.parametrize("verdict", DOOMED)
@pytest.mark.parametrize("inner", [None, NopPruner()])
def test_doomed_trial_is_pruned_at_once(verdict, inner):
    trial = study_of(LearnedPruner(inner)).ask()
    assert reports_until_pruned(trial, [None, Verdict.undecided, verdict, verdict]) == 3


@pytest.mark.parametrize("verdict", [None, Verdict.undecided, Verdict.slow])
def test_trial_on_a_plateau_is_never_pruned_or_passed_to_inner(verdict):
    inner = CountingPruner()
    trial = study_of(LearnedPruner(inner)).ask()
    assert reports_until_pruned(trial, [verdict] * 20) is None
    assert inner.calls == 0


def test_inner_is_asked_once_the_run_has_learned():
    inner = CountingPruner()
    trial = study_of(LearnedPruner(inner)).ask()
    assert reports_until_pruned(trial, [Verdict.undecided] * 5 + [Verdict.healthy]) == 6
    assert inner.calls == 1


def test_learned_trial_without_inner_is_never_pruned():
    assert reports_until_pruned(study_of(LearnedPruner()).ask(), [Verdict.healthy] * 20) is None


def test_inner_median_prunes_the_worse_half_but_no_plateau():
    study = study_of(LearnedPruner(MedianPruner(n_startup_trials=4)))

    def objective(trial):
        value = (0.1, 0.2, 0.3, 0.4, 0.9, 0.9, 0.1)[trial.number]
        verdict = Verdict.slow if trial.number == 4 else Verdict.healthy
        for step in range(1, 10):
            report(trial, Diagnosis(verdict, 1), step, value)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study.optimize(objective, n_trials=7)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE] * 5 + [TrialState.PRUNED, TrialState.COMPLETE]
    assert study.trials[5].last_step == 1


def curve(per_step, steps):
    """A run whose loss falls from chance on a straight line."""
    rates = np.full(STEPS, 1e-3)
    losses = (1.0 - per_step * np.arange(steps)).tolist()
    return History(RunPlan(rates, rates, 1.0, 0.1, True), losses, [1.0] * steps)


def train(study, per_step):
    """Run a trial with such a loss. Returns its state and its last step."""

    def objective(trial):
        for step in range(10, STEPS + 1, 10):
            report(trial, Diagnosis(Verdict.healthy, 10), step, per_step, history=curve(per_step, step))
            if trial.should_prune():
                raise optuna.TrialPruned
        return per_step

    study.optimize(objective, n_trials=1)
    return study.trials[-1].state, study.trials[-1].last_step


def test_behind_prunes_a_run_that_cannot_catch_up_and_no_other():
    study = study_of(LearnedPruner(BehindPruner()), direction="maximize")
    assert train(study, 1e-3) == (TrialState.COMPLETE, STEPS)  # no other trial to compare with
    assert train(study, 9e-3) == (TrialState.COMPLETE, STEPS)
    state, step = train(study, 1e-3)
    assert state is TrialState.PRUNED
    assert step == 30  # the first report after a quarter of the run
    assert train(study, 6e-3) == (TrialState.COMPLETE, STEPS)


def test_behind_compares_with_pruned_and_running_trials_too():
    study = study_of(LearnedPruner(BehindPruner()), direction="maximize")
    running = study.ask()
    report(running, Diagnosis(Verdict.healthy, 10), 90, 0.0, history=curve(9e-3, 90))
    assert train(study, 1e-3)[0] is TrialState.PRUNED


def test_behind_ignores_trials_that_diverged():
    study = study_of(LearnedPruner(BehindPruner()), direction="maximize")
    diverged = study.ask()
    report(diverged, Diagnosis(Verdict.healthy, 10), 90, 0.0, history=curve(math.nan, 90))
    assert train(study, 9e-3)[0] is TrialState.COMPLETE
    assert train(study, 1e-3)[0] is TrialState.PRUNED


def test_behind_prunes_below_min_share_of_best():
    study = study_of(LearnedPruner(BehindPruner(min_share_of_best=0.1)), direction="maximize")
    train(study, 9e-3)
    assert train(study, 1e-3)[0] is TrialState.COMPLETE
    with pytest.raises(InputError, match=r"min_share_of_best: expected a number between 0 and 1, got 1\.5\."):
        BehindPruner(min_share_of_best=1.5)


def test_values_reported_without_bertmon_are_refused():
    trial = study_of(LearnedPruner()).ask()
    assert not trial.should_prune()  # nothing is reported yet
    trial.report(1.0, 1)
    with pytest.raises(InputError, match=r"LearnedPruner: expected values reported by bertmon\.integrations\.optuna"):
        trial.should_prune()


def test_behind_without_a_history_is_refused():
    trial = study_of(LearnedPruner(BehindPruner())).ask()
    report(trial, Diagnosis(Verdict.healthy, 1), 1, 1.0)
    with pytest.raises(InputError, match=r"BehindPruner: .*history=\.\.\."):
        trial.should_prune()


@pytest.mark.parametrize("steps", [0, 5, STEPS])
def test_attributes_are_json(steps):
    attributes = trial_attributes(Diagnosis(Verdict.healthy, 1), curve(1e-3, steps))
    assert json.loads(json.dumps(attributes, allow_nan=False)) == attributes


@pytest.mark.slow
def test_watched_trial_is_pruned_when_it_collapses_and_completes_when_it_learns(tmp_path):
    """Real training: at 1e-2 the example's model collapses, at 5e-4 it learns."""
    steps = 150

    def objective(trial):
        torch.manual_seed(0)
        examples, model = lines(), small_bert()
        loader = torch.utils.data.DataLoader(examples, batch_size=16, shuffle=True, drop_last=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=(1e-2, 5e-4)[trial.number])
        scheduler = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
        labels, folder = [example["labels"] for example in examples], tmp_path / str(trial.number)
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        with Watch(model, optimizer, folder, total_steps=steps, labels=labels, scheduler=scheduler, every=10) as watch:
            for step, batch in enumerate(itertools.islice(batches, steps), 1):
                loss = model(**batch).loss
                loss.backward()
                with watch.step(loss, batch):
                    optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                report(trial, watch.diagnosis, step, loss.item(), history=watch.history)
                if trial.should_prune():
                    raise optuna.TrialPruned
        return loss.item()

    study = study_of(LearnedPruner(BehindPruner()))
    study.optimize(objective, n_trials=2)
    first, second = study.trials
    assert (first.state, second.state) == (TrialState.PRUNED, TrialState.COMPLETE)
    assert first.last_step < steps
    assert second.user_attrs["bertmon:verdict"] == "healthy"
