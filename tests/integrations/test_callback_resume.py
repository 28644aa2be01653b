"""WatchCallback across trainings: resumed, repeated, interrupted."""

import math

import numpy as np
import pytest
from transformers import Trainer
from watched_training import RaiseAt, StopAt, arguments, examples, labels, scalar_steps, tiny_bert, trainer

from bertmon.integrations.transformers_trainer import WatchCallback
from bertmon.monitor.history import HISTORY_FILE, History

pytest.importorskip("accelerate")

SAVING = {"save_strategy": "steps", "save_steps": 10, "num_train_epochs": 4, "warmup_steps": 12}  # 48 steps


def make_callback(folder, **options):
    return WatchCallback(
        folder, labels=labels(examples()), **{"every": 5, "figures": False, "on_error": "raise"} | options
    )


@pytest.fixture
def interrupted(tmp_path):
    """The folder of a training of 48 steps that was stopped after 27, with a checkpoint at 20."""
    trainer(tmp_path, make_callback(tmp_path / "watched"), StopAt(27), options=SAVING).train()
    return tmp_path


def resume(folder, name, options=SAVING):
    callback = make_callback(folder / name)
    resumed_trainer = trainer(folder, callback, options=options)
    resumed_trainer.train(resume_from_checkpoint=str(folder / "checkpoints" / "checkpoint-20"))
    return callback


def test_callback_resumed_in_the_same_folder_has_the_history_of_an_uninterrupted_training(interrupted, tmp_path):
    history = resume(interrupted, "watched").watch.history
    uninterrupted = make_callback(tmp_path / "uninterrupted" / "watched")
    trainer(tmp_path / "uninterrupted", uninterrupted, options=SAVING).train()
    expected = uninterrupted.watch.history
    assert [shot.step for shot in history.snapshots] == list(range(0, 48, 5))
    assert history.losses == pytest.approx(expected.losses, rel=1e-6)
    assert history.grad_norms == pytest.approx(expected.grad_norms, rel=1e-6)
    assert np.array_equal(history.plan.lr, expected.plan.lr)
    assert history.plan.warmup_frac == expected.plan.warmup_frac
    assert all(np.array_equal(a.values, b.values) for a, b in zip(history.snapshots, expected.snapshots, strict=True))
    assert [shot.logit_std for shot in history.snapshots] == pytest.approx(
        [shot.logit_std for shot in expected.snapshots], nan_ok=True
    )
    assert scalar_steps(interrupted / "watched", "depth_ratio") == list(range(0, 48, 5))
    assert scalar_steps(interrupted / "watched", "loss/train") == sorted({*range(0, 48, 5), 9, 19, 29, 39, 47})
    assert len(History.load(interrupted / "watched" / HISTORY_FILE).losses) == 48


def test_callback_resumed_twice_from_one_checkpoint_is_rewound_twice(interrupted):
    first, second = (resume(interrupted, "watched").watch.history for _ in range(2))
    assert first.losses == second.losses
    assert scalar_steps(interrupted / "watched", "depth_ratio") == list(range(0, 48, 5))
    assert not (interrupted / "watched-2").exists()


def test_callback_resumed_in_an_empty_folder_starts_at_the_step_of_the_trainer(interrupted):
    history = resume(interrupted, "other").watch.history
    assert [shot.step for shot in history.snapshots] == [20, 25, 30, 35, 40, 45]
    assert len(history.losses) == len(history.plan) == 48
    assert all(map(math.isnan, history.losses[:20]))
    assert not any(map(math.isnan, history.losses[20:]))
    assert history.plan.lr[12] == history.plan.lr.max() == pytest.approx(1e-3)
    assert history.plan.warmup_frac == 0.25
    assert scalar_steps(interrupted / "other", "loss/train")[0] == 20
    assert len(History.load(interrupted / "other" / HISTORY_FILE).losses) == 48


def test_callback_resumed_at_an_unknown_step_uses_another_folder(interrupted):
    (interrupted / "watched" / "resume_points.json").unlink()
    callback = resume(interrupted, "watched")
    assert callback.watch.folder == interrupted / "watched-2"
    assert next(shot.step for shot in callback.watch.history.snapshots) == 20
    assert scalar_steps(interrupted / "watched", "depth_ratio") == [0, 5, 10, 15, 20, 25]


def test_second_training_of_a_trainer_uses_a_new_folder(tmp_path):
    callback = make_callback(tmp_path / "watched")
    twice = trainer(tmp_path, callback, RaiseAt(7))
    with pytest.raises(KeyboardInterrupt):
        twice.train()
    twice.train()
    assert callback.watch.folder == tmp_path / "watched-2"
    assert scalar_steps(tmp_path / "watched", "depth_ratio") == [0, 5]
    assert scalar_steps(tmp_path / "watched-2", "depth_ratio") == [0, 5, 10]
    assert len(History.load(tmp_path / "watched" / HISTORY_FILE).losses) == 7
    twice.train()
    assert len(History.load(tmp_path / "watched-3" / HISTORY_FILE).losses) == 12


def test_hyperparameter_search_has_a_folder_for_each_trial(tmp_path):
    pytest.importorskip("optuna").logging.set_verbosity(30)
    rows = examples()
    search = Trainer(
        model_init=lambda trial=None: tiny_bert(),
        args=arguments(tmp_path, eval_strategy="epoch"),
        train_dataset=rows,
        eval_dataset=rows[:16],
        callbacks=[make_callback(tmp_path / "watched")],
    )
    search.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3)},
        n_trials=3,
        backend="optuna",
    )
    for name in ("watched", "watched-2", "watched-3"):
        assert len(History.load(tmp_path / name / HISTORY_FILE).losses) == 12


@pytest.mark.parametrize("where", ["in a callback", "in the forward pass"])
def test_training_that_raises_leaves_no_hooks(tmp_path, where):
    callback = make_callback(tmp_path / "watched")
    first = trainer(tmp_path, callback, *([RaiseAt(5)] if where == "in a callback" else []))
    if where == "in the forward pass":
        handle = first.model.classifier.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
        first.train()
    if where == "in the forward pass":
        handle.remove()
        assert not {"compute_loss", "training_step"} & vars(first).keys()
        assert (tmp_path / "watched" / HISTORY_FILE).exists()
    assert not any(module._forward_hooks for module in first.model.modules())
    other = trainer(tmp_path, None, model=first.model, options={"label_smoothing_factor": 0.1})
    other.train()
    assert other.state.global_step == 12


def test_methods_of_the_trainer_are_restored_after_training(tmp_path):
    watched_trainer = trainer(tmp_path, make_callback(tmp_path / "watched"))
    watched_trainer.train()
    assert not {"compute_loss", "training_step"} & vars(watched_trainer).keys()
