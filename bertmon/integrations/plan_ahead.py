"""Future learning rates of an optimizer and its scheduler, computed without training, and Adam's constants."""

import copy
import logging
import warnings
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from bertmon.config import OptimizerConfig
from bertmon.monitor.history import FloatArray

log = logging.getLogger(__name__)


def planned_learning_rates(
    optimizer: Optimizer,
    scheduler: Any,
    total_steps: int,
    *,
    first_step: int = 0,
    calls_per_step: int = 1,
    every: int = 1,
) -> FloatArray | None:
    """The largest learning rate of all groups at each remaining step [N]; optimizer and scheduler are not modified.

    first_step: updates done so far. After every `every` updates the scheduler is called `calls_per_step` times.
    Returns None if the rates depend on the course of training, as for ReduceLROnPlateau.
    """
    if scheduler is None:
        return np.full(total_steps, current_lr(optimizer))
    options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    stand_in = torch.optim.SGD([option | {"params": [nn.Parameter(torch.zeros(()))]} for option in options], lr=0.0)
    scheduler_copy = copy.deepcopy(scheduler, {id(optimizer): stand_in, id(scheduler.optimizer): stand_in})
    rates = np.empty(total_steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, because the stand-in optimizer is never stepped
        for step in range(total_steps):
            rates[step] = current_lr(stand_in)
            for _ in range(calls_per_step if (first_step + step + 1) % every == 0 else 0):
                try:
                    scheduler_copy.step()
                except TypeError:  # it requires a metric
                    return None
    return rates


def past_learning_rates(scheduler: Any, steps: int) -> FloatArray:
    """The learning rates of the steps before watching began [steps]; 0 where they are unknown.

    They can be computed for a LambdaLR, which transformers' schedules are.
    """
    rates = np.zeros(steps)
    if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        pairs = list(zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True))
        for step in range(steps):
            rates[step] = max(float(base) * float(factor(step)) for base, factor in pairs)
    return rates


def current_lr(optimizer: Optimizer) -> float:
    """The largest learning rate of the optimizer's parameter groups."""
    return max(float(group["lr"]) for group in optimizer.param_groups)


def group_lr_scales(optimizer: Optimizer) -> dict[nn.Parameter, float]:
    """Each parameter's learning rate relative to the largest group's; empty if all groups have the same rate."""
    rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    if len(set(rates)) == 1:
        return {}
    return {
        parameter: rate / max(rates) if rate > 0 else 1.0
        for rate, group in zip(rates, optimizer.param_groups, strict=True)
        for parameter in group["params"]
    }


def adam_config(optimizer: Optimizer, bias_correction: bool) -> OptimizerConfig:
    """Adam's constants; the defaults, with a warning, for any other optimizer."""
    group = optimizer.param_groups[0]
    if "betas" not in group:
        log.warning(f"Verdict thresholds were calibrated for Adam, not {type(optimizer).__name__}.")
        return OptimizerConfig()
    beta1, beta2 = group["betas"]
    return OptimizerConfig(bias_correction=bias_correction, beta1=float(beta1), beta2=float(beta2))
