"""The cross-entropy of a batch's labels."""

import pytest
import torch
import torch.nn.functional as F

from bertmon.integrations.labels import cross_entropy_sum

LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("other", [-100, -1, 3, 7])
def test_cross_entropy_counts_only_labels_that_are_classes(other):
    total, count = cross_entropy_sum(LOGITS, torch.tensor([0, 1, 2, other, 1, other]))
    rows = [0, 1, 2, 4]
    assert count == 4
    assert total == pytest.approx(F.cross_entropy(LOGITS[rows], torch.tensor([0, 1, 2, 1]), reduction="sum").item())


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (LOGITS, torch.zeros(6)),
        (LOGITS, torch.zeros(5, dtype=torch.long)),
        (LOGITS, None),
        (LOGITS[:, :1], torch.tensor([0, 1, 0, 1, 0, 1])),  # one logit and a binary cross-entropy
    ],
)
def test_cross_entropy_of_labels_that_do_not_fit_is_none(logits, labels):
    assert cross_entropy_sum(logits, labels) is None
