"""One forward and backward pass: device and precision. Leaves clipping, updates and cadence to train.

Shapes: B texts, C classes.
"""

import os
import shutil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertmon import distributed
from bertmon.config import Device, Precision
from bertmon.data.batches import Batch
from bertmon.errors import InputError
from bertmon.monitor import stats


def resolve_device(wanted: Device) -> torch.device:
    """The device asked for; raises InputError where it is not there. auto: the first of cuda and mps, else cpu."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(each for each, available in there.items() if available) if wanted is Device.auto else wanted.value
    if not there[name]:
        choices = ", ".join(each for each, available in there.items() if available)
        raise InputError(f"device={name} is not possible: this machine has {choices}.")
    if name == "cuda" and distributed.world_size() > 1:  # one GPU a process
        torch.cuda.set_device(distributed.local_rank())
        return torch.device("cuda", distributed.local_rank())
    return torch.device(name)


def set_determinism(wanted: bool) -> None:
    """Whether torch takes deterministic kernels alone, from now on and in this whole process."""
    if wanted:  # cuBLAS reads it when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it


def maybe_compile(model: nn.Module, wanted: bool) -> nn.Module:
    """The model, as torch.compile makes it if `wanted`: once for each shape of a batch, with the same parameters.

    Raises InputError where there is no compiler.
    """
    if not wanted:
        return model
    kind = next(model.parameters()).device.type
    if kind == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise InputError("train.compile=true is not possible on the CPU: it needs a C++ compiler (g++, or $CXX).")
    torch._dynamo.config.recompile_limit = 64  # four widths, padded or not, and as many for an epoch's last batch
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # not as slow as without, and no word
    faster: nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    return faster


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
"""Families that take the mask as their attention uses it. From [B, T] they make the same, but ask the device first
whether anything is masked at all, in every pass."""


def _mask(model: nn.Module, batch: Batch) -> Tensor | None:
    config: Any = getattr(model, "module", model).config  # of the model in a DistributedDataParallel
    if config.model_type not in _ACCEPTS_4D_MASK or config._attn_implementation != "sdpa":
        return batch.attention_mask
    width = batch.input_ids.shape[1]
    if batch.token_counts.min() == width:  # the fastest kernels take no mask
        return None
    return batch.attention_mask.bool()[:, None, None, :].expand(-1, -1, width, -1)  # [B, 1, T, T]


def compute_logits(model: nn.Module, batch: Batch, precision: Precision) -> Tensor:
    """The model's scores [B, C] in float32, whatever the precision of the matrix products."""
    with torch.autocast(batch.labels.device.type, torch.bfloat16, enabled=precision is Precision.bf16):
        scores: Tensor = model(input_ids=batch.input_ids, attention_mask=_mask(model, batch)).logits
    return scores.float()


def forward_backward(model: nn.Module, batch: Batch, precision: Precision) -> tuple[Tensor, Tensor]:
    """Add the gradient of the batch's mean cross-entropy to `.grad`, over the texts of all processes.

    Returns that loss [] and the scores [B, C] of this process, both detached and on the device.
    """
    scores = compute_logits(model, batch, precision)
    loss = F.cross_entropy(scores, batch.labels)
    if (processes := distributed.world_size()) > 1:  # so that the mean over processes is the mean over texts
        loss = loss * (distributed.local_count(batch.global_size) * processes / batch.global_size)
    loss.backward()
    return distributed.all_reduce_sum(loss.detach()) / processes, scores.detach()


class GuardedUpdate:
    """Clipping and the optimizer's step, as long as everything is finite.

    From the first loss or gradient on that is not, no update reaches weights or moments, and the device need not be
    asked: the fused kernels take the answer there, as they do for a GradScaler.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, clip: float | None) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = optimizer
        self._clip = clip
        self._stopped = torch.zeros((), device=self._parameters[0].device)  # 0 or 1

    def update(self, loss: Tensor, lr: float) -> Tensor:
        """One update with the gradients that are there; returns their global L2 norm [] before clipping."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self._clip is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self._clip, norm)
        self._stopped = torch.maximum(self._stopped, 1.0 - torch.isfinite(norm + loss).float())
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.found_inf = self._stopped  # type: ignore[attr-defined]  # torch's own name, set so by GradScaler
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm


class LogitProbe:
    """How much a model's scores depend on the text that it reads.

    In fp32 and without dropout the scores of the training pass tell it. Else their noise would hide what matters, and a
    pass of its own is made, in eval mode and fp32, over the first texts of the batch: a sixth of a step's work at 16
    texts, so not more often than every tenth step.
    """

    _TEXTS = 8
    _MIN_STEPS = 10  # steps

    def __init__(self, model: nn.Module, precision: Precision, next_pass: int = 0) -> None:
        self._model = model
        dropout = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
        self._noisy = dropout or precision is not Precision.fp32
        self.next_step = next_pass
        """The step from which on a pass of its own is made again."""

    def logit_std(self, step: int, batch: Batch, scores: Tensor) -> Tensor:
        """Standard deviation of the scores over texts, mean over classes: []; nan for a single text.

        scores: those of the training pass [B, C]. Between two passes of its own it is nan too.
        """
        if not self._noisy:
            return stats.logit_std(distributed.all_gather_rows(scores, batch.global_size))
        if step < self.next_step:
            return torch.full_like(scores[0, 0], torch.nan)
        self.next_step = step + self._MIN_STEPS
        texts = min(self._TEXTS, batch.global_size)
        some = slice(-(-texts // distributed.world_size()))
        first = Batch(
            batch.input_ids[some], batch.attention_mask[some], batch.labels[some], texts, batch.token_counts[some]
        )
        with stats.eval_fp32(self._model):
            scores = compute_logits(self._model, first, Precision.fp32)
        return stats.logit_std(distributed.all_gather_rows(scores, texts))
