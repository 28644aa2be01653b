import dataclasses
import itertools
import math
import unittest.mock

import pytest
import torch

from bertmon import model, schedule
from bertmon.config import OnDoomed, VerdictThresholds
from bertmon.monitor.diagnosis import Verdict, diagnose
from bertmon.monitor.history import History
from bertmon.monitor.monitor import Monitor
from bertmon.run import build_task
from bertmon.training import step, trainer


def trained(settings, *, watched=False):
    """A run without folder or writer: the parts, the outcome, the points of each tag, the history."""
    corpus, parts = build_task(settings, torch.device("cpu"))
    history = History(trainer.plan_run(settings, len(parts.train), corpus.train.label_entropy()))
    points = {}

    def record(step, values):
        for tag, value in values.items():
            points.setdefault(tag, []).append((step, value))

    sink = unittest.mock.Mock()
    observer = Monitor(model.named_weights(parts.classifier), history, settings.monitor, sink) if watched else None
    outcome = trainer.TrainState()
    trainer.fit(parts, settings, history, observer=observer, record=record, outcome=outcome, name="test")
    return parts, outcome, points, history


def weights(parts):
    return torch.cat([parameter.detach().flatten() for parameter in parts.classifier.parameters()])


def test_two_runs_of_one_seed_are_bit_for_bit_the_same(settings):
    first, _, first_points, _ = trained(settings)
    second, _, second_points, _ = trained(settings)
    assert torch.equal(weights(first), weights(second))
    assert first_points == second_points


def test_watching_changes_no_bit_of_the_weights(settings):
    settings.monitor.every = 2
    watched, _, points, history = trained(settings, watched=True)
    alone, _, points_alone, _ = trained(settings)
    assert [snapshot.step for snapshot in history.snapshots] == [0, 2, 4, 6, 8, 10]
    assert torch.equal(weights(watched), weights(alone))
    assert points == points_alone


def test_another_seed_gives_other_weights_and_another_order(settings):
    first, _, points, _ = trained(settings)
    settings.seed += 1
    second, _, other_points, _ = trained(settings)
    assert not torch.equal(weights(first), weights(second))
    assert points["loss/train"] != other_points["loss/train"]
    assert points["learning_rate"] == other_points["learning_rate"]


def test_it_equals_a_plain_loop(settings):
    parts, outcome, points, _ = trained(settings)

    _, plain = build_task(settings, torch.device("cpu"))
    adamw = torch.optim.AdamW(
        plain.classifier.parameters(), lr=0, weight_decay=0, eps=settings.optimizer.eps, fused=True
    )
    losses = []
    for epoch in range(2):
        for batch in plain.train.epoch_batches(settings.seed, epoch):
            lr = (
                schedule.lr_factor(len(losses), shape="linear", warmup_frac=0.25, total_steps=12)
                * settings.optimizer.lr
            )
            for group in adamw.param_groups:
                group["lr"] = lr
            output = plain.classifier(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
            )
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.classifier.parameters(), 1.0)
            adamw.step()
            adamw.zero_grad()
            losses.append(output.loss.item())

    torch.testing.assert_close(weights(parts), weights(plain), rtol=1e-5, atol=1e-7)
    assert outcome.steps == len(losses) == 12
    means = [losses[0], *(sum(losses[step - 1 : step + 1]) / 2 for step in range(2, 11, 2)), losses[11]]
    assert [step for step, _ in points["loss/train"]] == [0, 2, 4, 6, 8, 10, 11]
    assert [loss for _, loss in points["loss/train"]] == pytest.approx(means, rel=1e-5)


def test_the_logged_rate_is_the_one_the_step_used(settings):
    _, _, points, _ = trained(settings)
    expected = [
        (step, settings.optimizer.lr * schedule.lr_factor(step, shape="linear", warmup_frac=0.25, total_steps=12))
        for step in [0, 2, 4, 6, 8, 10, 11]
    ]
    assert points["learning_rate"] == expected
    assert expected[0] == (0, 0.0)


@pytest.mark.parametrize(("eval_every", "steps"), [(None, [6, 12]), (4, [4, 6, 8, 12]), (100, [6, 12])])
def test_evaluations_come_every_n_steps_and_at_each_epochs_end(settings, eval_every, steps):
    settings.train.eval_every = eval_every
    _, outcome, points, _ = trained(settings)
    assert [evaluation.step for evaluation in outcome.evaluations] == steps
    assert [step for step, _ in points["accuracy/test"]] == [step for step, _ in points["loss/test"]] == steps
    assert points["accuracy/test"][-1][1] == outcome.evaluations[-1].accuracy


def test_an_evaluation_has_no_influence_on_training(settings):
    seldom, _, _, _ = trained(settings)
    settings.train.eval_every = 1
    often, _, _, _ = trained(settings)
    assert torch.equal(weights(seldom), weights(often))


def test_evaluation_equals_one_text_at_a_time_in_eval_mode(settings):
    parts, outcome, _, _ = trained(settings)
    assert parts.classifier.training
    parts.classifier.eval()
    losses, right = [], 0
    for batch in parts.test.sorted_by_length():
        for row, label in enumerate(batch.labels.tolist()):
            length = int(batch.attention_mask[row].sum())
            with torch.no_grad():
                scores = parts.classifier(input_ids=batch.input_ids[row : row + 1, :length]).logits[0]
            losses.append(-scores.log_softmax(dim=0)[label].item())
            right += scores.argmax().item() == label
    assert outcome.evaluations[-1].loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert outcome.evaluations[-1].accuracy == right / len(losses)


def test_it_learns(settings):
    settings.train.epochs = 12
    settings.optimizer.lr = 5e-3
    _, outcome, points, _ = trained(settings)
    assert outcome.status == "ok"
    assert outcome.evaluations[-1].accuracy == 1.0
    assert points["loss/train"][-1][1] < 0.3 < points["loss/train"][0][1]


DOOMED = VerdictThresholds(min_logit_std=1e3, min_depth_ratio=1e3)  # every run is, at its first snapshot


def test_a_doomed_run_is_stopped_where_that_is_asked_for(settings):
    settings.monitor.thresholds, settings.monitor.every = DOOMED, 4
    warned, outcome, _, _ = trained(settings, watched=True)
    assert (outcome.status, outcome.steps) == ("ok", 12)
    alone, _, _, _ = trained(settings)
    assert torch.equal(weights(warned), weights(alone))

    settings.monitor.on_doomed = OnDoomed.stop
    _, outcome, points, history = trained(settings, watched=True)
    assert (outcome.status, outcome.steps) == ("stopped", 1)
    assert [evaluation.step for evaluation in outcome.evaluations] == [1]
    assert points["loss/train"] == [(0, history.losses[0])]
    assert [snapshot.step for snapshot in history.snapshots] == [0]


def test_doomed_at_the_last_step_is_not_stopped(settings):
    settings.monitor.on_doomed, settings.monitor.every = OnDoomed.stop, 11
    settings.monitor.thresholds = VerdictThresholds(
        min_logit_std=1e3, min_update_per_lr=1e3
    )  # at step 0 nothing has moved
    _, outcome, _, history = trained(settings, watched=True)
    assert [snapshot.step for snapshot in history.snapshots] == [0, 11]
    assert diagnose(history, settings.monitor.thresholds).verdict is Verdict.collapsed
    assert (outcome.status, outcome.steps) == ("ok", 12)


def test_an_evaluation_that_is_not_finite_is_a_divergence_with_a_verdict(settings, monkeypatch):
    original = trainer.evaluate
    monkeypatch.setattr(
        trainer, "evaluate", lambda *args, **rest: dataclasses.replace(original(*args, **rest), loss=math.nan)
    )
    told = []
    monkeypatch.setattr(Monitor, "judge", lambda self, found: told.append(found))
    _, outcome, _, _ = trained(settings, watched=True)
    assert (outcome.status, outcome.steps) == ("diverged", 6)
    assert str(told[-1]).startswith("step 6: diverged - loss/test is nan. Likely cause: a learning rate of 1e-3")


def test_every_point_is_that_of_its_steps(settings):
    settings.optimizer.bias_correction = False
    settings.train.max_grad_norm = 0.3
    _, _, points, history = trained(settings)
    norms = history.grad_norms
    assert len(norms) == len(history.losses) == 12
    assert points["grad_norm"][1] == (2, pytest.approx(sum(norms[1:3]) / 2))
    shares = [sum(norm > 0.3 for norm in norms[a:b]) / (b - a) for a, b in ((0, 1), (1, 3), (9, 11), (11, 12))]
    assert [points["clipped"][at][1] for at in (0, 1, 5, 6)] == shares
    assert 0 < sum(share for _, share in points["clipped"]) < 7
    lr, effective = (dict(points[tag]) for tag in ("learning_rate", "effective_learning_rate"))
    assert effective[4] == pytest.approx(lr[4] * (1 - 0.9**5) / math.sqrt(1 - 0.999**5))


@pytest.mark.parametrize("log_every", [1, 1000])
def test_a_loss_that_is_not_finite_ends_training_before_it_reaches_the_weights(settings, log_every):
    settings.optimizer.lr = 1e30
    settings.train.max_grad_norm = None
    settings.train.log_every = log_every
    settings.train.eval_every = 4
    settings.monitor.every = 2
    parts, outcome, points, history = trained(settings, watched=True)
    assert outcome.status == "diverged"
    assert outcome.steps == 2  # the first has rate 0, the second breaks everything
    assert weights(parts).isfinite().all()
    assert outcome.evaluations[-1].step == outcome.steps
    assert not math.isfinite(points["loss/train"][-1][1])
    assert points["loss/train"][-1][0] == 2
    assert [math.isfinite(loss) for loss in history.losses] == [True, True, False]
    assert [snapshot.step for snapshot in history.snapshots] == [0, 2]
    moments = [state["exp_avg"] for state in parts.optimizer.state.values()]
    assert all(moment.isfinite().all() for moment in moments)


def test_a_gradient_that_is_not_finite_ends_training_though_the_loss_is_finite(settings, monkeypatch):
    original = step.forward_backward

    def spoiled(model, *rest):
        found = original(model, *rest)
        if next(calls) == 5:
            next(model.parameters()).grad[0, 0] = math.nan
        return found

    calls = itertools.count()
    every_batch = trainer._all_epochs
    monkeypatch.setattr(trainer, "forward_backward", spoiled)
    settings.train.log_every = 1000  # nobody looks before the epoch's end
    settings.train.epochs = 3
    settings.train.batch_size = 3
    parts, outcome, _, history = trained(settings)
    assert (outcome.status, outcome.steps, len(history.losses)) == ("diverged", 5, 6)
    assert math.isnan(history.grad_norms[-1])
    assert next(calls) > 7  # steps went on, with gradients that were finite again, and changed nothing

    calls = itertools.count(-(10**6))  # nothing is spoiled
    monkeypatch.setattr(trainer, "_all_epochs", lambda *given: itertools.islice(every_batch(*given), 5))
    whole, _, _, _ = trained(settings)
    assert torch.equal(weights(parts), weights(whole))


def test_a_loss_that_is_not_finite_stops_finite_gradients_too():
    layer = torch.nn.Linear(2, 2)
    updater = step.GuardedUpdate(layer, torch.optim.AdamW(layer.parameters(), fused=True), clip=None)
    before = layer.weight.detach().clone()
    for loss in (math.inf, 1.0):  # once stopped, stopped
        layer.weight.grad, layer.bias.grad = torch.ones(2, 2), torch.ones(2)
        assert updater.update(torch.tensor(loss), lr=1.0).item() == pytest.approx(6**0.5)
        assert torch.equal(layer.weight, before)
