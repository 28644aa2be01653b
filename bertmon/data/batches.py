"""Padded batches of tokens: a few declared widths, and their order in an epoch.

Handles tokens only; data.tokenize makes them from texts.
Shapes: N texts of a split, B texts of a batch, T tokens of its longest text rounded up to a declared width, K tokens
of all texts.
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

_PREFETCH_BATCHES = 64  # batches whose texts are tokenized together if they are not all in memory


class Batch(NamedTuple):
    """Input of one step. Row i is one text; attention_mask is 1 on its tokens and 0 on the padding.

    With several processes, each has its part of the texts; a process that would have none has the first text, which
    must not be counted.
    """

    input_ids: Tensor  # [B, T] int32
    attention_mask: Tensor  # [B, T] int32
    labels: Tensor  # [B] int64
    global_size: int  # texts of the whole batch, over all processes
    token_counts: npt.NDArray[np.int64]  # [B] tokens of each text; on the host, to avoid device synchronization
    token_type_ids: Tensor | None = None  # [B, T] int32: 1 in the second text of a pair; None: single texts


def bucket_lengths(max_length: int, declared: Sequence[int] | None) -> list[int]:
    """The possible widths T of a batch: as declared, else the quarters of max_length rounded up to multiples of 8."""
    if declared is not None:
        return list(declared)
    quarters = (-(-max_length * quarter // 32) * 8 for quarter in (1, 2, 3))
    return sorted({length for length in quarters if length < max_length} | {max_length})


class _DeviceTokens:
    """Unpadded tokens on the device: text i is ids[starts[i] : ends[i]]."""

    def __init__(self, tokens: TokenizedTexts, device: torch.device) -> None:
        self.lengths = tokens.lengths  # [N] on the host: the width of a batch needs no device synchronization
        self.ids = torch.from_numpy(tokens.ids).to(device)  # [K]
        self.starts = torch.from_numpy(tokens.offsets[:-1]).to(device)  # [N]
        self.ends = torch.from_numpy(tokens.offsets[1:]).to(device)  # [N]
        self.type_ids = None if tokens.type_ids is None else torch.from_numpy(tokens.type_ids).to(device)  # [K]


class BatchLoader:
    """One split as batches of at most `batch_size` texts.

    tokens: those of all texts, which stay on the device; or a function that tokenizes the texts at given indices, which
    another thread calls ahead of time, for several batches at once.
    bucket_lengths: the possible widths of a batch, ascending.
    token_types: whether the model distinguishes the two texts of a pair by token_type_ids.
    """

    def __init__(
        self,
        tokens: TokenizedTexts | LazyTokens,
        labels: Sequence[int],
        *,
        batch_size: int,
        bucket_lengths: Sequence[int],
        pad_id: int,
        device: torch.device,
        token_types: bool = False,
    ) -> None:
        self._batch_size = batch_size
        self._bucket_lengths = bucket_lengths
        self._pad_id = pad_id
        self._token_types = token_types
        self._labels = torch.tensor(labels, dtype=torch.int64).to(device)
        self._tokenize = tokens if callable(tokens) else None
        self._all = None if callable(tokens) else self._to_device(tokens)
        assert self._all is None or len(self._all.lengths) == len(labels), (len(self._all.lengths), len(labels))

    def __len__(self) -> int:
        """Number of batches per epoch, including a smaller last one."""
        return -(-len(self._labels) // self._batch_size)

    def epoch_batches(self, seed: int, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Batches of all texts in an order that depends only on (seed, epoch), starting with batch number `first`."""
        order = np.random.default_rng((seed, epoch)).permutation(len(self._labels))
        return self._batches(order[first * self._batch_size :])

    def sorted_by_length(self) -> Iterator[Batch]:
        """Batches of all texts, shortest first, which reduces padding. Needs the tokens of all texts in memory."""
        assert self._all is not None
        return self._batches(np.argsort(self._all.lengths, kind="stable"))

    def _batches(self, order: npt.NDArray[np.int64]) -> Iterator[Batch]:
        for tokens, rows, texts in self._prefetch(order):
            device_rows, device_texts = (torch.from_numpy(array).to(self._labels.device) for array in (rows, texts))
            for start in range(0, len(rows), self._batch_size):
                end = min(start + self._batch_size, len(rows))
                part = _part_of_rank(start, end)
                lengths = tokens.lengths[rows[part]]
                ids, mask, type_ids = self._padded(tokens, device_rows[part], longest=int(lengths.max()))
                yield Batch(ids, mask, self._labels[device_texts[part]], end - start, lengths, type_ids)

    def _padded(self, tokens: _DeviceTokens, rows: Tensor, *, longest: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Token ids, attention mask and, if needed, token type ids of these rows [B], each [B, T]."""
        width = next(length for length in self._bucket_lengths if length >= longest)
        positions = tokens.starts[rows, None] + torch.arange(width, device=rows.device)  # in tokens.ids, [B, T]
        mask = positions < tokens.ends[rows, None]
        positions.clamp_(max=len(tokens.ids) - 1)
        ids = tokens.ids[positions].masked_fill_(~mask, self._pad_id)
        if tokens.type_ids is None or not self._token_types:
            return ids, mask.int(), None
        return ids, mask.int(), tokens.type_ids[positions].int() * mask

    def _prefetch(
        self, order: npt.NDArray[np.int64]
    ) -> Iterator[tuple[_DeviceTokens, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """(tokens, rows in them, indices of the texts in these rows), for all texts at once or chunk by chunk."""
        if self._all is not None:
            yield self._all, order, order
        if self._tokenize is not None and len(order):
            size = self._batch_size * _PREFETCH_BATCHES
            chunks = [order[start : start + size] for start in range(0, len(order), size)]
            with ThreadPoolExecutor(1) as thread:
                future = thread.submit(self._tokenize, chunks[0])
                for chunk, next_chunk in zip(chunks, [*chunks[1:], None], strict=True):
                    tokens = future.result()
                    if next_chunk is not None:
                        future = thread.submit(self._tokenize, next_chunk)
                    yield self._to_device(tokens), np.arange(len(chunk)), chunk

    def _to_device(self, tokens: TokenizedTexts) -> _DeviceTokens:
        assert tokens.lengths.max() <= self._bucket_lengths[-1], (tokens.lengths.max(), self._bucket_lengths)
        return _DeviceTokens(tokens, self._labels.device)


def _part_of_rank(start: int, end: int) -> slice:
    """This process's texts of the batch [start, end): every world_size-th one, or the first if there is none."""
    rank, size = distributed.rank(), distributed.world_size()
    return slice(start + rank, end, size) if start + rank < end else slice(start, start + 1)
