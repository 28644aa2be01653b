"""Schedules of transformers and of the user, invalid schedules, and the steps at which a run is evaluated."""

import numpy as np
import pytest
import torch
from transformers import get_scheduler

from bertmon.config import Decay, ScheduleConfig, TrainConfig
from bertmon.errors import InputError
from bertmon.training.plan import evaluates_after, lr_factors, warmup_frac

SCHEDULES = {
    "inverse_sqrt": ({}, {}),
    "polynomial": ({"power": 2.0, "end_factor": 0.1}, {"power": 2.0, "lr_end": 0.1 * 3e-4}),
    "cosine_with_restarts": ({"cycles": 3}, {"num_cycles": 3}),
    "cosine_with_min_lr": ({"end_factor": 0.1}, {"min_lr_rate": 0.1}),
    "warmup_stable_decay": ({"decay_frac": 0.25, "end_factor": 0.0}, {"num_decay_steps": 10, "min_lr_ratio": 0.0}),
}


@pytest.mark.parametrize("decay", SCHEDULES)
def test_lr_factors_match_the_schedule_of_transformers(decay):
    keys, options = SCHEDULES[decay]
    factors = lr_factors(ScheduleConfig(decay=Decay(decay), warmup_frac=0.2, **keys), 40)
    adamw = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(()))], lr=3e-4)
    scheduler = get_scheduler(decay, adamw, 8, 40, scheduler_specific_kwargs=options)
    rates = []
    for _ in range(40):
        rates.append(adamw.param_groups[0]["lr"])
        adamw.step()
        scheduler.step()
    assert factors * 3e-4 == pytest.approx(rates, rel=1e-6)
    assert factors[8] == 1.0


def test_warmup_steps_replaces_warmup_frac():
    config = ScheduleConfig(warmup_frac=0.9, warmup_steps=4)
    assert warmup_frac(config, 20) == 0.2
    assert np.array_equal(lr_factors(config, 20), lr_factors(ScheduleConfig(warmup_frac=0.2), 20))
    assert warmup_frac(ScheduleConfig(warmup_steps=50), 20) == 1.0


def triangle(step, warmup_steps, total_steps):
    return min(step / warmup_steps, (total_steps - step) / (total_steps - warmup_steps))


def test_lr_factors_of_a_function_are_its_values(monkeypatch):
    config = ScheduleConfig(warmup_frac=0.5, function=f"{__name__}.triangle")
    assert lr_factors(config, 6).tolist() == [0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]


def negative(step, warmup_steps, total_steps):
    return 1.0 - step


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.at_all", r"schedule\.function: expected an importable module\.function, got nowhere\.at_all"),
        ("math.nothing", r"expected an importable module\.function, got math\.nothing"),
        ("plain", r"expected an importable module\.function, got plain"),
        (f"{__name__}.negative", r"expected finite factors of at least 0, got -1\.0 at step 2"),
    ],
)
def test_lr_factors_of_an_invalid_function_are_refused(name, message):
    with pytest.raises(InputError, match=message):
        lr_factors(ScheduleConfig(function=name), 5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"cycles": 2}, r"schedule\.cycles: expected null with decay=linear, got 2"),
        ({"decay": Decay.polynomial, "power": 1.0}, r"schedule\.end_factor: expected a number with decay=polynomial"),
        ({"decay": Decay.cosine_with_restarts, "cycles": 0}, r"schedule\.cycles: expected .*, got 0"),
        ({"warmup_steps": -1}, r"schedule\.warmup_steps: expected .*, got -1"),
    ],
)
def test_schedule_config_refuses_keys_that_the_decay_does_not_have(keys, message):
    with pytest.raises(InputError, match=message):
        ScheduleConfig(**keys)


def test_lr_factors_of_a_decay_that_does_not_fit_the_run_is_refused():
    config = ScheduleConfig(decay=Decay.warmup_stable_decay, warmup_frac=0.6, decay_frac=0.5, end_factor=0.0)
    with pytest.raises(InputError, match=r"schedule\.decay_frac: expected warm-up \(6 steps\) and decay \(5 steps\)"):
        lr_factors(config, 10)


@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch", "every", "expected"),
    [
        (3, 225, None, [57, 113, 169, 225, 282, 338, 394, 450, 507, 563, 619, 675]),
        (1, 1000, None, list(range(100, 1001, 100))),
        (20, 5, None, list(range(5, 101, 5))),
        (2, 3, None, [1, 2, 3, 4, 5, 6]),
        (2, 10, 4, [4, 8, 10, 12, 16, 20]),
        (2, 10, 100, [10, 20]),
    ],
)
def test_evaluations_divide_epochs_evenly_or_come_every_n_steps(epochs, steps_per_epoch, every, expected):
    config = TrainConfig(epochs=epochs, eval_every=every)
    steps = range(1, epochs * steps_per_epoch + 1)
    assert [step for step in steps if evaluates_after(step, config, steps_per_epoch)] == expected
