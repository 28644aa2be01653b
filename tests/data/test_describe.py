from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY

from bertmon.data import Corpus, Split, describe, tokenize
from bertmon.data.describe import describe_corpus
from bertmon.data.tokenize import TextTokenizer

NAMES = ("sea", "sky")
RNG = np.random.default_rng(0)
DNA = ["".join(RNG.choice(list("ACGT"), 150)) for _ in range(20)]


def corpus(texts, test=("other text", "more of it"), names=NAMES, **changes):
    def split(texts):
        return Split(list(texts), [number % len(names) for number in range(len(texts))])

    return Corpus(split(texts), split(test), names, **changes)


@pytest.fixture
def limited_tokenizer(tmp_path):
    """A tokenizer that turns words of more than 100 characters into [UNK], as BERT's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece({"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return TextTokenizer(tokenizer, pad_id=0, unk_id=1)


@pytest.fixture
def train_tokenizer(tmp_path):
    def train(texts):
        return tokenize.load_tokenizer(TINY, texts, tmp_path)

    return train


def test_describe_corpus_of_clean_texts_has_no_warning(train_tokenizer):
    texts = ["a boat upon a wave", "a bird in the wind", "salt", "cloud"]
    description = describe_corpus(corpus(texts), train_tokenizer(texts), 32)
    assert description.warnings == []
    assert description.lines[0] == "2 classes (train / test texts): sea 2 / 1, sky 2 / 1"
    assert (description.truncated_share, description.unknown_share, description.overlap) == (0, 0, 0)


def test_describe_corpus_with_validation_counts_it(train_tokenizer):
    texts = ["a boat upon a wave", "a bird in the wind"]
    described = describe_corpus(corpus(texts, validation=Split(["x"], [1])), train_tokenizer(texts), 32)
    assert described.lines[0] == "2 classes (train / validation / test texts): sea 1 / 0 / 1, sky 1 / 1 / 1"


def test_describe_corpus_of_many_classes_names_the_extremes(train_tokenizer):
    texts = [f"text {number}" for number in range(25)]
    names = tuple(f"class {number}" for number in range(12))
    line = describe_corpus(corpus(texts, names=names), train_tokenizer(texts), 32).lines[0]
    assert line == "12 classes (train / test texts): from class 1 2 / 1 to class 0 3 / 1"


def test_describe_corpus_of_texts_without_blanks_warns_of_unknown_words(limited_tokenizer):
    description = describe_corpus(corpus([*DNA[:3], "a " + DNA[3], "a b a b"]), limited_tokenizer, 32)
    assert description.unknown_share == 3 / 5
    assert description.unknown_token_share == 4 / 9
    assert "60.0 % of them are [UNK] only, and 44.4 % of all tokens are [UNK]" in description.warnings[0]


def test_describe_corpus_with_its_own_vocabulary_has_no_unknown_tokens(train_tokenizer):
    description = describe_corpus(corpus(DNA), train_tokenizer(DNA), 32)
    assert description.unknown_token_share == 0
    assert not any("[UNK]" in warning for warning in description.warnings)


def test_describe_corpus_of_long_texts_warns_of_truncation(train_tokenizer):
    texts = ["a boat " * 20, "a bird " * 20, "salt"]
    description = describe_corpus(corpus(texts), train_tokenizer(texts), 8)
    assert description.truncated_share == 2 / 3
    assert description.lines[1].startswith("66.7 % of the training texts reach data.max_length=8 tokens")
    assert description.warnings == []
    assert "larger data.max_length" in describe_corpus(corpus(texts[:2]), train_tokenizer(texts), 8).warnings[0]
    assert describe_corpus(corpus(texts[:2]), train_tokenizer(texts), 8, own_texts=False).warnings == []


def test_describe_corpus_with_test_texts_in_training_counts_them(train_tokenizer):
    texts = ["a boat", "a bird", "a wave"]
    description = describe_corpus(corpus(texts, test=("a bird", "a bird", "a cloud")), train_tokenizer(texts), 32)
    assert description.overlap == 2
    assert "2 of 3 test texts also occur in training" in description.warnings[0]


def test_describe_corpus_with_validation_texts_in_training_warns(train_tokenizer):
    texts = ["a boat", "a bird", "a wave"]
    split = Split(["a bird", "a fish"], [0, 1])
    description = describe_corpus(replace(corpus(texts), validation=split), train_tokenizer(texts), 32)
    assert description.overlap == 0
    assert "1 of 2 validation texts also occur in training" in description.warnings[0]


def test_describe_corpus_whose_test_part_lacks_classes_warns(train_tokenizer):
    texts, names = ["a boat", "a bird", "a wave"], ("sea", "sky", "land")
    one = replace(corpus(texts, names=names), test=Split(["x", "y"], [1, 1]))
    two = replace(corpus(texts, names=names), test=Split(["x", "y"], [1, 0]))
    assert describe_corpus(one, train_tokenizer(texts), 32).warnings == [
        "all test texts have the same label, so that their accuracy does not show learning"
    ]
    assert describe_corpus(two, train_tokenizer(texts), 32).warnings == ["no test text has the label land"]


def test_describe_corpus_with_pairs_compares_both_texts(train_tokenizer):
    texts = [("a", "b"), ("ab", "c")]
    assert describe_corpus(corpus(texts, test=[("a", "c"), ("a", "bc")]), train_tokenizer(texts), 32).overlap == 0
    assert describe_corpus(corpus(texts, test=[("a", "b"), ("a", "c")]), train_tokenizer(texts), 32).overlap == 1


def test_describe_corpus_with_labels_that_differ_by_case_warns(train_tokenizer):
    names = ("Sea", "cloud", "sea", "SEA")
    warning = describe_corpus(corpus(["a", "b"], names=names), train_tokenizer(["a", "b"]), 32).warnings[-1]
    assert warning == "labels that differ only in case are separate classes: Sea, sea, SEA"


def test_describe_corpus_with_notes_repeats_them_as_warnings(train_tokenizer):
    assert describe_corpus(corpus(["a", "b"], notes=("odd",)), train_tokenizer(["a", "b"]), 32).warnings == ["odd"]


def test_describe_corpus_is_the_same_from_tokens_and_from_texts(train_tokenizer, tmp_path):
    texts = [*DNA, "a boat " * 20]
    tokenizer = train_tokenizer(texts)
    tokens = tokenize.tokenize(tokenizer, texts, 16, tmp_path)
    assert describe_corpus(corpus(texts), tokenizer, 16, tokens) == describe_corpus(corpus(texts), tokenizer, 16)


def test_unknown_shares_of_an_empty_text_count_it_as_known(limited_tokenizer):
    tokens = tokenize.TokenizedTexts(np.array([0, 1], np.int32), np.array([0, 1, 2]))
    limited_tokenizer.tokenizer.add_special_tokens(["[PAD]"])
    assert describe._unknown_shares(tokens, limited_tokenizer) == (0.5, 1.0)
