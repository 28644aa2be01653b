"""The planned learning rates of a user's scheduler, and plans that turn out to be wrong."""

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler
from watched_training import examples, labels, tiny_bert

from bertmon.config import VerdictThresholds
from bertmon.errors import InputError
from bertmon.integrations.own_loop import Watch
from bertmon.monitor.diagnosis import Verdict

ROWS = examples(16)
BATCH = {
    "input_ids": torch.stack([row["input_ids"] for row in ROWS[:8]]),
    "labels": torch.tensor(labels(ROWS[:8])),
}


def drop_soon(optimizer):
    """A scheduler whose rate is almost 0 after two calls."""
    return lr_scheduler.StepLR(optimizer, 2, 1e-6)


def train(folder, make_scheduler, *, steps=12, stepped_every=1, overflows=(), **options):
    """A loop that calls its scheduler after every `stepped_every` updates. Returns the Watch."""
    model = tiny_bert()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = make_scheduler(adamw)
    scaler = torch.amp.GradScaler("cpu", enabled=bool(overflows))
    options = {
        "total_steps": steps,
        "scaler": scaler,
        "thresholds": VerdictThresholds(min_final_logit_std=1e-2),
    } | options
    options |= {"every": 2, "figures": False, "on_error": "raise"}
    with Watch(model, adamw, folder, labels=labels(ROWS), scheduler=scheduler, **options) as watch:
        for step in range(steps):
            loss = model(**BATCH).loss
            (scaler.scale(loss) * (torch.inf if step in overflows else 1.0)).backward()
            with watch.step(loss, BATCH):
                scaler.step(adamw)
                scaler.update()
            if (step + 1) % stepped_every == 0:
                scheduler.step()
            adamw.zero_grad()
    return watch


def test_scheduler_stepped_less_often_than_planned_gives_no_verdict(tmp_path, caplog):
    watch = train(tmp_path, drop_soon, stepped_every=6)
    assert [message for message in caplog.messages if "scheduler" in message] == [
        "step 1: scheduler.step() was called 0 times since step 0, but 1 calls were planned: no verdict rests on the "
        "remaining learning rates. Pass scheduler_every=..., the updates between two calls."
    ]
    assert not watch.doomed
    assert watch.history.plan.lr.tolist() == [1e-3] * 12


def test_scheduler_stepped_as_planned_gives_a_verdict_from_the_remaining_rates(tmp_path, caplog):
    watch = train(tmp_path, drop_soon)
    assert watch.diagnosis.verdict is Verdict.not_learning
    assert watch.history.plan.lr == pytest.approx([1e-3, 1e-3, *np.repeat(1e-3 * 1e-6 ** np.arange(1, 6), 2)])
    assert not [message for message in caplog.messages if "scheduler" in message]


def test_scheduler_every_plans_an_epoch_scheduler(tmp_path, caplog):
    watch = train(tmp_path, drop_soon, stepped_every=3, scheduler_every=3)
    assert watch.history.plan.lr == pytest.approx([1e-3] * 6 + [1e-9] * 6)
    assert watch.history.plan.lr_confirmed
    assert not [message for message in caplog.messages if "scheduler" in message]


def test_unconfirmed_plan_gives_no_verdict(tmp_path):
    watch = train(tmp_path, drop_soon, steps=1, total_steps=12)
    assert watch.diagnosis.verdict is Verdict.undecided


def test_scheduler_stepped_after_a_skipped_update_is_planned_again(tmp_path, caplog):
    def falling(optimizer):
        return lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    watch = train(tmp_path, falling, overflows=(1, 4))
    assert len(watch.history.losses) == 10
    counted = [step for step in range(12) if step not in (1, 4)]
    assert [shot.lr for shot in watch.history.snapshots] == pytest.approx([1e-3 / (1 + step) for step in counted[::2]])
    assert not [message for message in caplog.messages if "planned" in message]


def test_scheduler_every_below_1_is_refused(tmp_path):
    with pytest.raises(InputError, match="scheduler_every: expected an integer of at least 1, got 0"):
        train(tmp_path, drop_soon, scheduler_every=0)
