import numpy as np
import pytest
import torch

from bertmon.batches import Batches, pad_lengths
from bertmon.tokens import Tokens

PAD = 9
LENGTHS = [5, 2, 8, 3, 1, 7, 4]


@pytest.fixture
def texts():
    rng = np.random.default_rng(0)
    return [rng.integers(10, 99, length).tolist() for length in LENGTHS]


@pytest.fixture
def made(texts):
    tokens = Tokens(np.concatenate(texts).astype(np.int32), np.cumsum([0, *LENGTHS]))
    return Batches(tokens, list(range(7)), batch_size=3, lengths=[4, 8], pad_id=PAD, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("max_length", "lengths"), [(64, [16, 32, 48, 64]), (256, [64, 128, 192, 256]), (30, [8, 16, 24, 30]), (8, [8])]
)
def test_undeclared_lengths_are_quarters(max_length, lengths):
    assert pad_lengths(max_length, None) == lengths
    assert pad_lengths(max_length, [3, max_length]) == [3, max_length]


@pytest.mark.parametrize("order", ["shuffled", "by_length"])
def test_every_text_comes_once_padded_to_a_declared_length(made, texts, order):
    seen = []
    batches = list(made.shuffled(seed=3, epoch=1) if order == "shuffled" else made.by_length())
    assert len(batches) == len(made) == 3
    for batch in batches:
        longest = max(LENGTHS[label] for label in batch.labels)
        assert batch.input_ids.shape == batch.attention_mask.shape == (len(batch.labels), 4 if longest <= 4 else 8)
        for row, label in enumerate(batch.labels.tolist()):
            width = batch.input_ids.shape[1]
            assert batch.input_ids[row].tolist() == texts[label] + [PAD] * (width - LENGTHS[label])
            assert batch.attention_mask[row].tolist() == [1] * LENGTHS[label] + [0] * (width - LENGTHS[label])
            seen.append(label)
    assert sorted(seen) == list(range(7))
    if order == "by_length":
        assert [LENGTHS[label] for label in seen] == sorted(LENGTHS)


def test_the_order_depends_on_seed_and_epoch_alone(made):
    def order(seed, epoch):
        return [label for batch in made.shuffled(seed, epoch) for label in batch.labels.tolist()]

    first = order(0, 0)
    torch.manual_seed(5)
    np.random.seed(5)
    assert order(0, 0) == first
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_a_text_longer_than_the_lengths_is_our_own_bug(texts):
    tokens = Tokens(np.concatenate(texts).astype(np.int32), np.cumsum([0, *LENGTHS]))
    with pytest.raises(AssertionError):
        Batches(tokens, list(range(7)), batch_size=3, lengths=[4], pad_id=PAD, device=torch.device("cpu"))
