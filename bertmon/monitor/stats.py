"""Statistics of gradients, updates and logits, computed on the device without waiting for it.

When to measure is up to monitor.
Shapes: L weights, S statistics in the order of history.STATISTICS, B texts, C classes.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightStatistics:
    """Measures parameters [L] around an update: their gradients before it, their change after it.

    Holds a float32 buffer of the size of the parameters, so that a measurement allocates nothing large.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._rows: list[int] = []  # of the parameters that have a gradient
        self._buffer = GroupedBuffer([])

    def measure_gradients(self, scale: Tensor | None = None) -> None:
        """Measure the current gradients, divided by `scale` [] if they have been multiplied by it."""
        rows = [row for row, parameter in enumerate(self._parameters) if parameter.grad is not None]
        gradients = [gradient for parameter in self._parameters if (gradient := parameter.grad) is not None]
        if rows != self._rows:
            self._rows, self._buffer = rows, GroupedBuffer(gradients)
        if self._buffer.flat.device.type == "cpu":
            self._gradients = gradient_statistics_cpu(gradients, self._buffer)
        else:
            self._gradients = gradient_statistics_foreach(gradients, self._buffer)
        if scale is not None:
            self._gradients[:, :3] /= scale  # mean, max and standard deviation; the share of zeros has no scale

    def keep_weights(self) -> None:
        """Copy the current parameters."""
        self._buffer.copy(self._current())
        self._norms = self._buffer.norms()

    def measure_updates(self) -> tuple[list[int], Tensor]:
        """Measure the changes since `keep_weights`: the rows with a gradient, and their statistics [rows, S]."""
        self._buffer.subtract(self._current())
        updates = update_statistics(self._buffer.norms(), self._norms, self._buffer.element_counts)
        return self._rows, torch.cat([self._gradients, updates.to(self._gradients.dtype)], dim=1)

    def _current(self) -> list[Tensor]:
        return [self._parameters[row].detach() for row in self._rows]


class GroupedBuffer:
    """Float32 work space: tensors with the shapes and device of those in `like` [L].

    Tensors of equal size are the rows of one matrix, so that a statistic takes one operation per size, not one per
    tensor; on the CPU most of those would take longer to start than to run.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        device = like[0].device if like else None
        sizes = [tensor.numel() for tensor in like]
        by_size = sorted(range(len(like)), key=lambda row: sizes[row])
        self.flat = torch.empty(sum(sizes), device=device)
        parts = dict(zip(by_size, self.flat.split([sizes[row] for row in by_size]), strict=True))
        self.tensors = [parts[row].view(tensor.shape) for row, tensor in enumerate(like)]
        counts = Counter(sizes[row] for row in by_size)
        matrices = self.flat.split([size * count for size, count in counts.items()])
        self._matrices = [part.view(count, -1) for part, count in zip(matrices, counts.values(), strict=True)]
        # created once: copying a list to the device makes the host wait for it
        self._rows = torch.tensor([by_size.index(row) for row in range(len(like))], dtype=torch.int64, device=device)
        self.element_counts = torch.tensor(sizes, dtype=_exact_dtype(self.flat), device=device)
        """Elements of each tensor [L], in float64 where the device has it."""

    def copy(self, tensors: list[Tensor]) -> None:
        torch._foreach_copy_(self.tensors, tensors)

    def subtract(self, tensors: list[Tensor]) -> None:
        torch._foreach_sub_(self.tensors, tensors)

    def reduce_rows(self, reduction: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply `reduction`, [rows, elements] -> [rows], to all tensors: [L]."""
        return torch.cat([reduction(matrix) for matrix in self._matrices])[self._rows]

    def norms(self) -> Tensor:
        """L2 norm of each tensor [L]."""
        return self.reduce_rows(lambda matrix: torch.linalg.vector_norm(matrix, dim=1))


def _exact_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64  # Apple's GPUs have no float64


def gradient_statistics_foreach(gradients: list[Tensor], buffer: GroupedBuffer) -> Tensor:
    """Mean, max and standard deviation (of the population) of |g|, and the share of zeros: [L, 4], in few kernels.

    mean = L1 / n and variance = L2^2 / n - mean^2, in float64: squares of vanishing gradients underflow in float32, and
    a difference of two nearly equal values would lose all its digits. Zeros are counted in `buffer`: count_nonzero
    takes two kernels for each weight.
    """
    n, dtype = buffer.element_counts, buffer.element_counts.dtype
    mean = torch.stack(torch._foreach_norm(gradients, 1, dtype=dtype)) / n
    variance = torch.stack(torch._foreach_norm(gradients, 2, dtype=dtype)).square() / n - mean.square()
    largest = torch.stack(torch._foreach_norm(gradients, torch.inf)).to(dtype)
    buffer.copy(gradients)
    buffer.flat.eq_(0)
    zeros = buffer.reduce_rows(lambda matrix: matrix.sum(dim=1, dtype=dtype)) / n
    return torch.stack([mean, largest, variance.clamp(min=0).sqrt(), zeros], dim=1)


def gradient_statistics_cpu(gradients: list[Tensor], buffer: GroupedBuffer) -> Tensor:
    """The same, computed in `buffer` with operations that torch vectorizes on the CPU.

    torch's L1 and infinity norms, float64 norms and count_nonzero are not vectorized: four times slower overall.
    float32 is enough for values that vary and whose squares it can represent; otherwise they are centered or scaled.
    """
    n = buffer.element_counts
    buffer.copy(gradients)
    buffer.flat.abs_()
    largest = buffer.reduce_rows(lambda matrix: matrix.amax(dim=1)).double()
    in_range = (largest == 0) | ~largest.isfinite() | ((largest > 1e-15) & (largest < 1e15))
    scales = torch.where(in_range, 1.0, largest)
    for row in (~in_range).nonzero().flatten().tolist():
        buffer.tensors[row].div_(scales[row])
    means = buffer.reduce_rows(lambda matrix: matrix.sum(dim=1)).double() / n
    variances = buffer.norms().double().square() / n - means.square()
    for row in (variances < 0.1 * means.square()).nonzero().flatten().tolist():
        variances[row] = (buffer.tensors[row] - means[row]).square().mean()
    buffer.flat.eq_(0)
    zeros = buffer.reduce_rows(lambda matrix: matrix.sum(dim=1)) / n
    return torch.stack([means * scales, largest, variances.sqrt() * scales, zeros], dim=1)


def update_statistics(changes: Tensor, norms: Tensor, element_counts: Tensor) -> Tensor:
    """L2 norm of each change [L] over the parameter's norm before it [L], and the parameter's root mean square.

    element_counts: elements of each parameter [L]. The ratio is CS231n's
    (https://cs231n.github.io/neural-networks-3, "Ratio of weights:updates"); it is nan where the parameter was all
    zero. Returns [L, 2].
    """
    roots = element_counts.sqrt().to(norms.dtype)
    return torch.stack([torch.where(norms > 0, changes / norms, torch.nan), norms / roots], dim=1)


def logit_std(logits: Tensor) -> Tensor:
    """Standard deviation of the logits [B, C] over texts, mean over classes: []; nan for fewer than two texts."""
    if len(logits) < 2:
        return logits.new_full((), torch.nan)
    return logits.float().std(dim=0, correction=0).mean()


@contextmanager
def eval_fp32(model: nn.Module) -> Iterator[None]:
    """Run the body without gradients, dropout, autocast and TF32, and restore the mode of every module.

    Sets the modules' `training` flags directly: a custom eval() or train() can do more, such as merging LoRA weights.
    """
    training = [module for module in model.modules() if module.training]
    device_type = next(model.parameters()).device.type
    for module in training:
        module.training = False
    try:
        with torch.no_grad(), torch.autocast(device_type, enabled=False), ieee_matmul():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def ieee_matmul() -> Iterator[None]:
    """Run the body without TF32 (CUDA) and bfloat16 (CPU) in float32 matrix products, and restore the settings.

    Since torch 2.9 there are two sets of flags. Both are set if possible: inductor and others raise if they disagree.
    """
    matmuls = [backend for backend in _matmul_backends() if hasattr(backend, "fp32_precision")]
    before = [_own_precision(backend) for backend in matmuls]
    legacy = _legacy_precision()
    if legacy is None:
        for backend in matmuls:
            backend.fp32_precision = "ieee"
    else:
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy)
        for backend, precision in zip(matmuls, before, strict=True):
            backend.fp32_precision = precision


def _matmul_backends() -> list[Any]:
    return [getattr(backend, "matmul", None) for backend in (torch.backends.cuda, torch.backends.mkldnn)]


def _own_precision(backend: Any) -> str:
    """The backend's own `fp32_precision`; "none" if reading it returns that of torch.backends, which it inherits."""
    precision = str(backend.fp32_precision)
    backends: Any = torch.backends
    return "none" if precision == backends.fp32_precision else precision


def _legacy_precision() -> str | None:
    """torch.get_float32_matmul_precision(); None if it raises because only the new flags were set."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None
