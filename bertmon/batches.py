"""Tokens to batches: padding, a few declared shapes, the order of an epoch. All tokens stay on the device, unpadded.

Shapes: N texts, B texts of a batch, T tokens of its longest text rounded up to a declared length.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bertmon import distributed
from bertmon.tokens import Tokens


class Batch(NamedTuple):
    """What a step takes. Row i is one text; attention_mask is 1 on its tokens and 0 on the padding.

    Of several processes each has its share of the texts; one that would have none has the first text, which must not
    count.
    """

    input_ids: Tensor  # [B, T] int32
    attention_mask: Tensor  # [B, T] int32
    labels: Tensor  # [B] int64
    texts: int  # of the whole batch, over all processes


def pad_lengths(max_length: int, declared: Sequence[int] | None) -> list[int]:
    """The lengths a batch may have: as declared, else the quarters of max_length rounded up to a multiple of 8."""
    if declared is not None:
        return list(declared)
    quarters = (-(-max_length * quarter // 32) * 8 for quarter in (1, 2, 3))
    return sorted({length for length in quarters if length < max_length} | {max_length})


class Batches:
    """One split as batches of at most `batch_size` texts."""

    def __init__(
        self,
        tokens: Tokens,
        labels: Sequence[int],
        *,
        batch_size: int,
        lengths: Sequence[int],
        pad_id: int,
        device: torch.device,
    ) -> None:
        assert len(tokens) == len(labels), (len(tokens), len(labels))
        assert tokens.lengths.max() <= lengths[-1], (tokens.lengths.max(), lengths)
        self._batch_size = batch_size
        self._lengths = lengths
        self._pad_id = pad_id
        self._text_lengths = tokens.lengths
        self._ids = torch.from_numpy(tokens.ids).to(device)
        self._starts = torch.from_numpy(tokens.offsets[:-1]).to(device)
        self._ends = torch.from_numpy(tokens.offsets[1:]).to(device)
        self._labels = torch.tensor(labels, dtype=torch.int64).to(device)

    def __len__(self) -> int:
        """Batches an epoch, the last, smaller one included."""
        return -(-len(self._text_lengths) // self._batch_size)

    def shuffled(self, seed: int, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Every text once, in an order that depends on (seed, epoch) alone; from the `first` batch on."""
        order = np.random.default_rng((seed, epoch)).permutation(len(self._text_lengths))
        return self._batches(order[first * self._batch_size :])

    def by_length(self) -> Iterator[Batch]:
        """Every text once, the short ones first, so that evaluation pads little."""
        return self._batches(np.argsort(self._text_lengths, kind="stable"))

    def _batches(self, order: npt.NDArray[np.int64]) -> Iterator[Batch]:
        on_device = torch.from_numpy(order).to(self._labels.device)
        rank, size = distributed.rank(), distributed.size()
        for start in range(0, len(order), self._batch_size):
            end = min(start + self._batch_size, len(order))
            rows = slice(start + rank, end, size) if start + rank < end else slice(start, start + 1)
            longest = self._text_lengths[order[rows]].max()  # known on the host: no wait for the device
            width = next(length for length in self._lengths if length >= longest)
            texts = on_device[rows]
            places = self._starts[texts, None] + torch.arange(width, device=texts.device)  # in all ids, [B, T]
            within = places < self._ends[texts, None]
            ids = self._ids[places.clamp_(max=len(self._ids) - 1)].masked_fill_(~within, self._pad_id)
            yield Batch(ids, within.int(), self._labels[texts], end - start)
