"""Watching in somebody else's loop: the same numbers as in a run, and a loop that is none the worse for it."""

import copy
import logging
import math

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import lr_scheduler

from bertmon import model
from bertmon.config import VerdictThresholds
from bertmon.errors import InputError
from bertmon.integrations.own_loop import Watch, planned_learning_rates
from bertmon.monitor.diagnosis import Verdict
from bertmon.monitor.history import HISTORY_FILE, History
from bertmon.monitor.monitor import Monitor
from bertmon.run import build_task
from bertmon.training import trainer


class Silent:
    def snapshot(self, snapshot): ...
    def scalars(self, step, values): ...
    def text(self, tag, text, step): ...


class Linear(torch.nn.Module):
    """A model that is not transformers'."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.layer(x))


@pytest.fixture
def linear():
    torch.manual_seed(0)
    made = Linear()
    return made, torch.optim.AdamW(made.parameters(), lr=0.1)


def linear_watch(linear, folder, **options):
    made, adamw = linear
    options = {"total_steps": 4, "labels": [0, 1], "every": 1, "logits": lambda batch: made(batch["x"])} | options
    return Watch(made, adamw, folder, **options)


def make_step(watch, linear, x=None, backward=True):
    made, adamw = linear
    x = torch.randn(6, 3) if x is None else x
    loss = torch.nn.functional.cross_entropy(made(x), torch.tensor([0, 1] * 3))
    if backward:
        loss.backward()
    with watch.step(loss, {"x": x}):
        adamw.step()
    adamw.zero_grad()


def parameters(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_a_loop_of_ones_own_has_the_history_of_a_run(settings, tmp_path):
    settings.monitor.every = 2
    settings.optimizer.bias_correction = False

    corpus, parts = build_task(settings, torch.device("cpu"))
    history = History(trainer.plan_run(settings, len(parts.train), corpus.train.label_entropy()))
    observer = Monitor(model.named_weights(parts.classifier), history, settings.monitor, Silent())
    trainer.fit(
        parts, settings, history, observer=observer, record=lambda *_: None, outcome=trainer.TrainState(), name="test"
    )

    _, own = build_task(settings, torch.device("cpu"))
    total = len(history.plan)
    for group in own.optimizer.param_groups:
        group["lr"] = settings.optimizer.lr
    scheduler = lr_scheduler.LambdaLR(own.optimizer, lambda step: history.plan.lr[step % total] / settings.optimizer.lr)
    watch = Watch(
        own.classifier,
        own.optimizer,
        tmp_path,
        total_steps=total,
        labels=corpus.train.labels,
        scheduler=scheduler,
        bias_correction=False,
        every=2,
        figures=False,
    )
    with watch:
        for epoch in range(settings.train.epochs):
            for batch in own.train.epoch_batches(settings.seed, epoch):
                inputs = {name: getattr(batch, name).long() for name in ("input_ids", "attention_mask", "labels")}
                loss = own.classifier(**inputs).loss
                loss.backward()
                with watch.step(loss, inputs):
                    torch.nn.utils.clip_grad_norm_(own.classifier.parameters(), settings.train.max_grad_norm)
                    own.optimizer.step()
                scheduler.step()
                own.optimizer.zero_grad()
    assert torch.equal(parameters(own.classifier), parameters(parts.classifier))
    assert watch.history.losses == history.losses
    assert watch.history.grad_norms == history.grad_norms
    assert watch.history.snapshots == history.snapshots
    assert [shot.step for shot in history.snapshots if not math.isnan(shot.logit_std)] == [0, 10]
    assert np.array_equal(watch.history.plan.effective_lr, history.plan.effective_lr)
    assert watch.history.plan.chance_loss == history.plan.chance_loss
    assert watch.diagnosis.verdict == observer.diagnosis.verdict


def test_what_it_writes(linear, tmp_path):
    with linear_watch(linear, tmp_path, total_steps=6, every=3) as watch:
        for _ in range(6):
            make_step(watch, linear)
    stored = History.load(tmp_path / HISTORY_FILE)
    assert stored.snapshots == watch.history.snapshots
    assert stored.losses == pytest.approx(watch.history.losses)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {tag: [event.step for event in events.Scalars(tag)] for tag in ("loss/train", "logit_std")} == {
        "loss/train": [0, 3, 5],
        "logit_std": [0],  # a pass for it is made at most every tenth step
    }
    assert events.Scalars("loss/train")[1].value == pytest.approx(np.mean(watch.history.losses[1:4]), rel=1e-6)
    assert {"learning_rate", "effective_learning_rate", "grad_norm", "grad_mean/layer"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["gradient_flow", "update_ratio"]
    watch.close()  # once more does nothing
    assert len(list(tmp_path.glob("events*"))) == 1


def test_the_loop_is_none_the_worse_for_it(linear, tmp_path):
    made, _ = linear
    made.layer.eval()  # a module that its owner keeps in eval mode
    alone, own = copy.deepcopy(made), torch.random.get_rng_state()
    other = torch.optim.AdamW(alone.parameters(), lr=0.1)
    with linear_watch(linear, tmp_path) as watch:
        for _ in range(4):
            make_step(watch, linear)
    assert (made.training, made.layer.training, made.drop.training) == (True, False, True)
    torch.random.set_rng_state(own)
    for _ in range(4):
        torch.nn.functional.cross_entropy(alone(torch.randn(6, 3)), torch.tensor([0, 1] * 3)).backward()
        other.step()
        other.zero_grad()
    assert torch.equal(parameters(made), parameters(alone))


@pytest.mark.parametrize(
    "make",
    [
        lambda adamw: lr_scheduler.LambdaLR(adamw, lambda step: 1 / (1 + step)),
        lambda adamw: lr_scheduler.CosineAnnealingLR(adamw, 7),
        lambda adamw: lr_scheduler.OneCycleLR(adamw, 0.3, total_steps=9),
        lambda adamw: lr_scheduler.SequentialLR(
            adamw, [lr_scheduler.LinearLR(adamw, total_iters=3), lr_scheduler.ExponentialLR(adamw, 0.5)], [3]
        ),
    ],
)
def test_planned_rates_are_those_that_come(make):
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    adamw = torch.optim.AdamW([{"params": weights[:1], "lr": 0.1}, {"params": weights[1:], "lr": 0.4}])
    scheduler = make(adamw)
    before = copy.deepcopy((scheduler.state_dict(), adamw.state_dict()["param_groups"]))
    planned = planned_learning_rates(adamw, scheduler, 8)
    assert str((scheduler.state_dict(), adamw.state_dict()["param_groups"])) == str(before)
    came = []
    for _ in range(8):
        came.append(max(group["lr"] for group in adamw.param_groups))
        adamw.step()
        scheduler.step()
    assert planned.tolist() == came


def test_a_rate_that_was_not_planned_is_told_once(linear, tmp_path, caplog):
    with linear_watch(linear, tmp_path) as watch:
        for rate in (0.1, 0.2, 0.3):
            linear[1].param_groups[0]["lr"] = rate
            make_step(watch, linear)
    assert [message for message in caplog.messages if "planned" in message] == [
        "step 1: the learning rate is 0.2 where 0.1 was planned. Give the scheduler that sets it: whether a run can "
        "still learn depends on the rates to come."
    ]
    assert watch.history.plan.lr.tolist() == [0.1, 0.2, 0.3, 0.1]
    assert [shot.lr for shot in watch.history.snapshots] == [0.1, 0.2, 0.3]


def test_steps_beyond_the_planned_ones_are_not_watched(linear, tmp_path, caplog):
    with linear_watch(linear, tmp_path) as watch:
        for _ in range(7):
            make_step(watch, linear)
    assert [shot.step for shot in watch.history.snapshots] == [0, 1, 2, 3]
    told = [message for message in caplog.messages if "planned" in message]
    assert told == ["This is step 5 of 4 planned ones: it is not watched any more."]


def test_a_loss_that_is_not_finite(linear, tmp_path):
    with linear_watch(linear, tmp_path, total_steps=9, every=2) as watch:
        for step in range(9):
            make_step(watch, linear, torch.full((6, 3), torch.inf) if step == 3 else None)
            assert watch.doomed == (step >= 4)
    assert str(watch.diagnosis).startswith("step 3: diverged - loss/train is nan.")
    assert len(watch.history.losses) == 4
    assert [shot.step for shot in watch.history.snapshots] == [0, 2]


@pytest.mark.parametrize("done", [0, 3])
def test_an_error_in_the_loop_is_the_one_that_is_seen(linear, tmp_path, done):
    watch = linear_watch(linear, tmp_path, every=2)

    def loop():
        with watch:
            for _ in range(done):
                make_step(watch, linear)
            loss = linear[0](torch.ones(6, 3)).mean()
            loss.backward()
            with watch.step(loss, {"x": torch.ones(6, 3)}):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    stored = History.load(tmp_path / HISTORY_FILE)
    assert len(stored.losses) == done
    assert [shot.step for shot in stored.snapshots] == [0, 2][: (done + 1) // 2]


def test_verdicts_reach_the_log_and_the_loop(linear, tmp_path, caplog):
    rules = VerdictThresholds(min_logit_std=1e3, min_update_per_lr=1e3)  # whatever the numbers are, they are too small
    with linear_watch(linear, tmp_path, rules=rules) as watch:
        make_step(watch, linear)
        assert watch.diagnosis.verdict is Verdict.healthy or watch.doomed
        make_step(watch, linear)
        assert watch.doomed
    assert any(": collapsed - " in message for message in caplog.messages)


def test_a_compiled_model_has_the_labels_of_the_plain_one(linear, tmp_path):
    made, adamw = linear
    watch = Watch(torch.compile(made, backend="eager"), adamw, tmp_path, total_steps=1, labels=[0, 1])
    watch.close()
    assert watch.model is made


def test_another_optimizer_than_adam_is_told(linear, tmp_path, caplog):
    sgd = torch.optim.SGD(linear[0].parameters(), lr=0.1)
    linear_watch((linear[0], sgd), tmp_path).close()
    assert caplog.record_tuples == [
        (
            "bertmon.integrations.own_loop",
            logging.WARNING,
            "SGD is no Adam: the verdicts' thresholds were not set for it.",
        )
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 0}, "total_steps=0 is not possible: give a whole number of at least 1"),
        ({"labels": [1, 1]}, "labels=2 labels is not possible: give the labels of the texts, of two classes"),
        ({"every": 0}, "monitor.every=0 is not possible"),
    ],
)
def test_arguments_that_do_not_fit(linear, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        linear_watch(linear, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_model_a_scheduler_a_folder_and_scores_that_do_not_fit(linear, tmp_path):
    made, adamw = linear
    plateau = lr_scheduler.ReduceLROnPlateau(adamw)
    with pytest.raises(InputError, match="scheduler=ReduceLROnPlateau is not possible: its rates are not known"):
        linear_watch(linear, tmp_path, scheduler=plateau)
    with linear_watch(linear, tmp_path) as watch, pytest.raises(InputError, match="no weight has a gradient yet"):
        make_step(watch, linear, backward=False)
    watch = linear_watch(linear, tmp_path / "scores", logits=lambda batch: batch["x"][0])
    with watch, pytest.raises(InputError, match=r"logits=of shape \[3\] is not possible: give scores of shape"):
        make_step(watch, linear)
    with pytest.raises(InputError, match="holds a run already: give another folder"):
        linear_watch(linear, tmp_path)
    for parameter in made.parameters():
        parameter.requires_grad = False
    with pytest.raises(InputError, match="model=Linear is not possible: give one with weights that are trained"):
        linear_watch(linear, tmp_path / "other")
