"""What an optimizer and its scheduler will do, found without training: learning rates to come, and Adam's constants."""

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
    """The learning rate of every step to come [N], that of the group with the largest; neither argument is changed.

    first_step: updates done. every, calls_per_step: the scheduler is stepped after every so many updates, so often.
    None: the rates depend on what happens, as those of ReduceLROnPlateau do.
    """
    if scheduler is None:
        return np.full(total_steps, current_lr(optimizer))
    options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    stand_in = torch.optim.SGD([option | {"params": [nn.Parameter(torch.zeros(()))]} for option in options], lr=0.0)
    ahead = copy.deepcopy(scheduler, {id(optimizer): stand_in, id(scheduler.optimizer): stand_in})
    rates = np.empty(total_steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the stand-in has not been stepped: it has nothing to learn
        for step in range(total_steps):
            rates[step] = current_lr(stand_in)
            for _ in range(calls_per_step if (first_step + step + 1) % every == 0 else 0):
                try:
                    ahead.step()
                except TypeError:  # it needs to know a metric
                    return None
    return rates


def past_learning_rates(scheduler: Any, steps: int) -> FloatArray:
    """The learning rates of the steps that were done before anything was watched [steps]; 0 where they are unknown.

    A LambdaLR's, which transformers' schedules are, can be computed.
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
    """Of each parameter its group's share of the largest learning rate, where groups have different ones."""
    rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    if len(set(rates)) == 1:
        return {}
    return {
        parameter: rate / max(rates) if rate > 0 else 1.0
        for rate, group in zip(rates, optimizer.param_groups, strict=True)
        for parameter in group["params"]
    }


def adam_config(optimizer: Optimizer, bias_correction: bool) -> OptimizerConfig:
    """Adam's constants; those of the default, with a warning, for another optimizer."""
    group = optimizer.param_groups[0]
    if "betas" not in group:
        log.warning(f"Verdict thresholds were calibrated for Adam, not {type(optimizer).__name__}.")
        return OptimizerConfig()
    beta1, beta2 = group["betas"]
    return OptimizerConfig(bias_correction=bias_correction, beta1=float(beta1), beta2=float(beta2))
