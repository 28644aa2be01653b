"""Metrics of an evaluation, and tests of whether it beats guessing. numpy only: the report imports no torch.

Shapes: C classes. A confusion matrix [C, C] has a row per label and a column per prediction.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

_ALPHA = 0.005
"""Significance level: a run has learned if guessing would do as well with at most this probability."""

_MAX_TEXTS_NEEDED = 10_000


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Metrics on one split, in eval mode, after `step` updates."""

    step: int
    loss: float  # mean cross-entropy; nan if it was not finite
    accuracy: float  # in [0, 1]
    f1_macro: float = math.nan  # mean F1 over the classes, 0 for one without correct predictions; nan: unknown
    mcc: float = math.nan  # Matthews correlation coefficient, in [-1, 1]; 0 for constant predictions; nan: unknown
    confusion: tuple[tuple[int, ...], ...] | None = None  # [C, C]; None: not stored

    @classmethod
    def from_confusion(cls, step: int, loss: float, confusion: Counts) -> Self:
        """All metrics from one confusion matrix [C, C] of at least one text."""
        matrix = tuple(tuple(map(int, row)) for row in confusion)
        accuracy = int(np.trace(confusion)) / int(confusion.sum())
        return cls(step, loss, accuracy, f1_macro(confusion), matthews(confusion), matrix)

    @property
    def constant_prediction(self) -> int | None:
        """The class predicted for every text; None if several are predicted, or without a confusion matrix."""
        predicted = [label for label, texts in enumerate(zip(*(self.confusion or ()), strict=True)) if any(texts)]
        return predicted[0] if len(predicted) == 1 else None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of dataclasses.asdict; null stands for nan. Raises KeyError, TypeError and ValueError."""
        numbers = {name: values.get(name) for name in ("loss", "f1_macro", "mcc")}
        if "loss" not in values:
            raise KeyError("loss")
        metrics = {name: math.nan if value is None else float(value) for name, value in numbers.items()}
        confusion = values.get("confusion")
        matrix = None if confusion is None else tuple(tuple(int(count) for count in row) for row in confusion)
        return cls(int(values["step"]), accuracy=float(values["accuracy"]), confusion=matrix, **metrics)

    def without_confusion(self) -> Self:
        """The same metrics without the confusion matrix."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(**{**values, "confusion": None})


def best_evaluation(evaluations: Sequence[EvalResult], metric: str) -> EvalResult | None:
    """The first evaluation with the highest `metric` (a field of EvalResult) and a finite loss; None without one.

    The evaluation before the first step is excluded. Results of version 0.1 have the accuracy only.
    """
    trained = [each for each in evaluations if each.step > 0]
    candidates = [each for each in trained if math.isfinite(each.loss) and math.isfinite(getattr(each, metric))]
    return max(candidates, key=lambda each: float(getattr(each, metric)), default=None)


def precision_recall(confusion: Counts) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Precision and recall of each class [C]; 0 for a class that is never predicted, or has no texts."""
    right = np.diag(confusion).astype(float)
    predicted, labeled = confusion.sum(axis=0), confusion.sum(axis=1)
    return right / np.maximum(predicted, 1), right / np.maximum(labeled, 1)


def f1_macro(confusion: Counts) -> float:
    """Mean F1 over the classes that have texts or are predicted."""
    right = np.diag(confusion)
    total = confusion.sum(axis=0) + confusion.sum(axis=1)
    present = total > 0
    return float((2 * right[present] / total[present]).mean())


def matthews(confusion: Counts) -> float:
    """Matthews correlation coefficient for any number of classes (Gorodkin 2004); 0 if all predictions are the same."""
    n, right = int(confusion.sum()), int(np.trace(confusion))
    predicted, labeled = confusion.sum(axis=0).astype(float), confusion.sum(axis=1).astype(float)
    variances = (n**2 - predicted @ predicted) * (n**2 - labeled @ labeled)
    return float((n * right - predicted @ labeled) / math.sqrt(variances)) if variances > 0 else 0.0


def did_not_learn(evaluation: EvalResult, majority_share: float, texts: int) -> bool:
    """Whether the predictions are no better than guessing.

    With a confusion matrix: true unless `guessing_p` is at most 0.5 %. Without one (results of version 0.1): true
    unless the number of correct predictions exceeds the 99.5 % quantile of Binomial(texts, majority_share), the upper
    end of its 99 % interval.
    """
    if evaluation.confusion is None:
        return round(evaluation.accuracy * texts) <= _binomial_quantile(1 - _ALPHA, texts, majority_share)
    return guessing_p(np.array(evaluation.confusion)) > _ALPHA


def guessing_p(confusion: Counts) -> float:
    """An upper bound on the p-value of a confusion matrix [C, C], for predictions that ignore the texts.

    Two exact tests, Bonferroni-corrected. The first compares the number of correct predictions with Binomial(texts,
    share of the majority class), which no guessing exceeds; it is powerful for balanced classes. The second is Fisher's
    exact test, for each class, of whether texts predicted as that class belong to it more often than by chance; it is
    powerful for imbalanced classes. A constant prediction is significant in neither; four rare texts found among
    forty are significant in the second.
    """
    n, labeled, predicted = int(confusion.sum()), confusion.sum(axis=1), confusion.sum(axis=0)
    right = np.diag(confusion)
    accuracy_p = _binomial_tail(int(right.sum()), n, float(labeled.max() / n))
    margins = zip(right.tolist(), labeled.tolist(), predicted.tolist(), strict=True)
    class_ps = [_hypergeometric_tail(*margin, n) for margin in margins]
    return min(1.0, 2 * min(accuracy_p, _distinct_tests(len(class_ps)) * min(class_ps)))


def _distinct_tests(classes: int) -> int:
    """The number of distinct Fisher tests: with two classes, both are the same."""
    return classes if classes > 2 else 1


@functools.lru_cache(maxsize=1024)
def texts_needed(majority_share: float) -> int:
    """The smallest number of test texts that distinguish guessing from a model halfway between guessing and perfect."""
    halfway = (1 + majority_share) / 2
    sizes = range(1, _MAX_TEXTS_NEEDED)
    enough = (n for n in sizes if round(halfway * n) > _binomial_quantile(1 - _ALPHA, n, majority_share))
    return next(enough, _MAX_TEXTS_NEEDED)


def _hypergeometric_tail(right: int, labeled: int, predicted: int, n: int) -> float:
    """P(X >= right), with X the number of `labeled` texts among `predicted` ones drawn at random from n."""
    counts = np.arange(right, min(labeled, predicted) + 1)
    log_pmf = (
        _log_comb(labeled, counts) + _log_comb(n - labeled, predicted - counts) - _log_comb(n, np.array([predicted]))
    )
    return float(np.exp(log_pmf).sum())


def _log_comb(n: int, k: Counts) -> npt.NDArray[np.float64]:
    """log of n choose k, elementwise; -inf outside of 0 <= k <= n."""
    inside = (k >= 0) & (k <= n)
    values = [
        math.lgamma(n + 1) - math.lgamma(each + 1) - math.lgamma(n - each + 1) if ok else -math.inf
        for each, ok in zip(k.tolist(), inside.tolist(), strict=True)
    ]
    return np.array(values)


def _binomial_tail(k: int, n: int, p: float) -> float:
    """P(X >= k), for X of Binomial(n, p)."""
    return float(np.exp(_binomial_log_pmf(n, p)[k:]).sum())


@functools.lru_cache(maxsize=1024)
def _binomial_quantile(q: float, n: int, p: float) -> int:
    """The smallest k with P(X <= k) >= q, for X of Binomial(n, p)."""
    return int(np.searchsorted(np.cumsum(np.exp(_binomial_log_pmf(n, p))), q))


def _binomial_log_pmf(n: int, p: float) -> npt.NDArray[np.float64]:
    """log P(X = k) for k from 0 to n."""
    if p >= 1:
        return np.concatenate([np.full(n, -math.inf), [0.0]])
    k = np.arange(1, n + 1)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log(n - k + 1) - np.log(k))])
    log_pmf: npt.NDArray[np.float64] = (
        log_choose + np.arange(n + 1) * math.log(p) + np.arange(n, -1, -1) * math.log1p(-p)
    )
    return log_pmf


def wilson_interval(count: int, n: int) -> tuple[float, float]:
    """95 % confidence interval of a rate, from `count` events in `n` trials (Wilson 1927, score interval)."""
    if not n:
        return 0.0, 1.0
    z, share = 1.96, count / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(center - half, 0.0), min(center + half, 1.0)
