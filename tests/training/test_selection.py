"""Selection by evaluations: the validation split, the metric, early stopping, and the saved model."""

import pytest
from conftest import interrupt_run

from bertmon.config import Metric, SaveModel
from bertmon.metrics import EvalResult
from bertmon.result import RunResult, Status
from bertmon.training import trainer
from bertmon.training.run_training import run_training
from bertmon.training.state import TrainState


def evaluation(step, accuracy, **metrics):
    return EvalResult(step, 1.0, accuracy, confusion=((step, 0), (0, 1)), **metrics)


def test_train_state_keeps_the_matrices_of_the_last_and_the_best_step():
    state = TrainState()
    for step, test, validation in ((1, 0.9, 0.5), (2, 0.5, 0.8), (3, 0.6, 0.6), (4, 0.7, 0.7)):
        state.add(evaluation(step, test), evaluation(step, validation), "accuracy")
    assert [each.step for each in state.evaluations if each.confusion] == [2, 4]
    assert [each.step for each in state.validations if each.confusion] == [2, 4]
    assert state.evaluations_since_best("accuracy") == 2


def test_best_and_objective_use_the_validation_split(settings, tmp_path):
    settings.data.validation_frac = 0.25
    settings.train.epochs, settings.optimizer.lr = 8, 5e-3
    settings.train.save_model = SaveModel.best
    (tmp_path / "run").mkdir()
    result = run_training(settings, tmp_path / "run", name="test")
    assert [each.step for each in result.validations] == [each.step for each in result.evaluations]
    assert result.data.validation_texts == 11
    best = max(result.validations, key=lambda each: each.accuracy)
    assert result.best.step == best.step
    assert result.objective == best.accuracy
    assert RunResult.read(tmp_path / "run").objective == result.objective


@pytest.fixture
def accuracies(monkeypatch):
    """The accuracies of the next evaluations, in turn."""
    values = []
    monkeypatch.setattr(
        trainer, "evaluate", lambda *_, step, **__: evaluation(step, values.pop(0), f1_macro=0.5, mcc=0.1)
    )
    return values


def test_patience_ends_training_after_evaluations_without_improvement(settings, tmp_path, accuracies, caplog):
    caplog.set_level("INFO")
    accuracies += [0.9, 0.5, 0.7, 0.6, 0.7, 0.9]
    settings.train.epochs, settings.train.patience = 5, 2
    (tmp_path / "run").mkdir()
    result = run_training(settings, tmp_path / "run", name="test")
    assert (result.status, result.steps, result.total_steps) == (Status.finished, 24, 30)
    assert "step 24: 2 evaluations without a better accuracy; stopping early" in caplog.text
    assert result.best.step == 12


@pytest.mark.parametrize(("save_model", "saves"), [("none", 0), ("last", 1), ("best", 2)])
def test_save_model_saves_at_the_end_or_at_each_better_evaluation(
    settings, tmp_path, accuracies, monkeypatch, save_model, saves
):
    from bertmon.training import run_training as module

    calls = []
    monkeypatch.setattr(module, "save_model", lambda *arguments: calls.append(arguments))
    accuracies += [0.9, 0.5, 0.7, 0.6]
    settings.train.epochs, settings.train.save_model = 3, SaveModel(save_model)
    (tmp_path / "run").mkdir()
    result = run_training(settings, tmp_path / "run", name="test")
    assert len(calls) == saves
    assert result.model_dir == ("model" if saves else None)


@pytest.mark.parametrize(("minutes", "saved"), [(1e6, [6, 12]), (None, [])])
def test_checkpoint_follows_each_better_model(settings, tmp_path, accuracies, monkeypatch, minutes, saved):
    from bertmon.training import run_training as module

    steps = []
    monkeypatch.setattr(module, "save_checkpoint", lambda *arguments: steps.append(arguments[3].state.steps))
    accuracies += [0.5, 0.6, 0.9, 0.5]
    settings.train.epochs, settings.train.save_model, settings.train.checkpoint_minutes = 3, SaveModel.best, minutes
    (tmp_path / "run").mkdir()
    run_training(settings, tmp_path / "run", name="test")
    assert steps == saved  # else a resumed run could keep a model of steps that it did not repeat


def test_metric_is_logged_and_sets_the_objective(settings, tmp_path, caplog):
    caplog.set_level("INFO")
    settings.train.metric = Metric.f1_macro
    (tmp_path / "run").mkdir()
    result = run_training(settings, tmp_path / "run", name="test")
    assert result.metric == "f1_macro"
    assert result.objective == result.evaluations[-1].f1_macro
    assert f"f1_macro/test {result.evaluations[-1].f1_macro:.3f}" in caplog.text


def test_resumed_run_keeps_the_model_that_it_saved_before(settings, tmp_path, accuracies, monkeypatch):
    (tmp_path / "run").mkdir()
    accuracies += [0.5, 0.9, 0.5, 0.5]
    settings.train.epochs, settings.train.save_model, settings.train.checkpoint_every = 3, SaveModel.best, 8
    interrupt_run(settings, tmp_path / "run", monkeypatch, at=12)
    settings.resume, settings.train.checkpoint_every = str(tmp_path), None
    result = run_training(settings, tmp_path / "run", name="test")
    assert (result.status, result.best.step, result.model_dir) == (Status.finished, 6, "model")
    assert RunResult.read(tmp_path / "run").model_dir == "model"


def test_non_finite_validation_loss_is_reported_as_such(settings, tmp_path, monkeypatch):
    settings.data.validation_frac = 0.25
    (tmp_path / "run").mkdir()
    losses = iter([1.0, 1.0, 1.0, float("nan")])  # of the test split, then of the validation split
    monkeypatch.setattr(trainer, "evaluate", lambda *_, step, **__: EvalResult(step, next(losses), 0.5, 0.5, 0.0))
    result = run_training(settings, tmp_path / "run", name="test")
    assert result.status is Status.diverged
    assert result.diagnosis.findings[0].signal == "loss/validation"
