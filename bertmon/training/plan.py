"""The learning rate of every step of a run, computed before the first one."""

import importlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bertmon import optimizer, schedule
from bertmon.config import Decay, RunConfig, ScheduleConfig, TrainConfig
from bertmon.errors import InputError, first_line, require
from bertmon.monitor.history import FloatArray, RunPlan

_MIN_EVALUATIONS = 10  # of a run, not counting the one before the first step


def plan_run(config: RunConfig, steps_per_epoch: int, chance_loss: float) -> RunPlan:
    """The learning rates of all steps, and the loss of a model that ignores the texts (in nats)."""
    total_steps = config.train.epochs * steps_per_epoch
    lr = config.optimizer.lr * lr_factors(config.schedule, total_steps)
    gains = [optimizer.bias_correction_gain(config.optimizer, step) for step in range(total_steps)]
    return RunPlan(
        lr=lr,
        effective_lr=lr * np.array(gains),
        chance_loss=chance_loss,
        warmup_frac=warmup_frac(config.schedule, total_steps),
        bias_correction=config.optimizer.bias_correction,
    )


def evaluates_after(steps: int, config: TrainConfig, steps_per_epoch: int) -> bool:
    """Whether the run is evaluated after `steps` steps (at least 1).

    It is at the end of each epoch, and every `eval_every` steps or, without it, after equal parts of each epoch, enough
    for at least ten evaluations per run.
    """
    in_epoch = steps % steps_per_epoch
    if in_epoch == 0:
        return True
    if config.eval_every is not None:
        return steps % config.eval_every == 0
    parts = -(-_MIN_EVALUATIONS // config.epochs)
    return in_epoch * parts % steps_per_epoch < parts  # the first step that completes another part


def warmup_frac(config: ScheduleConfig, total_steps: int) -> float:
    """Fraction of the steps that are warm-up, whether configured as warmup_frac or as warmup_steps."""
    return config.warmup_frac if config.warmup_steps is None else min(config.warmup_steps / total_steps, 1.0)


def lr_factors(config: ScheduleConfig, total_steps: int) -> FloatArray:
    """The learning rate at each step [N] as a multiple of its peak. Raises InputError.

    linear, cosine and constant use schedule.lr_factor; for the other decays, transformers' get_scheduler is run in
    advance with a rate of 1.
    """
    if config.function is not None:
        return _custom_factors(config, total_steps)
    share = warmup_frac(config, total_steps)
    if config.decay in (Decay.linear, Decay.cosine, Decay.constant):
        factors = [
            schedule.lr_factor(step, decay=config.decay.value, warmup_frac=share, total_steps=total_steps)
            for step in range(total_steps)
        ]
        return np.array(factors)
    return _transformers_factors(config, schedule.warmup_steps(share, total_steps), total_steps)


def _transformers_factors(config: ScheduleConfig, warmup: int, total_steps: int) -> FloatArray:
    from transformers import get_scheduler

    decay_steps = math.floor((config.decay_frac or 0.0) * total_steps + 0.5)
    all_options: dict[Decay, dict[str, Any]] = {
        Decay.inverse_sqrt: {"timescale": config.timescale},
        Decay.polynomial: {"power": config.power, "lr_end": config.end_factor},
        Decay.cosine_with_restarts: {"num_cycles": config.cycles},
        Decay.cosine_with_min_lr: {"min_lr_rate": config.end_factor},
        Decay.warmup_stable_decay: {"num_decay_steps": decay_steps, "min_lr_ratio": config.end_factor},
    }
    dummy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    if config.decay is Decay.warmup_stable_decay and warmup + decay_steps > total_steps:
        raise InputError(
            f"schedule.decay_frac: expected warm-up ({warmup} steps) and decay ({decay_steps} steps) to fit into the "
            f"run's {total_steps} steps."
        )
    scheduler = get_scheduler(
        config.decay.value, dummy, warmup, total_steps, scheduler_specific_kwargs=all_options[config.decay]
    )
    factors = np.empty(total_steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the dummy optimizer is never stepped
        for step in range(total_steps):
            if step:
                scheduler.step()
            factors[step] = dummy.param_groups[0]["lr"]
    return factors


def _custom_factors(config: ScheduleConfig, total_steps: int) -> FloatArray:
    """The factors of the user's function(step, warmup_steps, total_steps) -> factor."""
    name = str(config.function)
    module, _, attribute = name.rpartition(".")
    try:
        function: Callable[[int, int, int], float] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"schedule.function: expected an importable module.function, got {name} ({error}).") from None
    require(callable(function), "schedule.function", name, "a function")
    warmup = schedule.warmup_steps(warmup_frac(config, total_steps), total_steps)
    factors = np.empty(total_steps)
    for step in range(total_steps):
        try:
            factors[step] = float(function(step, warmup, total_steps))
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(
                f"schedule.function: expected a factor from {name}({step}, {warmup}, {total_steps}), got {reason}."
            ) from None
    if not (np.isfinite(factors).all() and (factors >= 0).all()):
        step = int(np.flatnonzero(~(np.isfinite(factors) & (factors >= 0)))[0])
        raise InputError(
            f"schedule.function: expected finite factors of at least 0, got {factors[step]} at step {step}."
        )
    return factors
