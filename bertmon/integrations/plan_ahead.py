"""What an optimizer and its scheduler will do, found without training: learning rates to come, and Adam's constants."""

import copy
import logging
import warnings

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bertmon.config import OptimizerConfig
from bertmon.errors import InputError
from bertmon.monitor.history import FloatArray

log = logging.getLogger(__name__)


def planned_learning_rates(optimizer: Optimizer, scheduler: LRScheduler | None, total_steps: int) -> FloatArray:
    """The learning rate of every step to come [N], that of the group with the largest; neither argument is changed.

    Raises InputError for a scheduler whose rates depend on what happens, such as ReduceLROnPlateau.
    """
    if scheduler is None:
        return np.full(total_steps, current_lr(optimizer))
    options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    stand_in = torch.optim.SGD([option | {"params": [nn.Parameter(torch.zeros(()))]} for option in options], lr=0.0)
    ahead = copy.deepcopy(scheduler, {id(optimizer): stand_in})
    rates = np.empty(total_steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the stand-in has not been stepped: it has nothing to learn
        for step in range(total_steps):
            rates[step] = current_lr(stand_in)
            try:
                ahead.step()
            except TypeError:
                raise InputError(
                    "scheduler: expected one whose learning rates are known in advance, or None for a constant rate, "
                    f"got {type(scheduler).__name__}."
                ) from None
    return rates


def current_lr(optimizer: Optimizer) -> float:
    """The largest learning rate of the optimizer's parameter groups."""
    return max(float(group["lr"]) for group in optimizer.param_groups)


def adam_config(optimizer: Optimizer, bias_correction: bool) -> OptimizerConfig:
    """Adam's constants; those of the default, with a warning, for another optimizer."""
    group = optimizer.param_groups[0]
    if "betas" not in group:
        log.warning(f"Verdict thresholds were calibrated for Adam, not {type(optimizer).__name__}.")
        return OptimizerConfig()
    beta1, beta2 = group["betas"]
    return OptimizerConfig(bias_correction=bias_correction, beta1=float(beta1), beta2=float(beta2))
