import ast
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, needs_newsgroups

from bertmon import data
from bertmon.config import DocstringsConfig, FilesConfig, NewsgroupsConfig, PostPart
from bertmon.errors import InputError


def small_docstrings(**changes):
    return DocstringsConfig(
        **({"packages": ["sklearn", "matplotlib"], "train_per_package": 20, "test_per_package": 5} | changes)
    )


def package(folder, name, docstrings):
    """An installed package, as far as docstrings go: one function for each."""
    (folder / name / "tests").mkdir(parents=True)
    functions = [f'def f{number}():\n    r"""{text}"""\n' for number, text in enumerate(docstrings)]
    (folder / name / "__init__.py").write_text("\n".join(functions), encoding="utf-8")
    (folder / name / "tests" / "ignored.py").write_text(f'"""{"ignored " * 30}"""')
    (folder / name / "python4.py").write_text("this is no Python")


@pytest.fixture
def two_packages(tmp_path, monkeypatch):
    filler = "and so on and so forth, a sentence that is long enough to count as a real docstring of twenty words"
    package(
        tmp_path, "seaside", [f"seaside number {n}: Seaside.wave and skyward_x, {filler}" for n in range(8)] + ["short"]
    )
    package(tmp_path, "skyward", [f"skyward number {n}: {filler}" for n in range(8)] + [f"seaside number 0: {filler}"])
    monkeypatch.syspath_prepend(tmp_path)
    return DocstringsConfig(packages=["seaside", "skyward"], train_per_package=5, test_per_package=2)


def test_docstrings_are_balanced_disjoint_and_the_same_each_time(tmp_path):
    first = data.load_corpus(small_docstrings(), tmp_path / "one")
    again = data.load_corpus(small_docstrings(), tmp_path / "one")
    anew = data.load_corpus(small_docstrings(), tmp_path / "two")
    assert first == again == anew
    assert first.fingerprint() == again.fingerprint() == anew.fingerprint()
    assert first.label_names == ("sklearn", "matplotlib")
    assert [first.train.labels.count(label) for label in (0, 1)] == [20, 20]
    assert [first.test.labels.count(label) for label in (0, 1)] == [5, 5]
    assert first.majority_share() == 0.5
    texts = first.train.texts + first.test.texts
    assert len(set(texts)) == len(texts)
    other = data.load_corpus(small_docstrings(train_per_package=21), tmp_path / "one")
    assert other.fingerprint() != first.fingerprint()


def test_names_of_all_packages_are_masked_in_all_texts(two_packages, tmp_path):
    corpus = data.load_corpus(two_packages, tmp_path / "cache")
    texts = corpus.train.texts + corpus.test.texts
    assert len(texts) == 14
    assert not any("seaside" in text.lower() or "skyward" in text.lower() for text in texts)
    assert any("_.wave and __x" in text for text in texts)
    assert not any("ignored" in text or text == "short" for text in texts)


def test_docstrings_are_read_anew_when_a_package_changes(two_packages, tmp_path):
    before = data.load_corpus(two_packages, tmp_path / "cache")
    source = tmp_path / "skyward" / "__init__.py"
    source.write_text(source.read_text().replace("number", "figure"))
    assert data.load_corpus(two_packages, tmp_path / "cache") != before


def test_distributions_and_short_forms_are_masked_too():
    mask = data.docstrings._mask(["sklearn", "numpy", "torch"])
    masked = mask.sub("_", "import numpy as np; scikit-learn, PyTorch's torch.nn, sklearn, input_np, stop snpx")
    assert masked == "import _ as _; _, _'s _.nn, _, input__, stop snpx"


@pytest.mark.parametrize(
    ("packages", "message"),
    [
        (["numpy", "no_such_package"], "no_such_package is not an installed package"),
        (["numpy", "../etc"], r"\.\./etc is not an installed package"),
        (["numpy", "math"], "math is not an installed package"),
        (["numpy", "iniconfig"], r"iniconfig has \d+ docstrings of at least 20 words"),
    ],
)
def test_packages_that_will_not_do(packages, message, tmp_path):
    with pytest.raises(InputError, match=f"data.packages: {message}"):
        data.load_corpus(DocstringsConfig(packages=packages, train_per_package=30), tmp_path)


@needs_newsgroups
def test_real_newsgroups(tmp_path):
    home = str(SHARED / "scikit_learn_data")
    corpus = data.load_corpus(NewsgroupsConfig(home=home), tmp_path)
    assert (len(corpus.train), len(corpus.test)) == (2034, 1353)
    assert corpus.label_names == ("alt.atheism", "comp.graphics", "sci.space", "talk.religion.misc")
    assert corpus.majority_share() == pytest.approx(0.291, abs=5e-4)
    assert data.load_corpus(NewsgroupsConfig(home=home), tmp_path) == corpus
    bare = data.load_corpus(NewsgroupsConfig(home=home, remove=list(PostPart)), tmp_path)
    assert sum(map(len, bare.train.texts)) < 0.8 * sum(map(len, corpus.train.texts))
    two = data.load_corpus(NewsgroupsConfig(home=home, categories=["sci.med", "rec.autos"]), tmp_path)
    assert two.label_names == ("rec.autos", "sci.med")


def test_docstrings_are_found_wherever_they_stand():
    source = """
class A:
    async def b(self):
        def c(): ...
        if x:
            for _ in y:
                with z:
                    def d(): ...
        elif w:
            def e(): ...
        else:
            while v:
                def f(): ...
            else:
                def g(): ...
try:
    def h(): ...
except E:
    def i(): ...
else:
    def j(): ...
finally:
    def k(): ...
match m:
    case 1:
        def n(): ...
try:
    pass
except* E:
    def o(): return lambda: 1
"""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for tree in (
        ast.parse(source),
        *(ast.parse(path.read_text()) for path in Path(ast.__file__).parent.glob("[a-c]*.py")),
    ):
        found = list(data.docstrings._with_docstrings(tree))
        assert set(found) == {node for node in ast.walk(tree) if isinstance(node, kinds)}
        assert len(found) == len(set(found))


def test_an_unknown_newsgroup(tmp_path):
    with pytest.raises(
        InputError, match=r"data\.categories: there is no newsgroup sci\.magic\. There are alt\.atheism, "
    ):
        data.load_corpus(NewsgroupsConfig(categories=["sci.med", "sci.magic"]), tmp_path)


def test_a_home_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"data\.home=.*nowhere is not possible"):
        data.load_corpus(NewsgroupsConfig(home=str(tmp_path / "nowhere")), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_network_says_what_to_do_instead(tmp_path, monkeypatch):
    import sklearn.datasets

    def offline(**kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(sklearn.datasets, "fetch_20newsgroups", offline)
    with pytest.raises(InputError, match=r"no route to host(.|\n)*data\.home=(.|\n)*experiment=quickstart"):
        data.load_corpus(NewsgroupsConfig(), tmp_path)
    assert list(tmp_path.iterdir()) == []


ROWS = [("a boat, a wave", "sea"), ('the "big" sky\nof stars', "sky"), ("naïve ☃", "sea")]


def written(path: Path, rows=ROWS, text="text", label="label") -> str:
    import csv

    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({text: t, label: c, "more": [1]}) for t, c in rows) + "\n\n", "utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            table = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writerows([("id", label, text), *((number, c, t) for number, (t, c) in enumerate(rows))])
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".CSV"])
def test_files(tmp_path, suffix):
    if suffix == ".CSV":
        Path(written(tmp_path / "train.csv")).rename(tmp_path / "train.CSV")
    train = str(tmp_path / "train.CSV") if suffix == ".CSV" else written(tmp_path / f"train{suffix}")
    test = written(tmp_path / "test.jsonl", ROWS[:2])
    corpus = data.load_corpus(FilesConfig(train=train, test=test), tmp_path)
    assert corpus.label_names == ("sea", "sky")
    assert list(zip(corpus.train.texts, corpus.train.labels, strict=True)) == [
        (ROWS[0][0], 0),
        (ROWS[1][0], 1),
        (ROWS[2][0], 0),
    ]
    assert corpus.test.labels == [0, 1]


def test_named_columns_and_labels_of_other_types(tmp_path):
    rows = [("one", 10), ("two", 9), ("three", 10)]
    train = written(tmp_path / "train.jsonl", rows, text="body", label="class")
    corpus = data.load_corpus(FilesConfig(train=train, test=train, text_column="body", label_column="class"), tmp_path)
    assert corpus.label_names == ("9", "10")  # by number, not by letters
    train = written(tmp_path / "zeros.jsonl", [("one", "2"), ("two", "01"), ("three", "1")])
    assert data.load_corpus(FilesConfig(train=train, test=train), tmp_path).label_names == ("01", "1", "2")
    train = written(tmp_path / "bool.jsonl", [("one", True), ("two", False)])
    assert data.load_corpus(FilesConfig(train=train, test=train), tmp_path).label_names == ("False", "True")


def test_a_document_longer_than_the_csv_module_likes(tmp_path):
    train = written(tmp_path / "train.csv", [("word " * 50_000, "a"), ("short", "b")])
    assert len(data.load_corpus(FilesConfig(train=train, test=train), tmp_path).train.texts[0]) == 250_000


MANY_ROWS = [*ROWS, ("two\r\nlines, and ''\"quotes\"''", "sky"), ("☃" * 70, "7"), ("last", "sea")]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_texts_that_stay_in_their_file_are_those_in_memory(tmp_path, monkeypatch, suffix):
    train = written(tmp_path / f"train{suffix}", MANY_ROWS)
    if suffix == ".jsonl":
        Path(train).write_bytes(b"\xef\xbb\xbf" + Path(train).read_bytes())
    asked = FilesConfig(train=train, test=written(tmp_path / "test.jsonl"))
    here = data.load_corpus(asked, tmp_path)
    monkeypatch.setattr(data.text_files, "_LARGE", Path(train).stat().st_size)
    there = data.load_corpus(asked, tmp_path)
    assert isinstance(there.train.texts, data.LazyTexts)
    assert isinstance(here.train.texts, list)
    assert isinstance(there.test.texts, list)
    assert len(there.train.texts) == len(MANY_ROWS)
    assert list(there.train.texts) == here.train.texts == [text for text, _ in MANY_ROWS]
    some = np.array([4, 0, 3, 3])
    assert list(there.train.texts.take(some)) == [MANY_ROWS[index][0] for index in some]
    assert [there.train.texts[index] for index in some] == [MANY_ROWS[index][0] for index in some]
    assert (there.train.labels, there.label_names) == (here.train.labels, here.label_names)
    assert there.fingerprint() == here.fingerprint()


def test_a_large_file_is_gone_through_once_for_each_of_its_contents(tmp_path, monkeypatch):
    monkeypatch.setattr(data.text_files, "_LARGE", 0)
    passes = []
    monkeypatch.setattr(
        data.text_files.table_rows,
        "read",
        lambda path, read=data.text_files.table_rows.read_rows: passes.append(path) or read(path),
    )
    train, test = written(tmp_path / "train.csv"), written(tmp_path / "test.jsonl")
    first = data.load_corpus(FilesConfig(train=train, test=test), tmp_path)
    again = data.load_corpus(FilesConfig(train=train, test=test), tmp_path)
    assert len(passes) == 2
    assert first.fingerprint() == again.fingerprint()
    written(tmp_path / "train.csv", [*ROWS, ("more", "sky")])
    with pytest.raises(InputError, match=r"train\.csv has been changed while it was trained on"):
        first.train.texts[0]
    assert len(data.load_corpus(FilesConfig(train=train, test=test), tmp_path).train) == 4
    Path(train).unlink()
    with pytest.raises(InputError, match=r"train\.csv cannot be read: No such file"):
        list(again.train.texts)


BAD_FILES = [  # name, content, what the message says
    ("train.csv", b"", "holds no texts"),
    ("train.csv", b"text,label\n", "holds no texts"),
    ("train.jsonl", b"\n\n", "holds no texts"),
    ("train.csv", b"text,label\nx,sea\n", "has the one label sea"),
    ("train.csv", b"text,label\nx,sea\nonly one field\n", "line 3 has 1 fields where the header has 2"),
    ("train.csv", b'text,label\n"two\nlines",sea\nx,sky,more\n', "line 4 has 3 fields"),
    ("train.csv", b"body,label\nx,sea\n", "line 2 has no 'text'; it has 'body', 'label'"),
    ("train.csv", b"text,label,text\nx,sea,y\n", "line 1 names a column twice"),
    ("train.csv", b"text,label\nx,sea\n\xff\xfe,sky\n", "line 3 is not UTF-8"),
    ("train.csv", b"text,label\n  ,sea\n", "line 2 has \"  \" as 'text'"),
    ("train.csv", b"text,label\nx,\n", "line 2 has \"\" as 'label'"),
    ("train.csv", b'text,label\n"x"y,sea\n', "line 2 is not well-formed"),
    ("train.csv", b'text,label\n"never closed,sea\n', "line 2 is not well-formed"),
    ("train.jsonl", b'{"text": "x", "label": "sea"}\n{"text": "x"', "line 2 is not JSON"),
    ("train.jsonl", b'["x", "sea"]\n', 'line 1 holds ["x", "sea"]: an object is needed'),
    ("train.jsonl", b'{"text": 5, "label": "sea"}\n', "line 1 has 5 as 'text'"),
    ("train.jsonl", b'{"text": "x", "label": 1.5}\n', "line 1 has 1.5 as 'label'"),
    ("train.jsonl", b'{"text": "x", "label": null}\n', "line 1 has null as 'label'"),
    ("train.jsonl", b'{"text": "x\\ud800", "label": "sea"}\n', "line 1 has \"x\\ud800\" as 'text'"),
    ("train.jsonl", b'{"text": "x", "label": "\\ud800"}\n', "line 1 has \"\\ud800\" as 'label'"),
    ("train.jsonl", b'{"text": "x", "label": ' + b"1" * 5000 + b"}\n", "line 1 is not JSON"),
    ("train.csv", b"\ntext,label\nx,sea\n", "line 1 is empty: a header with column names is needed"),
    ("train.jsonl", b"[" * 100_000, "line 1 is not JSON"),
    ("train.txt", b"x", "give a file that ends in .csv, .tsv, .jsonl"),
]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_bad_files_are_named_with_their_line(tmp_path, monkeypatch, name, content, message, large):
    if large:
        monkeypatch.setattr(data.text_files, "_LARGE", 0)
    test = written(tmp_path / "test.jsonl")
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        data.load_corpus(FilesConfig(train=str(path), test=test), tmp_path)
    assert message in str(caught.value)
    assert str(caught.value).startswith("data.train")
    assert str(path) in str(caught.value)


def test_missing_files_and_labels_that_training_lacks(tmp_path):
    train = written(tmp_path / "train.csv")
    with pytest.raises(InputError, match=r"data\.test=.*none\.csv: there is no such file"):
        data.load_corpus(FilesConfig(train=train, test=str(tmp_path / "none.csv")), tmp_path)
    test = written(tmp_path / "test.csv", [("x", "land")])
    with pytest.raises(InputError, match=r"data\.test: .*test\.csv has the label land, which .*train\.csv lacks"):
        data.load_corpus(FilesConfig(train=train, test=test), tmp_path)
