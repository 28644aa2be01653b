import pytest

from bertmon.schedule import lr_factor, warmup_steps

TABLE = [  # decay, warmup_frac, the factor at each of 5 steps
    ("linear", 0.0, [1, 4 / 5, 3 / 5, 2 / 5, 1 / 5]),
    ("linear", 0.4, [0, 1 / 2, 1, 2 / 3, 1 / 3]),
    ("linear", 1.0, [0, 1 / 5, 2 / 5, 3 / 5, 4 / 5]),
    ("cosine", 0.0, [1, 0.9045084972, 0.6545084972, 0.3454915028, 0.0954915028]),
    ("cosine", 0.4, [0, 1 / 2, 1, 3 / 4, 1 / 4]),
    ("constant", 0.0, [1, 1, 1, 1, 1]),
    ("constant", 0.4, [0, 1 / 2, 1, 1, 1]),
]


@pytest.mark.parametrize(("decay", "warmup_frac", "factors"), TABLE)
def test_lr_factor_of_five_steps_matches_the_table(decay, warmup_frac, factors):
    factors_at = [lr_factor(step, decay=decay, warmup_frac=warmup_frac, total_steps=5) for step in range(5)]
    assert factors_at == pytest.approx(factors, abs=1e-9)


@pytest.mark.parametrize(
    ("warmup_frac", "total_steps", "steps"),
    [(0.1, 640, 64), (0.7, 640, 448), (0.1, 675, 68), (0.3, 675, 203), (0.5, 1, 1), (0.4, 1, 0), (0, 9, 0), (1, 9, 9)],
)
def test_warmup_steps_of_every_fraction_round_half_up(warmup_frac, total_steps, steps):
    assert warmup_steps(warmup_frac, total_steps) == steps


@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
def test_lr_factor_at_the_end_of_the_warm_up_is_exactly_1(decay):
    for total_steps in (10, 675):
        for percent in range(0, 100, 7):
            warmup = warmup_steps(percent / 100, total_steps)
            if warmup == total_steps:  # all warm-up: the peak would be the next step's
                continue
            assert lr_factor(warmup, decay=decay, warmup_frac=percent / 100, total_steps=total_steps) == 1


def test_lr_factor_equals_the_schedules_of_transformers():
    import torch
    from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

    for decay, make in (("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        theirs = make(optimizer, num_warmup_steps=warmup_steps(0.3, 50), num_training_steps=50)
        for step in range(50):
            ours = lr_factor(step, decay=decay, warmup_frac=0.3, total_steps=50)
            assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
            optimizer.step()
            theirs.step()
