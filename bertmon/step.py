"""One forward and backward pass: device and precision. Leaves clipping, updates and cadence to train.

Shapes: B texts, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertmon.batches import Batch
from bertmon.config import Device, InputError, Precision


def pick_device(wanted: Device) -> torch.device:
    """The device asked for; raises InputError where it is not there. auto: the first of cuda and mps, else cpu."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted is Device.auto:
        return torch.device(next(name for name, available in there.items() if available))
    if not there[wanted.value]:
        choices = ", ".join(name for name, available in there.items() if available)
        raise InputError(f"device={wanted.value} is not possible: this machine has {choices}.")
    return torch.device(wanted.value)


def logits(model: nn.Module, batch: Batch, precision: Precision) -> Tensor:
    """The model's scores [B, C] in float32, whatever the precision of the matrix products."""
    with torch.autocast(batch.labels.device.type, torch.bfloat16, enabled=precision is Precision.bf16):
        scores: Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return scores.float()


def forward_backward(model: nn.Module, batch: Batch, precision: Precision) -> Tensor:
    """Add the gradient of the batch's mean cross-entropy to `.grad`; returns that loss [], detached, on the device."""
    loss = F.cross_entropy(logits(model, batch, precision), batch.labels)
    loss.backward()
    return loss.detach()
