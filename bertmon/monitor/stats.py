"""Gradients, updates and scores to statistics on the device. No copy to the host happens here.

Knows `.grad` and the before and after of a parameter. Leaves when to measure to watch.
Shapes: L layers, S statistics in the order of monitor.STATISTICS, B texts, C classes.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightStatistics:
    """Measures parameters [L] around an update: their gradients before it, their change after it.

    Keeps memory of the size of the parameters, in float32, so that a measurement allocates nothing large.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._live: list[int] = []
        self._scratch = GroupedBuffer([])

    def measure_gradients(self) -> None:
        """Measure the gradients as they are now."""
        live = [row for row, parameter in enumerate(self._parameters) if parameter.grad is not None]
        gradients = [gradient for parameter in self._parameters if (gradient := parameter.grad) is not None]
        if live != self._live:
            self._live, self._scratch = live, GroupedBuffer(gradients)
        on_the_host = gradients[0].device.type == "cpu"
        self._gradients = (
            gradient_statistics_cpu(gradients, self._scratch) if on_the_host else gradient_statistics_foreach(gradients)
        )

    def keep_weights(self) -> None:
        """Keep the parameters as they are now."""
        self._scratch.copy(self._now())
        self._norms = self._scratch.norms()

    def measure_updates(self) -> tuple[list[int], Tensor]:
        """Measure what has changed since: the rows that had a gradient, and their statistics [rows, S]."""
        self._scratch.subtract(self._now())
        updates = update_statistics(self._scratch.norms(), self._norms, self._scratch.sizes)
        return self._live, torch.cat([self._gradients, updates.to(self._gradients.dtype)], dim=1)

    def _now(self) -> list[Tensor]:
        return [self._parameters[row].detach() for row in self._live]


class GroupedBuffer:
    """Float32 tensors of the shapes and device of others [L], to compute in.

    All of one size are the rows of one matrix: a statistic of each takes an operation a size, not one a tensor, and on
    the CPU most of these would take longer to start than to do.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self.sizes = [tensor.numel() for tensor in like]
        by_size = sorted(range(len(like)), key=lambda row: self.sizes[row])
        self.flat = torch.empty(sum(self.sizes), device=like[0].device if like else None)
        parts = dict(zip(by_size, self.flat.split([self.sizes[row] for row in by_size]), strict=True))
        self.tensors = [parts[row].view(tensor.shape) for row, tensor in enumerate(like)]
        counts = Counter(self.sizes[row] for row in by_size)
        matrices = self.flat.split([size * count for size, count in counts.items()])
        self._matrices = [part.view(count, -1) for part, count in zip(matrices, counts.values(), strict=True)]
        self._rows = torch.tensor([by_size.index(row) for row in range(len(like))]).to(self.flat.device)

    def copy(self, tensors: list[Tensor]) -> None:
        torch._foreach_copy_(self.tensors, tensors)

    def subtract(self, tensors: list[Tensor]) -> None:
        torch._foreach_sub_(self.tensors, tensors)

    def reduce_rows(self, reduced: Callable[[Tensor], Tensor]) -> Tensor:
        """[L], where `reduced` makes [rows] of [rows, elements]."""
        return torch.cat([reduced(matrix) for matrix in self._matrices])[self._rows]

    def norms(self) -> Tensor:
        """L2 norm of each [L]."""
        return self.reduce_rows(lambda matrix: torch.linalg.vector_norm(matrix, dim=1))


def gradient_statistics_foreach(gradients: list[Tensor]) -> Tensor:
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


def gradient_statistics_cpu(gradients: list[Tensor], scratch: GroupedBuffer) -> Tensor:
    """The same, in operations that are vector code on the CPU, and in `scratch`.

    torch's L1 and infinity norms, float64 norms and count_nonzero are not: four times slower in all. float32 is enough
    for sizes whose squares it can hold and that differ among each other; others are scaled, and centred, first.
    """
    n = torch.tensor(scratch.sizes, dtype=torch.float64)
    scratch.copy(gradients)
    scratch.flat.abs_()
    largest = scratch.reduce_rows(lambda matrix: matrix.amax(dim=1)).double()
    held = (largest == 0) | ~largest.isfinite() | ((largest > 1e-15) & (largest < 1e15))
    scales = torch.where(held, 1.0, largest)
    for row in (~held).nonzero().flatten().tolist():
        scratch.tensors[row].div_(scales[row])
    means = scratch.reduce_rows(lambda matrix: matrix.sum(dim=1)).double() / n
    variances = scratch.norms().double().square() / n - means.square()
    for row in (variances < 0.1 * means.square()).nonzero().flatten().tolist():
        variances[row] = (scratch.tensors[row] - means[row]).square().mean()
    scratch.flat.eq_(0)
    zeros = scratch.reduce_rows(lambda matrix: matrix.sum(dim=1)) / n
    return torch.stack([means * scales, largest, variances.sqrt() * scales, zeros], dim=1)


def update_statistics(changes: Tensor, norms: Tensor, sizes: list[int]) -> Tensor:
    """The L2 norm of each change [L] over that of the parameter before it [L], and the parameter's root mean square.

    sizes: elements of each parameter. The ratio is CS231n's (https://cs231n.github.io/neural-networks-3, "Ratio of
    weights:updates"); it is nan where the parameter was all zero. Returns [L, 2].
    """
    roots = torch.tensor([size**0.5 for size in sizes], dtype=norms.dtype).to(norms.device)
    return torch.stack([torch.where(norms > 0, changes / norms, torch.nan), norms / roots], dim=1)


def logit_std(scores: Tensor) -> Tensor:
    """Standard deviation of the scores [B, C] over texts, mean over classes: []; nan for a single text."""
    if len(scores) < 2:
        return torch.full_like(scores[0, 0], torch.nan)
    return scores.float().std(dim=0, correction=0).mean()


@contextmanager
def eval_fp32(model: nn.Module) -> Iterator[None]:
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
