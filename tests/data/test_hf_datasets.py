import socket

import pytest

from bertmon.config import HfConfig
from bertmon.data import load_corpus
from bertmon.errors import InputError

datasets = pytest.importorskip("datasets")

ROWS = {"text": [f"text {number}" for number in range(12)], "label": [number % 3 for number in range(12)]}
NAMES = ["sky", "sea", "land"]


def as_dataset(rows=ROWS, names=NAMES, **columns):
    label = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    features = {"text": datasets.Value("string"), "label": label}
    features |= {name: datasets.Value("string") for name in columns}
    return datasets.Dataset.from_dict(rows | columns, features=datasets.Features(features))


def save(folder, **splits):
    """Save the splits in a new folder."""
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return str(folder)


@pytest.fixture(autouse=True)
def isolated_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_hf_datasets_saved_to_disk_are_read_with_their_label_order(tmp_path):
    name = save(tmp_path / "set", train=as_dataset(), test=as_dataset({"text": ["x", "y"], "label": [2, 0]}))
    corpus = load_corpus(HfConfig(name=name), tmp_path)
    assert corpus.label_names == ("sky", "sea", "land")
    assert (corpus.train.texts, corpus.train.labels) == (ROWS["text"], ROWS["label"])
    assert (corpus.test.texts, corpus.test.labels) == (["x", "y"], [2, 0])
    assert corpus.validation is None
    assert load_corpus(HfConfig(name=name), tmp_path).fingerprint() == corpus.fingerprint()


def test_hf_datasets_with_integer_labels_use_the_numbers_as_names(tmp_path):
    name = save(tmp_path / "set", train=as_dataset(names=None), test=as_dataset(names=None))
    assert load_corpus(HfConfig(name=name), tmp_path).label_names == ("0", "1", "2")


def test_hf_datasets_of_a_single_dataset_are_split(tmp_path):
    rows = {"text": [f"text {number}" for number in range(90)], "label": [number % 3 for number in range(90)]}
    as_dataset(rows).save_to_disk(str(tmp_path / "set"))
    corpus = load_corpus(HfConfig(name=str(tmp_path / "set"), test_split=None), tmp_path)
    assert [len(part) for part in (corpus.train, corpus.validation, corpus.test)] == [64, 8, 18]


def test_hf_datasets_with_a_validation_split_and_pairs_read_them(tmp_path):
    splits = {split: as_dataset(second=[f"{split} {n}" for n in range(12)]) for split in ("train", "validation")}
    name = save(tmp_path / "set", **splits)
    config = HfConfig(name=name, test_split="validation", text_pair_column="second")
    assert load_corpus(config, tmp_path).test.texts[1] == ("text 1", "validation 1")
    config = HfConfig(name=name, test_split=None, validation_split="validation", validation_frac=0)
    assert len(load_corpus(config, tmp_path).validation) == 12


def test_hf_datasets_in_a_folder_of_files_are_read(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text("text,label\na boat,sea\na bird,sky\n")
    corpus = load_corpus(HfConfig(name=str(folder)), tmp_path)
    assert (corpus.train.texts, corpus.label_names) == (["a boat", "a bird"], ("sea", "sky"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_split": "dev"}, r"data\.test_split: expected one of the splits of .*set \(train, test\), or null"),
        ({"train_split": "dev"}, r"data\.train_split: expected one of the splits of .*set \(train, test\), got dev"),
        ({"text_column": "sentence"}, r"has no 'sentence'; it has 'text', 'label'\. Set data\.text_column=text\."),
        ({"test_frac": 0.0}, r"data\.test_frac: expected a number above 0"),
        ({"validation_split": "test", "validation_frac": 0.5}, r"data\.validation_frac: expected null or 0"),
    ],
)
def test_hf_datasets_with_a_wrong_key_are_refused(tmp_path, changes, message):
    name = save(tmp_path / "set", train=as_dataset(), test=as_dataset())
    with pytest.raises(InputError, match=message):
        load_corpus(HfConfig(name=name, **changes), tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"text": ["x", "y"], "label": [-1, -1]}, "row 1 has the label -1, which marks a hidden label"),
        ({"text": ["x", None, "z"], "label": [0, 1, None]}, "1 of 3 rows has no text: row 2; 1 of 3 rows has no label"),
    ],
)
def test_hf_datasets_with_a_bad_row_name_split_and_row(tmp_path, rows, message):
    name = save(tmp_path / "set", train=as_dataset(), test=as_dataset(rows))
    with pytest.raises(InputError, match=rf"data\.test_split: {name}, split test.*{message}"):
        load_corpus(HfConfig(name=name), tmp_path)


def test_hf_datasets_with_a_broken_folder_are_refused(tmp_path):
    name = save(tmp_path / "set", train=as_dataset(), test=as_dataset())
    (tmp_path / "set" / "train" / "state.json").write_text("not JSON")
    with pytest.raises(InputError, match=rf"data\.name: could not load the data set {name}"):
        load_corpus(HfConfig(name=name), tmp_path)


def test_hf_datasets_without_a_network_are_refused_at_once(tmp_path, monkeypatch):
    for variable in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)

    def offline(*arguments):
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    with pytest.raises(
        InputError, match=r"data\.name: expected an existing folder, or a network to download nobody/no"
    ):
        load_corpus(HfConfig(name="nobody/nothing"), tmp_path)


def test_hf_datasets_whose_rows_are_all_skipped_are_refused(tmp_path):
    name = save(tmp_path / "set", train=as_dataset(), test=as_dataset({"text": [None, " "], "label": [0, 1]}))
    with pytest.raises(InputError, match=r"data\.test_split: .*set, split test: expected texts, got none"):
        load_corpus(HfConfig(name=name, skip_empty=True), tmp_path)
