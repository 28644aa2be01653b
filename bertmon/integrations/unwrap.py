"""What is inside the wrappers that torch, accelerate and peft put around models, optimizers and schedulers.

Knows them by their attributes, so that none of these libraries has to be installed.
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
    """The module that torch.compile, DataParallel and DistributedDataParallel have wrapped.

    Raises InputError for a model whose weights are split over devices.
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
    """Raise the InputError of a model whose weights are split over devices."""
    raise InputError(
        "model: expected one with whole weights on each device (a single device, DataParallel, or "
        f"DistributedDataParallel), got {value}: FSDP, DeepSpeed and tensor parallelism are not watched."
    )


def unwrap_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer inside of accelerate's or Lightning's."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    plain: Optimizer = optimizer
    return plain


def gradient_state(model: nn.Module, optimizer: Any) -> Any:
    """Accelerate's, of the loop that the two are in; None in another loop, which it may have outlived."""
    state = getattr(optimizer, "gradient_state", None)
    if state is None and hasattr(model, "_is_accelerate_prepared"):  # a plain optimizer in accelerate's loop
        state = sys.modules["accelerate.state"].GradientState()
    return state


def unwrap_scheduler(scheduler: Any) -> tuple[Any, int]:
    """The scheduler inside of accelerate's, and how often it is stepped for each update."""
    inner = getattr(scheduler, "scheduler", None)
    if inner is None or not hasattr(scheduler, "split_batches"):
        return scheduler, 1
    if scheduler.split_batches or not scheduler.step_with_optimizer:
        return inner, 1
    return inner, distributed.world_size()


def loss_scale(scaler: Any, optimizer: Optimizer) -> Tensor | None:
    """What a GradScaler has multiplied the gradients of the optimizer by [], if they still are; None: by nothing."""
    if scaler is None or not scaler.is_enabled():
        return None
    state = scaler._per_optimizer_states.get(id(optimizer), {})
    stage = getattr(state.get("stage"), "name", "READY")
    scale = scaler._scale
    return None if stage != "READY" or scale is None else scale.detach().squeeze()


def overflowed(scaler: Any, grad_norm: Tensor, loss: Tensor | None, processes: int) -> bool:
    """Whether the scaler skips this update, since scaled gradients do not fit float16 while the loss is finite.

    The same in all of `processes`: each has the norm of all gradients, and the loss of its own texts.
    """
    if scaler is None or not scaler.is_enabled() or bool(torch.isfinite(grad_norm)):  # the scaler waits for it as well
        return False
    if loss is None:
        return True
    return bool(torch.isfinite(distributed.all_reduce_sum(loss) if processes > 1 else loss))
