"""What an evaluation measures, and when that is more than guessing. numpy only: the report imports no torch."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Metrics on the test split, in eval mode, of the weights after `step` updates."""

    step: int
    loss: float  # mean cross-entropy; nan if it was not finite
    accuracy: float  # in [0, 1]

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of dataclasses.asdict; null stands for nan. Raises KeyError, TypeError and ValueError."""
        loss = fields["loss"]
        return cls(int(fields["step"]), math.nan if loss is None else float(loss), float(fields["accuracy"]))


def did_not_learn(accuracy: float, majority_share: float, texts: int) -> bool:
    """Whether an accuracy on `texts` texts is within what always guessing the majority class gives.

    The count of correct texts must lie above the 99.5 % quantile of Binomial(texts, majority_share), the upper end of
    its 99 % interval.
    """
    return round(accuracy * texts) <= _binomial_quantile(0.995, texts, majority_share)


@functools.lru_cache(maxsize=1024)
def _binomial_quantile(q: float, n: int, p: float) -> int:
    """The smallest k with P(X <= k) >= q, for X of Binomial(n, p)."""
    if p >= 1:
        return n
    k = np.arange(1, n + 1)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log(n - k + 1) - np.log(k))])
    log_pmf = log_choose + np.arange(n + 1) * math.log(p) + np.arange(n, -1, -1) * math.log1p(-p)
    return int(np.searchsorted(np.cumsum(np.exp(log_pmf)), q))


def wilson_interval(count: int, n: int) -> tuple[float, float]:
    """95 % interval of a rate of which `count` of `n` were seen (Wilson 1927, score interval)."""
    if not n:
        return 0.0, 1.0
    z, share = 1.96, count / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(center - half, 0.0), min(center + half, 1.0)
