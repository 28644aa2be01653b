"""One run on several processes started by torchrun: ranks and collective operations.

Each process has every R-th text of a batch and a full copy of the model; DistributedDataParallel averages gradients, so
that weights, statistics and verdicts are the same in all processes. Only rank 0 writes. Without torchrun there is one
process, and functions that communicate return their argument.
Shapes: B texts of a batch, over all R processes.
"""

import os
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def init() -> None:
    """Initialize the process group if torchrun has started several processes."""
    if dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def world_size() -> int:
    """The number of processes R."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The rank of this process; only rank 0 writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """The rank of this process on its machine, which is also the index of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() else 0


def local_count(texts: int) -> int:
    """The number of this process's texts in a batch: those at rank, rank + R, ..."""
    return len(range(rank(), texts, world_size()))


def wrap_ddp(model: nn.Module) -> nn.Module:
    """The model to call in training; a backward pass averages its gradients over all processes."""
    if world_size() == 1:
        return model
    devices = [local_rank()] if next(model.parameters()).is_cuda else None
    return nn.parallel.DistributedDataParallel(
        model, device_ids=devices, gradient_as_bucket_view=True, broadcast_buffers=False
    )


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of the tensors of all processes."""
    if world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def all_gather_rows(rows: Tensor, texts: int) -> Tensor:
    """The rows of all processes [B, ...], in the order of the batch's texts; `rows` are those of this process."""
    if world_size() == 1:
        return rows
    max_count = -(-texts // world_size())
    padded = rows.new_zeros(max_count, *rows.shape[1:])
    padded[: local_count(texts)] = rows[: local_count(texts)]
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten(0, 1)[:texts]


def broadcast(value: T) -> T:
    """Rank 0's value, on all processes."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
