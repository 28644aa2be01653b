"""Unwrap models, optimizers and schedulers that torch, accelerate or Lightning has wrapped.

Wrappers are recognized by their attributes, so that accelerate and Lightning need not be installed.
"""

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bertmon import distributed
from bertmon.errors import InputError

_SHARDED = {"FullyShardedDataParallel", "DeepSpeedEngine", "FSDPModule"}


def unwrap_model(model: nn.Module) -> nn.Module:
    """The module inside the wrappers of torch.compile, DataParallel and DistributedDataParallel.

    Raises InputError for a model whose weights are split across devices.
    """
    while True:
        if any(kind.__name__ in _SHARDED for kind in type(model).__mro__):
            refuse_shards(type(model).__name__)
        inner = getattr(model, "_orig_mod", None)  # of torch.compile
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            break
        model = inner
    for parameter in model.parameters():
        if type(parameter.data).__name__ == "DTensor" or hasattr(parameter, "ds_id"):
            refuse_shards("its parameters are shards")
    devices = {str(parameter.device) for parameter in model.parameters()}
    if len(devices) > 1:
        refuse_shards(f"layers on {', '.join(sorted(devices))}")
    return model


def refuse_shards(value: str) -> None:
    """Raise the InputError for a model whose weights are split across devices."""
    raise InputError(
        "model: expected one with whole weights on each device (a single device, DataParallel, or "
        f"DistributedDataParallel), got {value}: FSDP, DeepSpeed and tensor parallelism are not supported."
    )


def unwrap_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer inside accelerate's or Lightning's wrapper."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    unwrapped: Optimizer = optimizer
    return unwrapped


def gradient_state(model: nn.Module, optimizer: Any) -> Any:
    """accelerate's GradientState if the loop uses accelerate; None otherwise, even if an earlier loop left one."""
    state = getattr(optimizer, "gradient_state", None)
    if state is None and hasattr(model, "_is_accelerate_prepared"):  # a plain optimizer in an accelerate loop
        state = sys.modules["accelerate.state"].GradientState()
    return state


def unwrap_scheduler(scheduler: Any) -> tuple[Any, int]:
    """The scheduler inside accelerate's wrapper, and how often it is stepped per update."""
    inner = getattr(scheduler, "scheduler", None)
    if inner is None or not hasattr(scheduler, "split_batches"):
        return scheduler, 1
    if scheduler.split_batches or not scheduler.step_with_optimizer:
        return inner, 1
    return inner, distributed.world_size()


def loss_scale(scaler: Any, optimizer: Optimizer) -> Tensor | None:
    """The factor [] by which the optimizer's gradients are scaled by a GradScaler; None if they are not scaled."""
    if scaler is None or not scaler.is_enabled():
        return None
    state = scaler._per_optimizer_states.get(id(optimizer), {})
    stage = getattr(state.get("stage"), "name", "READY")
    scale = scaler._scale
    return None if stage != "READY" or scale is None else scale.detach().squeeze()


def overflowed(scaler: Any, grad_norm: Tensor, loss: Tensor | None, processes: int) -> bool:
    """Whether the scaler skips this update because scaled gradients overflow float16 while the loss is finite.

    All processes return the same: each has the norm of all gradients, and the losses of their own texts are summed.
    """
    if scaler is None or not scaler.is_enabled() or bool(torch.isfinite(grad_norm)):  # the scaler synchronizes, too
        return False
    if loss is None:
        return True
    return bool(torch.isfinite(distributed.all_reduce_sum(loss) if processes > 1 else loss))
