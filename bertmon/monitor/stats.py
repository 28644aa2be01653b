"""Gradients, updates and scores to statistics on the device. No copy to the host happens here.

Knows `.grad` and the before and after of a parameter. Leaves when to measure to watch.
Shapes: L layers, S statistics in the order of monitor.STATISTICS, B texts, C classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def gradient_statistics(gradients: list[Tensor]) -> Tensor:
    """Mean, max and standard deviation (of the population) of |g|, and the share of zeros: [L, 4].

    mean = L1 / n and variance = L2^2 / n - mean^2, in float64: squares of vanishing gradients are no float32 numbers
    any more, and the difference of two nearly equal ones would have no digit left.
    """
    dtype = _precise(gradients[0])
    n = torch.tensor([gradient.numel() for gradient in gradients], dtype=dtype).to(gradients[0].device)
    mean = torch.stack(torch._foreach_norm(gradients, 1, dtype=dtype)) / n
    variance = torch.stack(torch._foreach_norm(gradients, 2, dtype=dtype)).square() / n - mean.square()
    zeros = 1 - torch.stack([torch.count_nonzero(gradient) for gradient in gradients]) / n
    return torch.stack([mean, _largest(gradients).to(dtype), variance.clamp(min=0).sqrt(), zeros], dim=1)


def update_statistics(before: list[Tensor], after: list[Tensor]) -> Tensor:
    """||after - before|| / ||before||, L2, of each pair, and the root mean square of `before`: [L, 2].

    The ratio is CS231n's (https://cs231n.github.io/neural-networks-3, "Ratio of weights:updates"); it is nan where
    `before` is all zero.
    """
    changes = torch.stack(torch._foreach_norm(torch._foreach_sub(after, before), 2))
    norms = torch.stack(torch._foreach_norm(before, 2))
    roots = torch.tensor([tensor.numel() ** 0.5 for tensor in before], dtype=norms.dtype).to(norms.device)
    ratios = torch.where(norms > 0, changes / norms, torch.nan)
    return torch.stack([ratios, norms / roots], dim=1).to(_precise(norms))


def logit_spread(scores: Tensor) -> Tensor:
    """Standard deviation of the scores [B, C] over texts, mean over classes: []; nan for a single text."""
    if len(scores) < 2:
        return torch.full_like(scores[0, 0], torch.nan)
    return scores.float().std(dim=0, correction=0).mean()


@contextmanager
def noiseless(model: nn.Module) -> Iterator[None]:
    """Inside, the model runs without gradients, dropout and autocast; after it, every module is in its mode again."""
    training = [module for module in model.modules() if module.training]
    kind = next(model.parameters()).device.type
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(kind, enabled=False):
            yield
    finally:
        for module in training:
            module.training = True


def _largest(tensors: list[Tensor]) -> Tensor:
    """Largest absolute value of each tensor [L]."""
    if tensors[0].device.type != "cpu":
        return torch.stack(torch._foreach_norm(tensors, torch.inf))
    # torch's norm of this order is no vector code on the CPU: 7 ms where the extremes take 0.3
    extremes = [torch.aminmax(tensor) for tensor in tensors]
    return torch.maximum(torch.stack([e.max for e in extremes]), -torch.stack([e.min for e in extremes]))


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
