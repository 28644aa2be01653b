"""One forward and backward pass and one update: device, precision, clipping. trainer decides when each happens.

Shapes: B texts, C classes, T tokens.
"""

import gc
import importlib.util
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bertmon import distributed
from bertmon.config import Device, Precision
from bertmon.data.batches import Batch
from bertmon.errors import InputError
from bertmon.monitor.probe import MAX_TEXTS, LogitProbe, is_exact

log = logging.getLogger(__name__)


def resolve_device(requested: Device) -> torch.device:
    """The requested device; auto: the first of cuda and mps that is available, else cpu. Raises InputError."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    names = [name for name, is_available in available.items() if is_available]
    name = names[0] if requested is Device.auto else requested.value
    if not available[name]:
        build = "; this build of torch has no CUDA" if name == "cuda" and torch.version.cuda is None else ""
        raise InputError(f"device: expected one of {', '.join(names)} on this machine, got {name}{build}.")
    if name == "cuda" and distributed.world_size() > 1:  # one GPU per process
        rank, gpus = distributed.local_rank(), torch.cuda.device_count()
        if rank >= gpus:
            raise InputError(f"torchrun: expected at most one process per GPU ({gpus} here), got process {rank + 1}.")
        torch.cuda.set_device(rank)
        return torch.device("cuda", rank)
    return torch.device(name)


def set_determinism(enabled: bool) -> None:
    """Set whether torch uses only deterministic kernels in this process."""
    # cuBLAS reads it once: if unset in the first run of a process, it could not be set for later ones
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(enabled)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it is never read


def set_precision(precision: Precision, device: torch.device) -> None:
    """Set how float32 matrix products and attention are computed in this process, regardless of the environment.

    Warns if the device does not support the precision.
    """
    torch.set_float32_matmul_precision("high" if precision is Precision.tf32 else "highest")
    if device.type == "cuda":
        # torch 2.11 prefers cuDNN's attention on an H100. Its backward pass gives NaN for extreme logits in masked
        # texts padded to 64 or 192 tokens (pytorch issue 196678), and it takes most of a second for each new shape.
        torch.backends.cuda.enable_cudnn_sdp(False)
    if precision is Precision.tf32 and not (device.type == "cuda" and torch.cuda.is_tf32_supported()):
        log.warning("train.precision=tf32: only NVIDIA GPUs since Ampere have TF32; this run computes in float32")
    if precision is Precision.bf16 and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        log.warning("train.precision=bf16: this GPU has no bfloat16 and emulates it, slower than fp32")


MAX_GRAPHS = 64
"""Maximum of compiled graphs per run: one per batch shape. An epoch's last batch adds a shape for each width."""


def maybe_compile(model: nn.Module, enabled: bool) -> nn.Module:
    """The model, compiled with torch.compile if `enabled`: one graph per batch shape, with the same parameters.

    Raises InputError without a compiler.
    """
    if not enabled:
        return model
    require_compiler(next(model.parameters()).device.type)
    torch._dynamo.reset()  # the limit below counts the graphs of all runs in a process
    gc.collect()  # frees the previous run's model: compiled models are in reference cycles
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # else it would silently run uncompiled
    compiled: nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    return compiled


def require_compiler(device_type: str) -> None:
    """Raise InputError if what torch.compile needs for the device is missing."""
    if device_type == "cpu":
        if not shutil.which(os.environ.get("CXX", "g++")):
            raise InputError("train.compile: expected a C++ compiler (g++, or $CXX) to compile for the CPU, got none.")
    elif device_type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise InputError("train.compile: expected the package triton to compile for CUDA, got none.")
        if not any(map(shutil.which, [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang", "cc"])):
            raise InputError("train.compile: expected a C compiler (gcc, clang, or $CC) for triton, got none.")


_ACCEPTS_4D_MASK = (
    "albert",
    "bert",
    "camembert",
    "distilbert",
    "electra",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
)
"""Families that accept a 4D additive attention mask. From a [B, T] mask they make an equivalent one, but in every pass
they first wait for the device to know whether anything is masked."""


def _attention_mask(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Tensor | None:
    """The additive attention mask, or the batch's [B, T] mask for families that do not accept it.

    None if nothing is masked, for the fastest kernels; a compiled model always gets a mask, for half as many graphs.
    """
    unwrapped: Any = getattr(model, "module", model)  # from DistributedDataParallel
    config = unwrapped.config
    if config.model_type not in _ACCEPTS_4D_MASK or config._attn_implementation != "sdpa":
        return batch.attention_mask
    width = batch.input_ids.shape[1]
    if batch.token_counts.min() == width and not isinstance(unwrapped, torch._dynamo.OptimizedModule):
        return None
    # each layer would otherwise make the same from a boolean mask and keep it for its backward pass
    mask = torch.zeros(len(batch.labels), 1, width, width, dtype=dtype, device=batch.labels.device)
    return mask.masked_fill_(~batch.attention_mask.bool()[:, None, None, :], -torch.inf)


def compute_logits(model: nn.Module, batch: Batch, precision: Precision) -> Tensor:
    """The model's logits [B, C] in float32, whatever the precision of the matrix products."""
    dtype = torch.bfloat16 if precision is Precision.bf16 else torch.float32
    with torch.autocast(batch.labels.device.type, torch.bfloat16, enabled=precision is Precision.bf16):
        mask = _attention_mask(model, batch, dtype)
        types = {} if batch.token_type_ids is None else {"token_type_ids": batch.token_type_ids}
        logits: Tensor = model(input_ids=batch.input_ids, attention_mask=mask, **types).logits
    return logits.float()


def forward_backward(
    model: nn.Module, batches: Sequence[Batch], precision: Precision, class_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Add the gradient of the mean cross-entropy over the texts of all batches and processes to `.grad`.

    class_weights [C]: weights of the texts in the mean, by label.
    Returns that loss [] and the logits [B, C] of the first batch in this process, both detached and on the device.
    """
    shares = _shares(batches, class_weights)
    losses, first_logits = [], None
    for number, batch in enumerate(batches):
        last = number == len(batches) - 1
        with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
            logits = _training_logits(model, batch, precision)
            loss = F.cross_entropy(logits, batch.labels, weight=class_weights)
            if shares is not None:
                loss = loss * shares[number]
            loss.backward()
        losses.append(loss.detach())
        first_logits = logits.detach() if first_logits is None else first_logits
    assert first_logits is not None
    total = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
    return distributed.all_reduce_sum(total) / distributed.world_size(), first_logits


def _training_logits(model: nn.Module, batch: Batch, precision: Precision) -> Tensor:
    try:
        return compute_logits(model, batch, precision)
    except torch._dynamo.exc.FailOnRecompileLimitHit:
        raise InputError(
            f"data.bucket_lengths: expected fewer lengths: with train.compile=true batches may have at most "
            f"{MAX_GRAPHS} shapes, got more."
        ) from None


def _shares(batches: Sequence[Batch], class_weights: Tensor | None) -> Sequence[float] | Tensor | None:
    """The factor of each batch's mean loss in this process; None for a single batch in a single process.

    DistributedDataParallel averages over processes, so the factors are multiplied by the number of processes.
    """
    processes = distributed.world_size()
    if len(batches) == 1 and processes == 1:
        return None
    if class_weights is None:
        total = sum(batch.global_size for batch in batches)
        return [distributed.local_count(batch.global_size) * processes / total for batch in batches]
    own = [class_weights[batch.labels[: distributed.local_count(batch.global_size)]].sum() for batch in batches]
    weights = torch.stack(own)
    return weights * processes / distributed.all_reduce_sum(weights.sum())


def build_probe(model: nn.Module, precision: Precision) -> LogitProbe:
    """The logit probe of a run, over the texts of all processes."""

    def forward(batch: Batch) -> Tensor:
        texts = min(MAX_TEXTS, batch.global_size)
        rows = slice(-(-texts // distributed.world_size()))
        first = batch._replace(
            input_ids=batch.input_ids[rows],
            attention_mask=batch.attention_mask[rows],
            labels=batch.labels[rows],
            token_counts=batch.token_counts[rows],
            token_type_ids=None if batch.token_type_ids is None else batch.token_type_ids[rows],
            global_size=texts,
        )
        logits = compute_logits(model, first, Precision.fp32)
        return distributed.all_gather_rows(logits, texts)

    def training_logits(batch: Batch, logits: Tensor) -> Tensor:
        return distributed.all_gather_rows(logits, batch.global_size)

    exact = precision is Precision.fp32 and is_exact(model)
    return LogitProbe(model, forward, training_logits if exact else None)


class GuardedUpdate:
    """Gradient clipping and the optimizer's step, as long as loss and gradients are finite.

    From the first non-finite loss or gradient on, no update reaches weights or moments. This needs no synchronization:
    the fused kernels read `found_inf` on the device, as with GradScaler. Exception: the fused kernel for Apple's GPUs
    ignored it until torch's pull request 186360 (June 2026); before that, a diverged run's weights are not finite.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float | None) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = optimizer
        self._max_grad_norm = max_grad_norm
        self._stopped = torch.zeros((), device=self._parameters[0].device)  # 0 or 1

    def update(self, loss: Tensor, lr: float) -> Tensor:
        """One update with the current gradients; returns their global L2 norm [] before clipping."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self._max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self._max_grad_norm, norm)
        self._stopped = torch.maximum(self._stopped, 1.0 - torch.isfinite(norm + loss).float())
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self._optimizer.found_inf = self._stopped  # type: ignore[attr-defined]  # as GradScaler sets it
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm
