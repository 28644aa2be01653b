"""The training loop: the same bits with and without monitoring, logged points, and every way that a run ends."""

import dataclasses
import itertools
import math

import pytest
import torch
from conftest import PreparedRun, without_monitor

from bertmon import schedule
from bertmon.config import OnDoomed, VerdictThresholds
from bertmon.metrics import best_evaluation
from bertmon.monitor.diagnosis import Verdict
from bertmon.result import Status
from bertmon.training import trainer

LOGGED_STEPS = [0, 2, 4, 6, 8, 10, 11]
"""Of 12 steps, with log_every=2."""


def train(settings):
    return PreparedRun(settings).fit()


# --- bit for bit ---------------------------------------------------------------------------------


def test_trainer_with_the_same_seed_gives_the_same_bits(settings):
    first, second = train(settings), train(settings)
    assert torch.equal(first.weights(), second.weights())
    assert first.log.points == second.log.points


def test_trainer_with_monitor_off_gives_the_same_weights_and_scalars(settings):
    settings.monitor.every = 2
    watched, alone = train(settings), train(without_monitor(settings))
    assert [snapshot.step for snapshot in watched.history.snapshots] == [0, 2, 4, 6, 8, 10]
    assert alone.history.snapshots == []
    assert alone.monitor.diagnosis is None
    assert torch.equal(watched.weights(), alone.weights())
    assert (watched.history.losses, watched.history.grad_norms) == (alone.history.losses, alone.history.grad_norms)
    signals = {tag for snapshot in watched.history.snapshots for tag in snapshot.signals}
    assert signals >= {"logit_std", "depth_ratio", "update_per_lr/linear"}
    assert {tag: points for tag, points in watched.log.points.items() if tag not in signals} == alone.log.points


def test_trainer_with_another_seed_gives_other_weights_and_another_order(settings):
    first = train(settings)
    settings.seed += 1
    second = train(settings)
    assert not torch.equal(first.weights(), second.weights())
    assert first.log.points["loss/train"] != second.log.points["loss/train"]
    assert first.log.points["learning_rate"] == second.log.points["learning_rate"]


def test_trainer_on_a_task_equals_a_plain_loop(settings):
    run = train(settings)

    plain = PreparedRun(settings).task
    adamw = torch.optim.AdamW(
        plain.classifier.parameters(), lr=0, weight_decay=0, eps=settings.optimizer.eps, fused=True
    )
    losses = []
    for epoch in range(2):
        for batch in plain.train.epoch_batches(settings.seed, epoch):
            factor = schedule.lr_factor(len(losses), decay="linear", warmup_frac=0.25, total_steps=12)
            for group in adamw.param_groups:
                group["lr"] = factor * settings.optimizer.lr
            output = plain.classifier(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
            )
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.classifier.parameters(), 1.0)
            adamw.step()
            adamw.zero_grad()
            losses.append(output.loss.item())

    plain_weights = torch.cat([parameter.detach().flatten() for parameter in plain.classifier.parameters()])
    torch.testing.assert_close(run.weights(), plain_weights, rtol=1e-5, atol=1e-7)
    assert run.state.steps == len(losses) == 12
    means = [losses[0], *(sum(losses[step - 1 : step + 1]) / 2 for step in range(2, 11, 2)), losses[11]]
    assert [step for step, _ in run.log.points["loss/train"]] == LOGGED_STEPS
    assert [loss for _, loss in run.log.points["loss/train"]] == pytest.approx(means, rel=1e-5)


# --- points --------------------------------------------------------------------------------------


def test_logged_learning_rate_is_the_one_that_the_step_used(settings):
    run = train(settings)
    expected = [
        (step, settings.optimizer.lr * schedule.lr_factor(step, decay="linear", warmup_frac=0.25, total_steps=12))
        for step in LOGGED_STEPS
    ]
    assert run.log.points["learning_rate"] == expected
    assert expected[0] == (0, 0.0)


@pytest.mark.parametrize("enabled", [True, False])
def test_logged_scalars_are_means_over_the_steps_since_the_last_ones(settings, enabled):
    settings.monitor.enabled = enabled
    settings.optimizer.bias_correction = False
    settings.train.max_grad_norm = 0.3
    run = train(settings)
    points, norms = run.log.points, run.history.grad_norms
    assert len(norms) == len(run.history.losses) == 12
    assert points["grad_norm"][1] == (2, pytest.approx(sum(norms[1:3]) / 2))
    shares = [sum(norm > 0.3 for norm in norms[a:b]) / (b - a) for a, b in ((0, 1), (1, 3), (9, 11), (11, 12))]
    assert [points["clipped"][at][1] for at in (0, 1, 5, 6)] == shares
    assert 0 < sum(share for _, share in points["clipped"]) < 7
    lr, effective = (dict(points[tag]) for tag in ("learning_rate", "effective_learning_rate"))
    assert effective[4] == pytest.approx(lr[4] * (1 - 0.9**5) / math.sqrt(1 - 0.999**5))


# --- evaluations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("eval_every", "steps"), [(4, [0, 4, 6, 8, 12]), (100, [0, 6, 12])])
def test_evaluations_are_at_step_0_every_n_steps_and_at_the_ends_of_epochs(settings, eval_every, steps):
    settings.train.eval_every = eval_every
    run = train(settings)
    assert [evaluation.step for evaluation in run.state.evaluations] == steps
    for tag in ("accuracy", "loss"):
        values = [(each.step, getattr(each, tag)) for each in run.state.evaluations]
        assert run.log.points[f"{tag}/test"] == values


def test_evaluation_before_the_first_step_is_not_the_best(settings, monkeypatch):
    evaluate = trainer.evaluate

    def falling(*arguments, step, **options):
        return dataclasses.replace(evaluate(*arguments, step=step, **options), accuracy=1 / (1 + step))

    monkeypatch.setattr(trainer, "evaluate", falling)
    settings.train.eval_every, settings.train.patience = 4, 3
    run = train(settings)
    assert (run.state.status, run.state.steps) == (Status.finished, 12)  # 6, 8 and 12 are no better than 4
    assert best_evaluation(run.state.evaluations, "accuracy").step == 4
    settings.train.patience = 2
    assert train(settings).state.steps == 8


def test_evaluations_at_every_step_do_not_affect_training(settings):
    seldom = train(settings)
    settings.train.eval_every = 1
    often = train(settings)
    assert torch.equal(seldom.weights(), often.weights())


def test_evaluation_equals_one_text_at_a_time_in_eval_mode(settings):
    run = train(settings)
    classifier = run.task.classifier
    assert classifier.training
    classifier.eval()
    losses, correct = [], 0
    for batch in run.task.test.sorted_by_length():
        for row, label in enumerate(batch.labels.tolist()):
            length = int(batch.attention_mask[row].sum())
            with torch.no_grad():
                logits = classifier(input_ids=batch.input_ids[row : row + 1, :length]).logits[0]
            losses.append(-logits.log_softmax(dim=0)[label].item())
            correct += logits.argmax().item() == label
    assert run.state.evaluations[-1].loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert run.state.evaluations[-1].accuracy == correct / len(losses)


# --- how a run ends ------------------------------------------------------------------------------


def test_trainer_with_enough_steps_learns(settings):
    settings.train.epochs = 12
    settings.optimizer.lr = 5e-3
    run = train(settings)
    assert run.state.status is Status.finished
    assert run.state.ended
    assert run.state.evaluations[-1].accuracy == 1.0
    losses = run.log.points["loss/train"]
    assert losses[-1][1] < 0.3 < losses[0][1]


DOOMED = VerdictThresholds(min_logit_std=1e3, min_depth_ratio=1e3)  # every run is doomed at its first snapshot


def test_doomed_run_continues_with_warn_and_ends_with_stop(settings):
    settings.monitor.thresholds, settings.monitor.every = DOOMED, 4
    warned = train(settings)
    assert warned.monitor.doomed
    assert (warned.state.status, warned.state.steps) == (Status.finished, 12)
    assert torch.equal(warned.weights(), train(without_monitor(settings)).weights())

    settings.monitor.on_doomed = OnDoomed.stop
    stopped = train(settings)
    assert (stopped.state.status, stopped.state.steps) == (Status.stopped, 1)
    assert [evaluation.step for evaluation in stopped.state.evaluations] == [0, 1]
    assert stopped.log.points["loss/train"] == [(0, stopped.history.losses[0])]
    assert [snapshot.step for snapshot in stopped.history.snapshots] == [0]


def test_doomed_run_with_monitor_off_is_never_stopped(settings):
    settings.monitor.thresholds, settings.monitor.on_doomed = DOOMED, OnDoomed.stop
    run = train(without_monitor(settings))
    assert (run.state.status, run.state.steps, run.monitor.doomed) == (Status.finished, 12, False)


def test_run_that_is_doomed_at_its_last_step_is_finished(settings):
    settings.monitor.on_doomed, settings.monitor.every = OnDoomed.stop, 11
    # at step 0 no weight has moved, so the second signal of a collapse is missing
    settings.monitor.thresholds = VerdictThresholds(min_logit_std=1e3, min_update_per_lr=1e3)
    run = train(settings)
    assert [snapshot.step for snapshot in run.history.snapshots] == [0, 11]
    assert run.monitor.diagnosis.verdict is Verdict.collapsed
    assert (run.state.status, run.state.steps) == (Status.finished, 12)


@pytest.mark.parametrize("enabled", [True, False])
def test_non_finite_evaluation_ends_the_run_as_diverged(settings, monkeypatch, enabled):
    settings.monitor.enabled = enabled
    settings.train.eval_every = 4
    evaluate = trainer.evaluate

    def broken(*arguments, step, **options):
        result = evaluate(*arguments, step=step, **options)
        return dataclasses.replace(result, loss=math.nan) if step >= first else result

    monkeypatch.setattr(trainer, "evaluate", broken)
    first = 0  # like pretrained weights that are not finite
    run = train(settings)
    assert (run.state.status, run.state.steps, run.history.losses) == (Status.diverged, 0, [])
    first = 1
    run = train(settings)
    assert (run.state.status, run.state.steps) == (Status.diverged, 4)
    if enabled:
        text = "step 4: diverged - loss/test is nan. Likely cause: a learning rate of 1e-3"
        assert str(run.monitor.diagnosis).startswith(text)
        assert run.log.texts[-1] == ("verdict", str(run.monitor.diagnosis), 4)
    else:
        assert run.monitor.diagnosis is None


@pytest.mark.parametrize("log_every", [1, 1000])
def test_non_finite_loss_ends_training_before_it_reaches_the_weights(settings, log_every):
    settings.optimizer.lr = 1e30
    settings.train.max_grad_norm = None
    settings.train.log_every = log_every
    settings.train.eval_every = 4
    settings.monitor.every = 2
    run = train(settings)
    assert run.state.status is Status.diverged
    assert run.state.steps == 2  # the first has rate 0, the second diverges
    assert run.weights().isfinite().all()
    assert run.state.evaluations[-1].step == run.state.steps
    last_step, last_loss = run.log.points["loss/train"][-1]
    assert last_step == 2
    assert not math.isfinite(last_loss)
    assert [math.isfinite(loss) for loss in run.history.losses] == [True, True, False]
    assert [snapshot.step for snapshot in run.history.snapshots] == [0, 2]
    moments = [state["exp_avg"] for state in run.task.optimizer.state.values()]
    assert all(moment.isfinite().all() for moment in moments)


@pytest.mark.parametrize("enabled", [True, False])
def test_non_finite_gradient_ends_training_even_if_the_loss_is_finite(settings, monkeypatch, enabled):
    calls = itertools.count()
    forward_backward = trainer.forward_backward

    def with_nan_gradient(model, *rest):
        loss_and_logits = forward_backward(model, *rest)
        if next(calls) == 5:
            next(model.parameters()).grad[0, 0] = math.nan
        return loss_and_logits

    settings.monitor.enabled = enabled
    settings.train.log_every = 1000  # nothing is read before the epoch's end
    settings.train.epochs = 3
    settings.train.batch_size = 3
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "forward_backward", with_nan_gradient)
        run = train(settings)
    assert (run.state.status, run.state.steps, len(run.history.losses)) == (Status.diverged, 5, 6)
    assert math.isnan(run.history.grad_norms[-1])
    assert next(calls) > 7  # steps continued, with gradients that were finite again, and changed nothing

    shorter = PreparedRun(settings)
    batches = trainer.Trainer._remaining_batches
    monkeypatch.setattr(trainer.Trainer, "_remaining_batches", lambda self: itertools.islice(batches(self), 5))
    assert torch.equal(run.weights(), shorter.fit().weights())
