import pytest
from conftest import SHARED, needs_newsgroups

from bertmon.config import NewsgroupsConfig, PostPart
from bertmon.data import load_corpus
from bertmon.errors import InputError


@needs_newsgroups
def test_newsgroups_from_the_local_folder_match_scikit_learns_counts(tmp_path):
    home = str(SHARED / "scikit_learn_data")
    corpus = load_corpus(NewsgroupsConfig(data_home=home), tmp_path)
    assert (len(corpus.train), len(corpus.test)) == (2034, 1353)
    assert corpus.label_names == ("alt.atheism", "comp.graphics", "sci.space", "talk.religion.misc")
    assert corpus.majority_share() == pytest.approx(0.291, abs=5e-4)
    assert load_corpus(NewsgroupsConfig(data_home=home), tmp_path) == corpus
    stripped = load_corpus(NewsgroupsConfig(data_home=home, remove=list(PostPart)), tmp_path)
    assert sum(map(len, stripped.train.texts)) < 0.8 * sum(map(len, corpus.train.texts))
    two = load_corpus(NewsgroupsConfig(data_home=home, categories=["sci.med", "rec.autos"]), tmp_path)
    assert two.label_names == ("rec.autos", "sci.med")


def test_newsgroups_with_an_unknown_category_are_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"data\.categories: expected newsgroups among alt\.atheism, .*, got sci\.magic"
    ):
        load_corpus(NewsgroupsConfig(categories=["sci.med", "sci.magic"]), tmp_path)


def test_newsgroups_with_a_missing_data_home_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"data\.data_home: expected an existing folder, or null, got .*nowhere"):
        load_corpus(NewsgroupsConfig(data_home=str(tmp_path / "nowhere")), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_newsgroups_without_a_network_name_the_alternatives(tmp_path, monkeypatch):
    import sklearn.datasets

    def offline(**kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(sklearn.datasets, "fetch_20newsgroups", offline)
    with pytest.raises(InputError, match=r"no route to host(.|\n)*data\.data_home=(.|\n)*experiment=quickstart"):
        load_corpus(NewsgroupsConfig(), tmp_path)
    assert list(tmp_path.iterdir()) == []
