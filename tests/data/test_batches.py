import threading

import numpy as np
import pytest
import torch

from bertmon.data import batches
from bertmon.data.batches import BatchLoader, bucket_lengths
from bertmon.data.tokenize import TokenizedTexts

CPU = torch.device("cpu")
PAD = 9
LENGTHS = [5, 2, 8, 3, 1, 7, 4]


@pytest.fixture
def texts():
    rng = np.random.default_rng(0)
    return [rng.integers(10, 99, length).tolist() for length in LENGTHS]


@pytest.fixture
def loader(texts):
    tokens = TokenizedTexts(np.concatenate(texts).astype(np.int32), np.cumsum([0, *LENGTHS]))
    return BatchLoader(tokens, list(range(7)), batch_size=3, bucket_lengths=[4, 8], pad_id=PAD, device=CPU)


@pytest.fixture
def streamed(texts, monkeypatch):
    """A loader that tokenizes the same texts four at a time, and the indices that it requested."""
    monkeypatch.setattr(batches, "_PREFETCH_BATCHES", 2)
    requests = []

    def tokens_of(indices):
        requests.append(indices.tolist())
        some = [texts[index] for index in indices]
        return TokenizedTexts(np.concatenate(some).astype(np.int32), np.cumsum([0, *map(len, some)]))

    loader = BatchLoader(tokens_of, list(range(7)), batch_size=2, bucket_lengths=[4, 8], pad_id=PAD, device=CPU)
    return loader, requests


@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_batch_loader_with_lazy_tokens_gives_the_same_batches(texts, streamed, first):
    tokens = TokenizedTexts(np.concatenate(texts).astype(np.int32), np.cumsum([0, *LENGTHS]))
    eager = BatchLoader(tokens, list(range(7)), batch_size=2, bucket_lengths=[4, 8], pad_id=PAD, device=CPU)
    loader, requests = streamed
    assert len(loader) == len(eager) == 4
    assert requests == []
    loaded, expected = list(loader.epoch_batches(1, 2, first)), list(eager.epoch_batches(1, 2, first))
    assert len(loaded) == len(expected) == 4 - first
    for one, other in zip(loaded, expected, strict=True):
        assert one.global_size == other.global_size
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one[:3], other[:3], strict=True))
    assert [len(portion) for portion in requests] == {0: [4, 3], 1: [4, 1], 3: [1], 4: []}[first]


def test_batch_loader_closed_early_leaves_no_thread(streamed):
    before = threading.active_count()
    epoch = streamed[0].epoch_batches(0, 0)
    next(epoch)
    epoch.close()
    assert threading.active_count() == before


def test_batch_loader_with_an_unreadable_text_raises_in_the_loop(streamed):
    loader, _ = streamed
    loader._tokenize = lambda indices: {}[7]
    with pytest.raises(KeyError):
        next(loader.epoch_batches(0, 0))


@pytest.mark.parametrize(
    ("max_length", "lengths"), [(64, [16, 32, 48, 64]), (256, [64, 128, 192, 256]), (30, [8, 16, 24, 30]), (8, [8])]
)
def test_default_bucket_lengths_are_quarters(max_length, lengths):
    assert bucket_lengths(max_length, None) == lengths
    assert bucket_lengths(max_length, [3, max_length]) == [3, max_length]


@pytest.mark.parametrize("order", ["epoch_batches", "sorted_by_length"])
def test_batch_loader_over_an_epoch_gives_every_text_once_padded(loader, texts, order):
    seen = []
    loaded = list(loader.epoch_batches(seed=3, epoch=1) if order == "epoch_batches" else loader.sorted_by_length())
    assert len(loaded) == len(loader) == 3
    for batch in loaded:
        longest = max(LENGTHS[label] for label in batch.labels)
        assert batch.input_ids.shape == batch.attention_mask.shape == (len(batch.labels), 4 if longest <= 4 else 8)
        for row, label in enumerate(batch.labels.tolist()):
            width = batch.input_ids.shape[1]
            assert batch.input_ids[row].tolist() == texts[label] + [PAD] * (width - LENGTHS[label])
            assert batch.attention_mask[row].tolist() == [1] * LENGTHS[label] + [0] * (width - LENGTHS[label])
            seen.append(label)
    assert sorted(seen) == list(range(7))
    if order == "sorted_by_length":
        assert [LENGTHS[label] for label in seen] == sorted(LENGTHS)


def test_epoch_batches_order_depends_only_on_seed_and_epoch(loader):
    def order(seed, epoch):
        return [label for batch in loader.epoch_batches(seed, epoch) for label in batch.labels.tolist()]

    first = order(0, 0)
    torch.manual_seed(5)
    np.random.seed(5)
    assert order(0, 0) == first
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_batch_loader_asserts_that_texts_fit_the_widest_bucket(texts):
    tokens = TokenizedTexts(np.concatenate(texts).astype(np.int32), np.cumsum([0, *LENGTHS]))
    with pytest.raises(AssertionError):
        BatchLoader(tokens, list(range(7)), batch_size=3, bucket_lengths=[4], pad_id=PAD, device=CPU)


@pytest.mark.parametrize("lazy", [False, True])
def test_batch_loader_with_pairs_gives_token_types_on_request(texts, lazy):
    offsets = np.cumsum([0, *LENGTHS])
    types = np.concatenate([np.arange(length) >= length // 2 for length in LENGTHS]).astype(np.int8)
    tokens = TokenizedTexts(np.concatenate(texts).astype(np.int32), offsets, types)

    def take(indices):
        parts = [slice(offsets[index], offsets[index + 1]) for index in indices]
        lengths = [0, *(LENGTHS[index] for index in indices)]
        ids, kinds = (np.concatenate([array[part] for part in parts]) for array in (tokens.ids, types))
        return TokenizedTexts(ids, np.cumsum(lengths), kinds)

    def batches_of(token_types):
        loader = BatchLoader(
            take if lazy else tokens,
            list(range(7)),
            batch_size=3,
            bucket_lengths=[4, 8],
            pad_id=PAD,
            device=CPU,
            token_types=token_types,
        )
        return list(loader.epoch_batches(0, 0))

    assert all(batch.token_type_ids is None for batch in batches_of(False))
    for batch in batches_of(True):
        assert batch.token_type_ids.dtype == torch.int32
        for row, label in enumerate(batch.labels.tolist()):
            expected = types[offsets[label] : offsets[label + 1]].tolist()
            padding = [0] * (batch.input_ids.shape[1] - LENGTHS[label])
            assert batch.token_type_ids[row].tolist() == expected + padding
