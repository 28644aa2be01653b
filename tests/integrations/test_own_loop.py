"""Watch in a custom training loop: the numbers of a run, without changing a bit of the loop."""

import copy
import logging
import math

import numpy as np
import pytest
import torch
from conftest import PreparedRun, flat_parameters
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import lr_scheduler

from bertmon.config import VerdictThresholds
from bertmon.errors import InputError
from bertmon.integrations.own_loop import Watch
from bertmon.monitor.diagnosis import Verdict
from bertmon.monitor.history import HISTORY_FILE, History
from bertmon.training.task import build_task


class Linear(torch.nn.Module):
    """A model that is not from transformers."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.layer(x))


@pytest.fixture
def linear():
    torch.manual_seed(0)
    model = Linear()
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def linear_watch(linear, folder, **options):
    model, adamw = linear
    options = {"total_steps": 4, "labels": [0, 1], "every": 1, "logits": lambda batch: model(batch["x"])} | options
    return Watch(model, adamw, folder, **options)


def make_step(watch, linear, x=None, backward=True):
    model, adamw = linear
    x = torch.randn(6, 3) if x is None else x
    loss = torch.nn.functional.cross_entropy(model(x), torch.tensor([0, 1] * 3))
    if backward:
        loss.backward()
    with watch.step(loss, {"x": x}):
        adamw.step()
    adamw.zero_grad()


def test_watch_in_a_plain_loop_records_the_history_of_a_run(settings, tmp_path):
    settings.monitor.every = 2
    settings.optimizer.bias_correction = False
    run = PreparedRun(settings).fit()

    task = build_task(settings, torch.device("cpu"))
    total = len(run.history.plan)
    for group in task.optimizer.param_groups:
        group["lr"] = settings.optimizer.lr
    factors = run.history.plan.lr / settings.optimizer.lr
    scheduler = lr_scheduler.LambdaLR(task.optimizer, lambda step: factors[step % total])
    watch = Watch(
        task.classifier,
        task.optimizer,
        tmp_path,
        total_steps=total,
        labels=task.corpus.train.labels,
        scheduler=scheduler,
        bias_correction=False,
        every=2,
        figures=False,
    )
    with watch:
        for epoch in range(settings.train.epochs):
            for batch in task.train.epoch_batches(settings.seed, epoch):
                inputs = {name: getattr(batch, name).long() for name in ("input_ids", "attention_mask", "labels")}
                loss = task.classifier(**inputs).loss
                loss.backward()
                with watch.step(loss, inputs):
                    torch.nn.utils.clip_grad_norm_(task.classifier.parameters(), settings.train.max_grad_norm)
                    task.optimizer.step()
                scheduler.step()
                task.optimizer.zero_grad()
    assert torch.equal(flat_parameters(task.classifier), run.weights())
    assert watch.history.losses == run.history.losses
    assert watch.history.grad_norms == run.history.grad_norms
    assert watch.history.snapshots == run.history.snapshots
    assert [shot.step for shot in run.history.snapshots if not math.isnan(shot.logit_std)] == [0, 10]
    assert np.array_equal(watch.history.plan.effective_lr, run.history.plan.effective_lr)
    assert watch.history.plan.chance_loss == run.history.plan.chance_loss
    assert watch.diagnosis.verdict == run.monitor.diagnosis.verdict


def test_watch_writes_history_scalars_and_figures_by_close(linear, tmp_path):
    with linear_watch(linear, tmp_path, total_steps=6, every=3) as watch:
        for _ in range(6):
            make_step(watch, linear)
    stored = History.load(tmp_path / HISTORY_FILE)
    assert stored.snapshots == watch.history.snapshots
    assert stored.losses == pytest.approx(watch.history.losses)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {tag: [event.step for event in events.Scalars(tag)] for tag in ("loss/train", "logit_std")} == {
        "loss/train": [0, 3, 5],
        "logit_std": [0],  # its forward pass runs at most every tenth step
    }
    assert events.Scalars("loss/train")[1].value == pytest.approx(np.mean(watch.history.losses[1:4]), rel=1e-6)
    assert {"learning_rate", "effective_learning_rate", "grad_norm", "grad_mean/layer"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["gradient_flow", "update_ratio"]
    watch.close()  # a second time does nothing
    assert len(list(tmp_path.glob("events*"))) == 1


def test_watch_does_not_change_training(linear, tmp_path):
    model, _ = linear
    model.layer.eval()  # a module that its owner keeps in eval mode
    alone, rng_state = copy.deepcopy(model), torch.random.get_rng_state()
    other = torch.optim.AdamW(alone.parameters(), lr=0.1)
    with linear_watch(linear, tmp_path) as watch:
        for _ in range(4):
            make_step(watch, linear)
    assert (model.training, model.layer.training, model.drop.training) == (True, False, True)
    torch.random.set_rng_state(rng_state)
    for _ in range(4):
        torch.nn.functional.cross_entropy(alone(torch.randn(6, 3)), torch.tensor([0, 1] * 3)).backward()
        other.step()
        other.zero_grad()
    assert torch.equal(flat_parameters(model), flat_parameters(alone))


def test_unplanned_learning_rate_is_used_with_one_warning(linear, tmp_path, caplog):
    with linear_watch(linear, tmp_path) as watch:
        for rate in (0.1, 0.2, 0.3):
            linear[1].param_groups[0]["lr"] = rate
            make_step(watch, linear)
    assert [message for message in caplog.messages if "planned" in message] == [
        "step 1: the learning rate is 0.2, but 0.1 was planned: no verdict rests on the remaining learning rates. "
        "Pass scheduler=... to Watch."
    ]
    assert not watch.history.plan.lr_confirmed
    assert watch.history.plan.lr.tolist() == [0.1, 0.2, 0.3, 0.1]
    assert [shot.lr for shot in watch.history.snapshots] == [0.1, 0.2, 0.3]


def test_steps_beyond_total_steps_are_not_watched(linear, tmp_path, caplog):
    with linear_watch(linear, tmp_path) as watch:
        for _ in range(7):
            make_step(watch, linear)
    assert [shot.step for shot in watch.history.snapshots] == [0, 1, 2, 3]
    warnings = [message for message in caplog.messages if "total_steps" in message]
    assert warnings == ["Step 5 exceeds total_steps=4; monitoring stops here."]


def test_non_finite_loss_ends_watching_as_diverged(linear, tmp_path):
    with linear_watch(linear, tmp_path, total_steps=9, every=2) as watch:
        for step in range(9):
            make_step(watch, linear, torch.full((6, 3), torch.inf) if step == 3 else None)
            assert watch.doomed == (step >= 4)
    assert str(watch.diagnosis).startswith("step 3: diverged - loss/train is nan.")
    assert len(watch.history.losses) == 4
    assert [shot.step for shot in watch.history.snapshots] == [0, 2]


@pytest.mark.parametrize("completed_steps", [0, 3])
def test_error_in_the_loop_is_raised_and_measurements_are_written(linear, tmp_path, completed_steps):
    watch = linear_watch(linear, tmp_path, every=2)

    def loop():
        with watch:
            for _ in range(completed_steps):
                make_step(watch, linear)
            loss = linear[0](torch.ones(6, 3)).mean()
            loss.backward()
            with watch.step(loss, {"x": torch.ones(6, 3)}):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    stored = History.load(tmp_path / HISTORY_FILE)
    assert len(stored.losses) == completed_steps
    assert [shot.step for shot in stored.snapshots] == [0, 2][: (completed_steps + 1) // 2]


def test_verdict_reaches_the_log_and_the_loop(linear, tmp_path, caplog):
    thresholds = VerdictThresholds(min_logit_std=1e3, min_update_per_lr=1e3)  # so large that every value is too small
    with linear_watch(linear, tmp_path, thresholds=thresholds) as watch:
        make_step(watch, linear)
        assert watch.diagnosis.verdict is Verdict.undecided or watch.doomed
        make_step(watch, linear)
        assert watch.doomed
    assert any(": collapsed - " in message for message in caplog.messages)


def test_compiled_model_is_unwrapped(linear, tmp_path):
    model, adamw = linear
    watch = Watch(torch.compile(model, backend="eager"), adamw, tmp_path, total_steps=1, labels=[0, 1])
    watch.close()
    assert watch.model is model


def test_optimizer_other_than_adam_gives_a_warning(linear, tmp_path, caplog):
    sgd = torch.optim.SGD(linear[0].parameters(), lr=0.1)
    linear_watch((linear[0], sgd), tmp_path).close()
    assert caplog.record_tuples == [
        (
            "bertmon.integrations.plan_ahead",
            logging.WARNING,
            "Verdict thresholds were calibrated for Adam, not SGD.",
        )
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 0}, "total_steps: expected an integer of at least 1, got 0"),
        (
            {"labels": [1, 1]},
            "labels: expected the labels of the training texts, of at least two classes, got 2 labels of 1 classes",
        ),
        ({"every": 0}, r"monitor\.every: expected .*, got 0"),
    ],
)
def test_invalid_arguments_are_refused_before_anything_is_written(linear, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        linear_watch(linear, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_invalid_model_folder_and_logits_are_refused(linear, tmp_path):
    model, _ = linear
    with (
        linear_watch(linear, tmp_path) as watch,
        pytest.raises(InputError, match=r"expected gradients, got none"),
    ):
        make_step(watch, linear, backward=False)
    watch = linear_watch(linear, tmp_path / "logits", logits=lambda batch: batch["x"][0])
    with (
        watch,
        pytest.raises(InputError, match=r"logits: expected .* \[texts, classes\], got shape \[3\]"),
    ):
        make_step(watch, linear)
    with pytest.raises(InputError, match="already contains a run: choose another folder or delete it"):
        linear_watch(linear, tmp_path)
    for parameter in model.parameters():
        parameter.requires_grad = False
    with pytest.raises(InputError, match="model: expected a model with trainable weights, got Linear"):
        linear_watch(linear, tmp_path / "other")
