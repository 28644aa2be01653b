"""The training labels in any common form, and the chance loss that they imply.

Shapes: B texts, T tokens, C classes.
"""

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bertmon.data.corpus import entropy
from bertmon.errors import InputError, require

_CLASSES = "the labels of the training texts, of at least two classes"
_EXPECTED = "the class numbers (0, 1, ...) of the training texts, of at least two classes"
IGNORED = -100  # transformers' label for tokens without one


def chance_loss(labels: Sequence[Any] | Tensor) -> float:
    """Entropy of the labels in nats: the loss of a model that ignores the texts.

    labels: one class number per text, or a row of them per text, one per token; negative ones are ignored.
    Raises InputError for anything else.
    """
    classes = [number for number in class_numbers(labels) if number >= 0]
    require(len(set(classes)) > 1, "labels", f"{len(classes)} labels of {len(set(classes))} classes", _CLASSES)
    return entropy(classes)


def class_numbers(labels: Sequence[Any] | Tensor) -> list[int]:
    """All class numbers as a flat list. Raises InputError for names, one-hot rows, fractions and missing labels."""
    if labels is None or isinstance(labels, str | bytes):
        raise InputError(f"labels: expected {_EXPECTED}, got {labels!r}.")
    rows = labels.tolist() if isinstance(labels, Tensor) else [_plain(label) for label in labels]
    if rows and all(isinstance(row, list) for row in rows):
        if _one_hot(rows):
            raise InputError(
                f"labels: expected {_EXPECTED}, got one-hot rows such as {rows[0]}: pass argmax over each row."
            )
        rows = [label for row in rows for label in row]
    return [_class_number(label) for label in rows]


def cross_entropy_sum(logits: Tensor, labels: Any) -> tuple[Tensor, Tensor] | None:
    """Sum of cross-entropies [] and number of labels [] for logits [B, C] or [B, T, C]; None if labels do not match.

    Labels that are not class numbers, such as -100, are skipped; on CUDA they would abort the process.
    """
    classes = logits.shape[-1]
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != logits.shape[:-1] or classes < 2:
        return None
    scores, targets = logits.detach().float().flatten(0, -2), labels.flatten().long()
    counted = (targets >= 0) & (targets < classes)
    targets = torch.where(counted, targets, IGNORED)
    return F.cross_entropy(scores, targets, reduction="sum", ignore_index=IGNORED), counted.sum()


def _plain(label: Any) -> Any:
    """The label, with tensors, arrays and tuples converted to plain Python values."""
    return label.tolist() if hasattr(label, "tolist") else list(label) if isinstance(label, tuple) else label


def _one_hot(rows: Sequence[list[Any]]) -> bool:
    def zero_or_one(row: list[Any]) -> Iterator[bool]:
        return (value in (0, 1) for value in row)

    return all(len(row) == len(rows[0]) > 1 and all(zero_or_one(row)) and sum(row) == 1 for row in rows)


def _class_number(label: Any) -> int:
    try:
        return operator.index(label)
    except TypeError:
        raise InputError(
            f"labels: expected {_EXPECTED}, got {label!r} ({type(label).__name__}): number the classes first."
        ) from None
