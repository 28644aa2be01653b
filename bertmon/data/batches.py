"""Tokens to batches: padding, a few declared shapes, the order of an epoch.

Shapes: N texts, B texts of a batch, T tokens of its longest text rounded up to a declared length.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bertmon import distributed
from bertmon.data.tokenize import LazyTokens, TokenizedTexts

_PREFETCH_BATCHES = 64  # whose texts are tokenized together, where not all are


class Batch(NamedTuple):
    """What a step takes. Row i is one text; attention_mask is 1 on its tokens and 0 on the padding.

    Of several processes each has its share of the texts; one that would have none has the first text, which must not
    count.
    """

    input_ids: Tensor  # [B, T] int32
    attention_mask: Tensor  # [B, T] int32
    labels: Tensor  # [B] int64
    global_size: int  # of the whole batch, over all processes
    token_counts: npt.NDArray[np.int64]  # [B] tokens of each text; on the host, so that nobody has to ask the device


def bucket_lengths(max_length: int, declared: Sequence[int] | None) -> list[int]:
    """The lengths a batch may have: as declared, else the quarters of max_length rounded up to a multiple of 8."""
    if declared is not None:
        return list(declared)
    quarters = (-(-max_length * quarter // 32) * 8 for quarter in (1, 2, 3))
    return sorted({length for length in quarters if length < max_length} | {max_length})


class _DeviceTokens:
    """Tokens on the device, unpadded."""

    def __init__(self, tokens: TokenizedTexts, device: torch.device) -> None:
        self.lengths = tokens.lengths  # on the host: a batch's width is known without a wait for the device
        self.ids = torch.from_numpy(tokens.ids).to(device)
        self.starts = torch.from_numpy(tokens.offsets[:-1]).to(device)
        self.ends = torch.from_numpy(tokens.offsets[1:]).to(device)


class BatchLoader:
    """One split as batches of at most `batch_size` texts.

    tokens: those of all texts, which then lie on the device; or a function that makes them, which is asked for those of
    some batches at a time, in another thread and ahead of need.
    """

    def __init__(
        self,
        tokens: TokenizedTexts | LazyTokens,
        labels: Sequence[int],
        *,
        batch_size: int,
        lengths: Sequence[int],
        pad_id: int,
        device: torch.device,
    ) -> None:
        self._batch_size = batch_size
        self._lengths = lengths
        self._pad_id = pad_id
        self._labels = torch.tensor(labels, dtype=torch.int64).to(device)
        self._tokens_of = tokens if callable(tokens) else None
        self._all = None if callable(tokens) else self._to_device(tokens)
        assert self._all is None or len(self._all.lengths) == len(labels), (len(self._all.lengths), len(labels))

    def __len__(self) -> int:
        """Batches an epoch, the last, smaller one included."""
        return -(-len(self._labels) // self._batch_size)

    def epoch_batches(self, seed: int, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Every text once, in an order that depends on (seed, epoch) alone; from the `first` batch on."""
        order = np.random.default_rng((seed, epoch)).permutation(len(self._labels))
        return self._batches(order[first * self._batch_size :])

    def sorted_by_length(self) -> Iterator[Batch]:
        """Every text once, the short ones first, so that evaluation pads little; only where all tokens are there."""
        assert self._all is not None
        return self._batches(np.argsort(self._all.lengths, kind="stable"))

    def _batches(self, order: npt.NDArray[np.int64]) -> Iterator[Batch]:
        rank, size = distributed.rank(), distributed.world_size()
        for held, rows, texts in self._prefetch(order):
            rows_there, texts_there = (torch.from_numpy(each).to(self._labels.device) for each in (rows, texts))
            for start in range(0, len(rows), self._batch_size):
                end = min(start + self._batch_size, len(rows))
                share = slice(start + rank, end, size) if start + rank < end else slice(start, start + 1)
                lengths = held.lengths[rows[share]]
                width = next(length for length in self._lengths if length >= lengths.max())
                own = rows_there[share]
                places = held.starts[own, None] + torch.arange(width, device=own.device)  # in all ids, [B, T]
                within = places < held.ends[own, None]
                ids = held.ids[places.clamp_(max=len(held.ids) - 1)].masked_fill_(~within, self._pad_id)
                yield Batch(ids, within.int(), self._labels[texts_there[share]], end - start, lengths)

    def _prefetch(
        self, order: npt.NDArray[np.int64]
    ) -> Iterator[tuple[_DeviceTokens, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Some batches after the other: tokens, their rows there, and the texts that these are."""
        if self._all is not None:
            yield self._all, order, order
        if self._tokens_of is not None and len(order):
            size = self._batch_size * _PREFETCH_BATCHES
            portions = [order[start : start + size] for start in range(0, len(order), size)]
            with ThreadPoolExecutor(1) as ahead:
                coming = ahead.submit(self._tokens_of, portions[0])
                for portion, following in zip(portions, [*portions[1:], None], strict=True):
                    tokens = coming.result()
                    if following is not None:
                        coming = ahead.submit(self._tokens_of, following)
                    yield self._to_device(tokens), np.arange(len(portion)), portion

    def _to_device(self, tokens: TokenizedTexts) -> _DeviceTokens:
        assert tokens.lengths.max() <= self._lengths[-1], (tokens.lengths.max(), self._lengths)
        return _DeviceTokens(tokens, self._labels.device)
