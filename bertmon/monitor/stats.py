"""Gradients, updates and scores to statistics on the device. No copy to the host happens here.

Knows `.grad` and the before and after of a parameter. Leaves when to measure to watch.
Shapes: L layers, S statistics in the order of monitor.STATISTICS, B texts, C classes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Meter:
    """Measures parameters [L] around an update: their gradients before it, their change after it.

    Keeps memory of the size of the parameters, in float32, so that a measurement allocates nothing large.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._scratch: list[Tensor] = []
        self._live: list[int] = []

    def gradients(self) -> None:
        """Measure the gradients as they are now."""
        self._scratch = self._scratch or [torch.empty_like(p, dtype=torch.float32) for p in self._parameters]
        self._live = [row for row, parameter in enumerate(self._parameters) if parameter.grad is not None]
        gradients = [gradient for parameter in self._parameters if (gradient := parameter.grad) is not None]
        if gradients[0].device.type == "cpu":
            self._gradients = on_the_host(gradients, self._of(self._scratch))
        else:
            self._gradients = from_norms(gradients)

    def before(self) -> None:
        """Keep the parameters as they are now."""
        now = self._now()
        torch._foreach_copy_(self._of(self._scratch), now)
        self._norms = _norms(now)

    def after(self) -> tuple[list[int], Tensor]:
        """Measure what has changed since: the rows that had a gradient, and their statistics [rows, S]."""
        changes = self._of(self._scratch)
        torch._foreach_sub_(changes, self._now())
        updates = update_statistics(_norms(changes), self._norms, [change.numel() for change in changes])
        return self._live, torch.cat([self._gradients, updates.to(self._gradients.dtype)], dim=1)

    def _now(self) -> list[Tensor]:
        return [self._parameters[row].detach() for row in self._live]

    def _of(self, tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[row] for row in self._live]


def from_norms(gradients: list[Tensor]) -> Tensor:
    """Mean, max and standard deviation (of the population) of |g|, and the share of zeros: [L, 4], in few kernels.

    mean = L1 / n and variance = L2^2 / n - mean^2, in float64: squares of vanishing gradients are no float32 numbers
    any more, and the difference of two nearly equal ones would have no digit left.
    """
    dtype = torch.float32 if gradients[0].device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    n = torch.tensor([gradient.numel() for gradient in gradients], dtype=dtype).to(gradients[0].device)
    mean = torch.stack(torch._foreach_norm(gradients, 1, dtype=dtype)) / n
    variance = torch.stack(torch._foreach_norm(gradients, 2, dtype=dtype)).square() / n - mean.square()
    largest = torch.stack(torch._foreach_norm(gradients, torch.inf)).to(dtype)
    zeros = 1 - torch.stack([torch.count_nonzero(gradient) for gradient in gradients]) / n
    return torch.stack([mean, largest, variance.clamp(min=0).sqrt(), zeros], dim=1)


def on_the_host(gradients: list[Tensor], scratch: list[Tensor]) -> Tensor:
    """The same, in operations that are vector code on the CPU; scratch: float32 tensors of the gradients' shapes.

    torch's L1 and infinity norms, float64 norms and count_nonzero are not: four times slower in all. float32 is enough
    for sizes whose squares it can hold and that differ among each other; others are scaled, and centred, first.
    """
    n = torch.tensor([gradient.numel() for gradient in gradients], dtype=torch.float64)
    torch._foreach_copy_(scratch, gradients)
    torch._foreach_abs_(scratch)
    largest = torch.stack([size.amax() for size in scratch]).double()
    held = (largest == 0) | ~largest.isfinite() | ((largest > 1e-15) & (largest < 1e15))
    scales = torch.where(held, 1.0, largest)
    for row in (~held).nonzero().flatten().tolist():
        scratch[row].div_(scales[row])
    means = torch.stack([size.sum() for size in scratch]).double() / n
    variances = _norms(scratch).double().square() / n - means.square()
    for row in (variances < 0.1 * means.square()).nonzero().flatten().tolist():
        variances[row] = (scratch[row] - means[row]).square().mean()
    zeros = torch.stack([size.eq_(0).sum() for size in scratch]) / n
    return torch.stack([means * scales, largest, variances.sqrt() * scales, zeros], dim=1)


def update_statistics(changes: Tensor, norms: Tensor, sizes: list[int]) -> Tensor:
    """The L2 norm of each change [L] over that of the parameter before it [L], and the parameter's root mean square.

    sizes: elements of each parameter. The ratio is CS231n's (https://cs231n.github.io/neural-networks-3, "Ratio of
    weights:updates"); it is nan where the parameter was all zero. Returns [L, 2].
    """
    roots = torch.tensor([size**0.5 for size in sizes], dtype=norms.dtype).to(norms.device)
    return torch.stack([torch.where(norms > 0, changes / norms, torch.nan), norms / roots], dim=1)


def _norms(tensors: list[Tensor]) -> Tensor:
    """L2 norm of each [L], in float32."""
    return torch.stack(torch._foreach_norm(tensors, 2, dtype=torch.float32))


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
