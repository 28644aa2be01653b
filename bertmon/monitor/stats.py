"""Gradients and updates to one tensor of statistics on the device. No copy to the host happens here.

Knows `.grad` and the before and after of a parameter. Leaves when to measure to watch.
Shapes: L layers, S statistics in the order of monitor.STATISTICS.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def gradient_statistics(gradients: Sequence[Tensor]) -> Tensor:
    """Mean, max and standard deviation (of the population) of |g|, and the share of zeros: [L, 4].

    All but the share of zeros are norms of the tensors as they are: mean = L1 / n, max = Linf and
    variance = L2^2 / n - mean^2. In float64: squares of vanishing gradients are no float32 numbers any more, and the
    difference of two nearly equal ones would have no digit left.
    """
    sizes = torch.tensor([gradient.numel() for gradient in gradients], dtype=_dtype(gradients[0]))
    n = sizes.to(gradients[0].device, non_blocking=True)
    mean = _norms(gradients, 1) / n
    largest = _norms(gradients, torch.inf)
    variance = _norms(gradients, 2).square() / n - mean.square()
    zeros = 1 - torch.stack([torch.count_nonzero(gradient) for gradient in gradients]) / n
    return torch.stack([mean, largest, variance.clamp(min=0).sqrt(), zeros], dim=1)


def update_ratios(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """||after - before|| / ||before||, L2, of each pair: [L]; nan where `before` is all zero.

    The ratio is CS231n's (https://cs231n.github.io/neural-networks-3, "Ratio of weights:updates").
    """
    changes = torch._foreach_sub(list(after), list(before))
    norms = _norms(before, 2)
    return torch.where(norms > 0, _norms(changes, 2) / norms, torch.nan)


def _norms(tensors: Sequence[Tensor], order: float) -> Tensor:
    return torch.stack(torch._foreach_norm(list(tensors), order, dtype=_dtype(tensors[0])))


def _dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
