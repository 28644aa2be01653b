"""Future learning rates of an optimizer and its scheduler, computed without training, and Adam's constants."""

import copy
import logging
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
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
    options = [  # copies of rates that are tensors: schedulers change those in place
        {key: value.clone() if isinstance(value, Tensor) else value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    stand_in = torch.optim.SGD([option | {"params": [nn.Parameter(torch.zeros(()))]} for option in options], lr=0.0)
    not_copied = {id(optimizer): stand_in, id(scheduler.optimizer): stand_in} | _objects_of_lambdas(scheduler)
    try:
        scheduler_copy = copy.deepcopy(scheduler, not_copied)
    except Exception as error:  # it can refer to anything
        log.debug(f"could not copy the scheduler: {error}")
        return None
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


def _objects_of_lambdas(scheduler: Any) -> dict[int, Any]:
    """The objects, by id, whose bound methods are a LambdaLR's functions: a trainer can hold the whole model."""
    nested = [scheduler, *getattr(scheduler, "_schedulers", ())]
    functions = [function for each in nested for function in getattr(each, "lr_lambdas", ())]
    return {id(owner): owner for function in functions if (owner := getattr(function, "__self__", None)) is not None}


def past_learning_rates(scheduler: Any, steps: int, *, calls_per_step: int = 1, every: int = 1) -> FloatArray:
    """The learning rates of the steps before watching began [steps]; 0 where they are unknown.

    They can be computed for a LambdaLR, which transformers' schedules are. calls_per_step, every: as above.
    """
    rates = np.zeros(steps)
    if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        pairs = list(zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True))
        for step in range(steps):
            calls = step // every * calls_per_step
            rates[step] = max(float(base) * float(factor(calls)) for base, factor in pairs)
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
