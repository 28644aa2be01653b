import math

import pytest
import torch

from bertmon import model, schedule, train
from bertmon.monitor.watch import Watch
from bertmon.run import assemble


def trained(settings, *, watched=False):
    """A run without folder or writer: the parts, the outcome, the points of each tag, the snapshots."""
    parts = assemble(settings, torch.device("cpu"))
    points, snapshots = {}, []

    class Sink:
        def snapshot(self, snapshot):
            snapshots.append(snapshot)

    def record(step, values):
        for tag, value in values.items():
            points.setdefault(tag, []).append((step, value))

    watch = Watch(model.layers(parts.classifier), every=2, sink=Sink()) if watched else None
    outcome = train.Outcome()
    train.fit(
        parts.classifier,
        parts.optimizer,
        parts.train,
        parts.test,
        settings,
        watch=watch,
        record=record,
        outcome=outcome,
        name="test",
    )
    return parts, outcome, points, snapshots


def weights(parts):
    return torch.cat([parameter.detach().flatten() for parameter in parts.classifier.parameters()])


def test_two_runs_of_one_seed_are_bit_for_bit_the_same(settings):
    first, _, first_points, _ = trained(settings)
    second, _, second_points, _ = trained(settings)
    assert torch.equal(weights(first), weights(second))
    assert first_points == second_points


def test_watching_changes_no_bit_of_the_weights(settings):
    watched, _, points, snapshots = trained(settings, watched=True)
    alone, _, points_alone, _ = trained(settings)
    assert len(snapshots) == 6
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

    plain = assemble(settings, torch.device("cpu"))
    adamw = torch.optim.AdamW(
        plain.classifier.parameters(), lr=0, weight_decay=0, eps=settings.optimizer.eps, fused=True
    )
    losses = []
    for epoch in range(2):
        for batch in plain.train.shuffled(settings.seed, epoch):
            lr = schedule.factor(len(losses), shape="linear", warmup_frac=0.25, total_steps=12) * settings.optimizer.lr
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
        (step, settings.optimizer.lr * schedule.factor(step, shape="linear", warmup_frac=0.25, total_steps=12))
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
    for batch in parts.test.by_length():
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


def test_a_loss_that_is_not_finite_ends_training(settings):
    settings.optimizer.lr = 1e30
    settings.train.clip = None
    settings.train.log_every = 1
    _, outcome, points, _ = trained(settings)
    assert outcome.status == "diverged"
    assert outcome.steps < 12
    assert outcome.evaluations[-1].step == outcome.steps
    assert not math.isfinite(points["loss/train"][-1][1])
    assert all(math.isfinite(loss) for _, loss in points["loss/train"][:-1])


def test_an_evaluation_that_is_not_finite_ends_training_too(settings):
    settings.optimizer.lr = 1e30
    settings.train.clip = None
    settings.train.log_every = 1000
    settings.train.eval_every = 3
    _, outcome, points, _ = trained(settings)
    assert outcome.status == "diverged"
    assert outcome.steps == 3
    assert [step for step, _ in points["loss/train"]] == [0]
