import json
from pathlib import Path

import numpy as np
import pytest

from bertmon.config import FilesConfig
from bertmon.data import LazyTexts, load_corpus, text_files
from bertmon.errors import InputError

ROWS = [("a boat, a wave", "sea"), ('the "big" sky\nof stars', "sky"), ("naïve ☃", "sea")]


def write_rows(path: Path, rows=ROWS, text="text", label="label") -> str:
    import csv

    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({text: t, label: c, "more": [1]}) for t, c in rows) + "\n\n", "utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            table = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writerows([("id", label, text), *((number, c, t) for number, (t, c) in enumerate(rows))])
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".CSV"])
def test_text_files_of_each_format_give_the_same_corpus(tmp_path, suffix):
    if suffix == ".CSV":
        Path(write_rows(tmp_path / "train.csv")).rename(tmp_path / "train.CSV")
    train = str(tmp_path / "train.CSV") if suffix == ".CSV" else write_rows(tmp_path / f"train{suffix}")
    test = write_rows(tmp_path / "test.jsonl", ROWS[:2])
    corpus = load_corpus(FilesConfig(train=train, test=test), tmp_path)
    assert corpus.label_names == ("sea", "sky")
    assert list(zip(corpus.train.texts, corpus.train.labels, strict=True)) == [
        (ROWS[0][0], 0),
        (ROWS[1][0], 1),
        (ROWS[2][0], 0),
    ]
    assert corpus.test.labels == [0, 1]


def test_text_files_with_other_columns_and_label_types_are_read(tmp_path):
    rows = [("one", 10), ("two", 9), ("three", 10)]
    train = write_rows(tmp_path / "train.jsonl", rows, text="body", label="class")
    corpus = load_corpus(FilesConfig(train=train, test=train, text_column="body", label_column="class"), tmp_path)
    assert corpus.label_names == ("9", "10")  # by number, not by letters
    train = write_rows(tmp_path / "zeros.jsonl", [("one", "2"), ("two", "01"), ("three", "1")])
    assert load_corpus(FilesConfig(train=train, test=train), tmp_path).label_names == ("01", "1", "2")
    train = write_rows(tmp_path / "bool.jsonl", [("one", True), ("two", False)])
    assert load_corpus(FilesConfig(train=train, test=train), tmp_path).label_names == ("False", "True")


def test_text_files_with_a_document_over_128_kib_are_read(tmp_path):
    train = write_rows(tmp_path / "train.csv", [("word " * 50_000, "a"), ("short", "b")])
    assert len(load_corpus(FilesConfig(train=train, test=train), tmp_path).train.texts[0]) == 250_000


MANY_ROWS = [*ROWS, ("two\r\nlines, and ''\"quotes\"''", "sky"), ("☃" * 70, "7"), ("last", "sea")]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_lazy_texts_of_a_large_file_equal_those_in_memory(tmp_path, monkeypatch, suffix):
    train = write_rows(tmp_path / f"train{suffix}", MANY_ROWS)
    if suffix == ".jsonl":
        Path(train).write_bytes(b"\xef\xbb\xbf" + Path(train).read_bytes())
    asked = FilesConfig(train=train, test=write_rows(tmp_path / "test.jsonl"))
    here = load_corpus(asked, tmp_path)
    monkeypatch.setattr(text_files, "_LAZY_BYTES", Path(train).stat().st_size)
    there = load_corpus(asked, tmp_path)
    assert isinstance(there.train.texts, LazyTexts)
    assert isinstance(here.train.texts, list)
    assert isinstance(there.test.texts, list)
    assert len(there.train.texts) == len(MANY_ROWS)
    assert list(there.train.texts) == here.train.texts == [text for text, _ in MANY_ROWS]
    some = np.array([4, 0, 3, 3])
    assert list(there.train.texts.take(some)) == [MANY_ROWS[index][0] for index in some]
    assert [there.train.texts[index] for index in some] == [MANY_ROWS[index][0] for index in some]
    assert (there.train.labels, there.label_names) == (here.train.labels, here.label_names)
    assert there.fingerprint() == here.fingerprint()


def test_lazy_texts_of_an_unchanged_file_are_scanned_once(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_LAZY_BYTES", 0)
    passes = []
    monkeypatch.setattr(
        text_files.table_rows,
        "read_rows",
        lambda path, read=text_files.table_rows.read_rows: passes.append(path) or read(path),
    )
    train, test = write_rows(tmp_path / "train.csv"), write_rows(tmp_path / "test.jsonl")
    first = load_corpus(FilesConfig(train=train, test=test), tmp_path)
    again = load_corpus(FilesConfig(train=train, test=test), tmp_path)
    assert len(passes) == 2
    assert first.fingerprint() == again.fingerprint()
    write_rows(tmp_path / "train.csv", [*ROWS, ("more", "sky")])
    with pytest.raises(InputError, match=r"train\.csv has changed since training began"):
        first.train.texts[0]
    assert len(load_corpus(FilesConfig(train=train, test=test), tmp_path).train) == 4
    Path(train).unlink()
    with pytest.raises(InputError, match=r"could not read .*train\.csv: No such file"):
        list(again.train.texts)


BAD_FILES = [  # name, content, what the message says
    ("train.csv", b"", "expected a file with texts"),
    ("train.csv", b"text,label\n", "expected a file with texts"),
    ("train.jsonl", b"\n\n", "expected a file with texts"),
    ("train.csv", b"text,label\nx,sea\n", "expected at least two labels, got sea alone"),
    ("train.csv", b"text,label\nx,sea\nonly one field\n", "line 3 has 1 fields where the header has 2"),
    ("train.csv", b'text,label\n"two\nlines",sea\nx,sky,more\n', "line 4 has 3 fields"),
    ("train.csv", b"body,label\nx,sea\n", "line 2 has no 'text'; it has 'body', 'label'"),
    ("train.csv", b"text,label,text\nx,sea,y\n", "line 1 names a column twice"),
    ("train.csv", b"text,label\nx,sea\n\xff\xfe,sky\n", "line 3 is not UTF-8"),
    ("train.csv", b"text,label\n  ,sea\n", "line 2 has \"  \" as 'text'"),
    ("train.csv", b"text,label\nx,\n", "line 2 has \"\" as 'label'"),
    ("train.csv", b'text,label\n"x"y,sea\n', "line 2 is malformed"),
    ("train.csv", b'text,label\n"never closed,sea\n', "line 2 is malformed"),
    ("train.jsonl", b'{"text": "x", "label": "sea"}\n{"text": "x"', "line 2 is not JSON"),
    ("train.jsonl", b'["x", "sea"]\n', 'line 1 is ["x", "sea"]: expected an object'),
    ("train.jsonl", b'{"text": 5, "label": "sea"}\n', "line 1 has 5 as 'text'"),
    ("train.jsonl", b'{"text": "x", "label": 1.5}\n', "line 1 has 1.5 as 'label'"),
    ("train.jsonl", b'{"text": "x", "label": null}\n', "line 1 has null as 'label'"),
    ("train.jsonl", b'{"text": "x\\ud800", "label": "sea"}\n', "line 1 has \"x\\ud800\" as 'text'"),
    ("train.jsonl", b'{"text": "x", "label": "\\ud800"}\n', "line 1 has \"\\ud800\" as 'label'"),
    ("train.jsonl", b'{"text": "x", "label": ' + b"1" * 5000 + b"}\n", "line 1 is not JSON"),
    ("train.csv", b"\ntext,label\nx,sea\n", "line 1 is empty: expected a header with column names"),
    ("train.jsonl", b"[" * 100_000, "line 1 is not JSON"),
    ("train.txt", b"x", "expected a file that ends in .csv, .tsv, .jsonl"),
]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_text_files_with_a_bad_row_name_file_and_line(tmp_path, monkeypatch, name, content, message, large):
    if large:
        monkeypatch.setattr(text_files, "_LAZY_BYTES", 0)
    test = write_rows(tmp_path / "test.jsonl")
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_corpus(FilesConfig(train=str(path), test=test), tmp_path)
    assert message in str(caught.value)
    assert str(caught.value).startswith("data.train")
    assert str(path) in str(caught.value)


def test_text_files_missing_or_with_unknown_labels_are_refused(tmp_path):
    train = write_rows(tmp_path / "train.csv")
    with pytest.raises(InputError, match=r"data\.test: expected an existing file \(in .*\), got .*none\.csv"):
        load_corpus(FilesConfig(train=train, test=str(tmp_path / "none.csv")), tmp_path)
    test = write_rows(tmp_path / "test.csv", [("x", "land")])
    message = r"data\.test: expected the labels of .*train\.csv \(sea, sky\), got land in .*test\.csv"
    with pytest.raises(InputError, match=message):
        load_corpus(FilesConfig(train=train, test=test), tmp_path)
