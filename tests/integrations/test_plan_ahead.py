"""The planned learning rates of an optimizer and its scheduler, without training."""

import copy

import pytest
import torch
from torch.optim import lr_scheduler

from bertmon.config import OptimizerConfig
from bertmon.integrations.plan_ahead import adam_config, current_lr, past_learning_rates, planned_learning_rates


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
def test_planned_learning_rates_match_training(make):
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    adamw = torch.optim.AdamW([{"params": weights[:1], "lr": 0.1}, {"params": weights[1:], "lr": 0.4}])
    scheduler = make(adamw)
    before = copy.deepcopy((scheduler.state_dict(), adamw.state_dict()["param_groups"]))
    planned = planned_learning_rates(adamw, scheduler, 8)
    assert str((scheduler.state_dict(), adamw.state_dict()["param_groups"])) == str(before)
    actual = []
    for _ in range(8):
        actual.append(max(group["lr"] for group in adamw.param_groups))
        adamw.step()
        scheduler.step()
    assert planned.tolist() == actual


@pytest.mark.parametrize(
    "make",
    [
        lambda adamw: lr_scheduler.CosineAnnealingLR(adamw, 7),
        lambda adamw: lr_scheduler.LambdaLR(adamw, lambda step: 1 / (1 + step)),
    ],
)
def test_planning_does_not_change_rates_that_are_tensors(make):
    adamw = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=torch.tensor(0.1))
    scheduler = make(adamw)
    planned = planned_learning_rates(adamw, scheduler, 6)
    actual = []
    for _ in range(6):
        actual.append(float(adamw.param_groups[0]["lr"]))
        adamw.step()
        scheduler.step()
    assert actual[0] == pytest.approx(0.1)
    assert planned.tolist() == actual


class Owner:
    """A trainer whose method is a schedule, and which cannot be copied."""

    def __deepcopy__(self, memo):
        raise TypeError("cannot pickle '_io.TextIOWrapper' object")

    def factor(self, step):
        return 0.5**step


@pytest.mark.parametrize("nested", [False, True])
def test_object_whose_method_is_the_schedule_is_not_copied(nested):
    adamw = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=1.0)
    scheduler = lr_scheduler.LambdaLR(adamw, Owner().factor)
    if nested:
        scheduler = lr_scheduler.SequentialLR(adamw, [scheduler, lr_scheduler.ConstantLR(adamw, 1.0)], [9])
    assert planned_learning_rates(adamw, scheduler, 3).tolist() == [1.0, 0.5, 0.25]


def test_rates_of_a_scheduler_that_cannot_be_copied_are_unknown():
    adamw = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=1.0)
    scheduler = lr_scheduler.ExponentialLR(adamw, 0.5)
    scheduler.owner = Owner()
    assert planned_learning_rates(adamw, scheduler, 3) is None


def test_past_learning_rates_follow_the_scheduler_interval():
    adamw = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=1.0)
    scheduler = lr_scheduler.LambdaLR(adamw, lambda call: 0.5**call)
    past = past_learning_rates(scheduler, 7, calls_per_step=2, every=3)
    assert past.tolist() == [1, 1, 1, 0.25, 0.25, 0.25, 0.0625]


def test_planned_learning_rates_without_a_scheduler_are_constant():
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    adamw = torch.optim.AdamW([{"params": parameters[:1], "lr": 0.1}, {"params": parameters[1:], "lr": 0.4}])
    assert planned_learning_rates(adamw, None, 3).tolist() == [0.4, 0.4, 0.4]
    assert current_lr(adamw) == 0.4


def test_planned_learning_rates_that_depend_on_metrics_are_none():
    adamw = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    assert planned_learning_rates(adamw, lr_scheduler.ReduceLROnPlateau(adamw), 3) is None


@pytest.mark.parametrize(("calls", "steps"), [(2, 1), (1, 3)])
def test_planned_learning_rates_follow_the_scheduler_interval(calls, steps):
    adamw = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=1.0)
    scheduler = lr_scheduler.ExponentialLR(adamw, 0.5)
    planned = planned_learning_rates(adamw, scheduler, 7, calls_per_step=calls, every=steps)
    assert planned.tolist() == [0.5 ** (calls * (step // steps)) for step in range(7)]


@pytest.mark.parametrize("is_lambda", [True, False])
def test_past_learning_rates_of_a_lambda_schedule_are_computed_and_others_are_0(is_lambda):
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    adamw = torch.optim.AdamW([{"params": parameters[:1], "lr": 0.1}, {"params": parameters[1:], "lr": 0.4}])
    scheduler = (
        lr_scheduler.LambdaLR(adamw, lambda step: 1 / (1 + step))
        if is_lambda
        else lr_scheduler.ExponentialLR(adamw, 0.5)
    )
    expected = [0.4, 0.2, 0.4 / 3] if is_lambda else [0.0] * 3
    assert past_learning_rates(scheduler, 3).tolist() == pytest.approx(expected)


def test_adam_config_has_the_hyperparameters_of_the_optimizer():
    adam = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))], betas=(0.8, 0.95))
    config = adam_config(adam, bias_correction=False)
    assert (config.beta1, config.beta2, config.bias_correction) == (0.8, 0.95, False)


def test_adam_config_of_another_optimizer_is_the_default_with_a_warning(caplog):
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    assert adam_config(sgd, bias_correction=False) == OptimizerConfig()
    assert caplog.messages == ["Verdict thresholds were calibrated for Adam, not SGD."]
