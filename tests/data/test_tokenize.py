import dataclasses

import numpy as np
import pytest
from conftest import SHARED, TEXTS, TINY

from bertmon.data import tokenize
from bertmon.errors import InputError


def test_load_tokenizer_trained_twice_gives_the_same_vocabulary(tmp_path):
    one = tokenize.load_tokenizer(TINY, TEXTS * 3, tmp_path / "one")
    two = tokenize.load_tokenizer(TINY, TEXTS * 3, tmp_path / "two")
    assert one.tokenizer.to_str() == two.tokenizer.to_str()
    assert one.pad_id == one.tokenizer.token_to_id("[PAD]") == 0
    assert one.size == one.tokenizer.get_vocab_size() <= 8000


def test_load_tokenizer_with_the_same_texts_trains_once(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(
        tokenize,
        "_train_wordpiece",
        lambda texts, size, train=tokenize._train_wordpiece: trained.append(1) or train(texts, size),
    )
    for texts in (TEXTS, TEXTS, [*TEXTS, "one more"]):
        tokenize.load_tokenizer(TINY, texts, tmp_path)
    assert len(trained) == 2


@pytest.mark.parametrize("max_length", [8, 16, 64])
def test_tokenize_many_texts_equals_each_text_alone(tmp_path, max_length):
    tokenizer = tokenize.load_tokenizer(TINY, TEXTS, tmp_path)
    tokens = tokenize.tokenize(tokenizer, TEXTS, max_length, tmp_path)
    assert len(tokens) == len(TEXTS)
    for index, text in enumerate(TEXTS):
        ids = tokens.ids[tokens.offsets[index] : tokens.offsets[index + 1]].tolist()
        alone = tokenizer.tokenizer.encode(text, add_special_tokens=False).ids[: max_length - 2]
        cls, sep = (tokenizer.tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]"))
        assert ids == [cls, *alone, sep]
        assert tokens.lengths[index] == len(ids) <= max_length


def test_tokenize_the_same_texts_twice_reads_the_cache(tmp_path, monkeypatch):
    tokenizer = tokenize.load_tokenizer(TINY, TEXTS, tmp_path)
    first = tokenize.tokenize(tokenizer, TEXTS, 16, tmp_path)

    def never(*args, **kwargs):
        raise AssertionError("tokenized again")

    monkeypatch.setattr(tokenize.np, "concatenate", never)
    second = tokenize.tokenize(tokenizer, TEXTS, 16, tmp_path)
    assert np.array_equal(first.ids, second.ids)
    assert np.array_equal(first.offsets, second.offsets)
    with pytest.raises(AssertionError, match="again"):
        tokenize.tokenize(tokenizer, TEXTS, 15, tmp_path)


def test_tokenize_in_portions_gives_the_same_ids(tmp_path, monkeypatch):
    tokenizer = tokenize.load_tokenizer(TINY, TEXTS, tmp_path)
    at_once = tokenize.tokenize(tokenizer, TEXTS, 16, tmp_path / "at_once")
    monkeypatch.setattr(tokenize, "_ENCODE_BATCH", 2)
    portions = tokenize.tokenize(tokenizer, TEXTS, 16, tmp_path / "portions")
    assert np.array_equal(at_once.ids, portions.ids)


def test_tokenize_lazily_gives_the_ids_of_tokenize(tmp_path):
    tokenizer = tokenize.load_tokenizer(TINY, TEXTS, tmp_path)
    at_once = tokenize.tokenize(tokenizer, TEXTS, 16, tmp_path)
    calls = []
    lazy = tokenize.tokenize_lazily(tokenizer, lambda rows: calls.append(rows) or (TEXTS[row] for row in rows), 16)
    assert calls == []
    indices = np.array([3, 0, 4])
    assert np.array_equal(lazy(indices).lengths, at_once.lengths[indices])
    for row, index in enumerate(indices):
        ids = lazy(indices).ids[lazy(indices).offsets[row] : lazy(indices).offsets[row + 1]]
        assert np.array_equal(ids, at_once.ids[at_once.offsets[index] : at_once.offsets[index + 1]])


def test_load_tokenizer_with_many_texts_trains_on_evenly_spaced_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenize, "_MAX_VOCAB_TEXTS", 3)
    many = [f"boat{number} upon the sea" for number in range(10)]
    trained = tokenize.load_tokenizer(TINY, many, tmp_path)
    monkeypatch.undo()
    expected = tokenize.load_tokenizer(TINY, [many[0], many[3], many[6]], tmp_path / "other")
    assert trained.tokenizer.to_str() == expected.tokenizer.to_str()


def test_load_tokenizer_from_a_folder_gives_the_saved_one(tmp_path):
    from transformers import PreTrainedTokenizerFast

    tokenizer = tokenize.load_tokenizer(TINY, TEXTS, tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        tmp_path / "saved"
    )
    named = dataclasses.replace(TINY, tokenizer=str(tmp_path / "saved"))
    loaded = tokenize.load_tokenizer(named, ["unused"], tmp_path)
    assert loaded.pad_id == 0
    assert np.array_equal(
        tokenize.tokenize(loaded, TEXTS, 16, tmp_path / "a").ids,
        tokenize.tokenize(tokenizer, TEXTS, 16, tmp_path / "b").ids,
    )


@pytest.mark.parametrize("key", ["tokenizer", "name"])
def test_load_tokenizer_from_an_empty_folder_is_refused(tmp_path, key):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=rf"model\.{key}={empty}: could not load a tokenizer"):
        tokenize.load_tokenizer(dataclasses.replace(TINY, **{key: str(empty)}), TEXTS, tmp_path)


@pytest.mark.skipif(not (SHARED / "bert-base-uncased").is_dir(), reason="BERT's vocabulary is not on this machine")
def test_load_tokenizer_of_bert_base_uncased_gives_its_ids(tmp_path):
    named = dataclasses.replace(TINY, tokenizer=str(SHARED / "bert-base-uncased"))
    tokenizer = tokenize.load_tokenizer(named, TEXTS, tmp_path)
    assert (tokenizer.size, tokenizer.pad_id) == (30522, 0)
    assert tokenize.tokenize(tokenizer, ["Hello, world!"], 16, tmp_path).ids.tolist() == [
        101,
        7592,
        1010,
        2088,
        999,
        102,
    ]


def test_load_tokenizer_trained_on_texts_without_blanks_covers_long_words(tmp_path):
    texts = ["ACGT" * 60, "TTGA" * 60, "a boat"]
    tokenizer = tokenize.load_tokenizer(TINY, texts, tmp_path)
    tokens = tokenize.tokenize(tokenizer, texts, 256, tmp_path)
    assert tokenizer.unk_id == tokenizer.tokenizer.token_to_id("[UNK]")
    assert tokenizer.unk_id not in tokens.ids
    assert tokenizer.tokenizer.decode(tokens.ids[: tokens.offsets[1]].tolist()).replace(" ", "") == "acgt" * 60


PAIRS = [("a boat", "upon a wave"), ("the sea " * 20, "a boat"), ("salt", "the sea " * 20)]


def test_tokenize_pairs_gives_both_texts_with_their_types(tmp_path):
    tokenizer = tokenize.load_tokenizer(TINY, PAIRS, tmp_path)
    cls, sep = (tokenizer.tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    for _ in range(2):  # the second time from the cache
        tokens = tokenize.tokenize(tokenizer, PAIRS, 16, tmp_path)
        first, second = (tokenizer.tokenizer.encode(part, add_special_tokens=False).ids for part in PAIRS[0])
        assert tokens.ids[: tokens.offsets[1]].tolist() == [cls, *first, sep, *second, sep]
        expected_types = [0] * (len(first) + 2) + [1] * (len(second) + 1)
        assert tokens.type_ids[: tokens.offsets[1]].tolist() == expected_types
        assert tokens.lengths.tolist()[1:] == [16, 16]
        assert [set(types) for types in np.split(tokens.type_ids, tokens.offsets[1:-1])] == 3 * [{0, 1}]


def test_tokenize_single_texts_gives_no_types(tmp_path):
    tokenizer = tokenize.load_tokenizer(TINY, TEXTS, tmp_path)
    assert tokenize.tokenize(tokenizer, TEXTS, 16, tmp_path).type_ids is None


def test_tokenize_lazily_of_pairs_gives_the_types_of_tokenize(tmp_path):
    tokenizer = tokenize.load_tokenizer(TINY, PAIRS, tmp_path)
    at_once = tokenize.tokenize(tokenizer, PAIRS, 16, tmp_path)
    lazily = tokenize.tokenize_lazily(tokenizer, lambda indices: (PAIRS[index] for index in indices), 16)
    assert np.array_equal(lazily(np.arange(3)).type_ids, at_once.type_ids)
