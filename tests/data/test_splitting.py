import pytest

from bertmon.data import Corpus, Split
from bertmon.data.splitting import split_off, with_validation
from bertmon.errors import InputError

NAMES = ("a", "b", "c")
FULL = Split([f"text {number}" for number in range(60)], [(0, 0, 0, 1, 1, 2)[number % 6] for number in range(60)])


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5])
def test_split_off_is_stratified_disjoint_and_in_order(fraction):
    rest, part = split_off(FULL, fraction, 0, NAMES, key="data.test_frac")
    assert len(part) == round(60 * fraction)
    assert part.class_counts(3).tolist() == [round(count * fraction) for count in (30, 20, 10)]
    assert sorted(rest.texts + part.texts) == sorted(FULL.texts)
    for split in (rest, part):
        indices = [FULL.texts.index(text) for text in split.texts]
        assert indices == sorted(indices)
        assert split.labels == [FULL.labels[index] for index in indices]


def test_split_off_depends_only_on_the_seed():
    first, again, other = (split_off(FULL, 0.2, seed, NAMES, key="k")[1].texts for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("fraction", [0.999, 0.01, 0.97])
def test_split_off_that_leaves_a_class_without_texts_is_refused(fraction):
    with pytest.raises(InputError, match=rf"data\.test_frac: .* got {fraction}: class c has 10 of the 60 texts\."):
        split_off(FULL, fraction, 0, NAMES, key="data.test_frac")


def test_split_off_of_a_class_with_one_text_is_refused_whatever_the_fraction():
    with pytest.raises(InputError, match=r"at least two texts of every class to split: class c has 1 of the 5 texts"):
        split_off(Split(list("vwxyz"), [0, 0, 1, 1, 2]), 0.5, 0, NAMES, key="data.test_frac")


def test_with_validation_takes_it_from_the_training_texts():
    corpus = with_validation(Corpus(FULL, Split(["x"], [0]), NAMES), 0.2, 0)
    assert (len(corpus.train), len(corpus.validation), corpus.test.texts) == (48, 12, ["x"])
    assert not set(corpus.train.texts) & set(corpus.validation.texts)
