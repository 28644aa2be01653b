import dataclasses
import gzip
import json
import shlex
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
            table = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")  # quotes where needed
            table.writerows([("id", label, text), *((number, c, t) for number, (t, c) in enumerate(rows))])
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".CSV"])
def test_text_files_of_each_format_give_the_same_corpus(tmp_path, suffix):
    if suffix == ".CSV":
        Path(write_rows(tmp_path / "train.csv")).rename(tmp_path / "train.CSV")
    train = str(tmp_path / "train.CSV") if suffix == ".CSV" else write_rows(tmp_path / f"train{suffix}")
    test = write_rows(tmp_path / "test.jsonl", ROWS[:2])
    corpus = load_corpus(FilesConfig(train=train, test=test, quoted=True), tmp_path)
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
def test_lazy_texts_of_a_large_file_equal_texts_in_memory(tmp_path, monkeypatch, suffix):
    train = write_rows(tmp_path / f"train{suffix}", MANY_ROWS)
    if suffix == ".jsonl":
        Path(train).write_bytes(b"\xef\xbb\xbf" + Path(train).read_bytes())
    config = FilesConfig(train=train, test=write_rows(tmp_path / "test.jsonl"), quoted=True)
    in_memory = load_corpus(config, tmp_path)
    monkeypatch.setattr(text_files, "_LAZY_BYTES", Path(train).stat().st_size)
    lazy = load_corpus(config, tmp_path)
    assert isinstance(lazy.train.texts, LazyTexts)
    assert isinstance(in_memory.train.texts, list)
    assert isinstance(lazy.test.texts, list)
    assert len(lazy.train.texts) == len(MANY_ROWS)
    assert list(lazy.train.texts) == in_memory.train.texts == [text for text, _ in MANY_ROWS]
    indices = np.array([4, 0, 3, 3])
    assert list(lazy.train.texts.take(indices)) == [MANY_ROWS[index][0] for index in indices]
    assert [lazy.train.texts[index] for index in indices] == [MANY_ROWS[index][0] for index in indices]
    assert (lazy.train.labels, lazy.label_names) == (in_memory.train.labels, in_memory.label_names)
    assert lazy.fingerprint() == in_memory.fingerprint()


def test_lazy_texts_of_an_unchanged_file_are_scanned_once(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_LAZY_BYTES", 0)
    passes = []
    monkeypatch.setattr(
        text_files.table_rows,
        "read_rows",
        lambda *arguments, read=text_files.table_rows.read_rows: passes.append(arguments) or read(*arguments),
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
    ("train.csv", b"", "has no texts."),
    ("train.csv", b"text,label\n", "has no texts."),
    ("train.jsonl", b"\n\n", "has no texts."),
    ("train.csv", b"text,label\nx,sea\n", "expected at least two labels, got only sea"),
    ("train.csv", b"text,label\nx,sea\nonly one field\n", "line 3 has 1 fields where the header has 2"),
    ("train.csv", b'text,label\n"two\nlines",sea\nx,sky,more\n', "line 4 has 3 fields"),
    ("train.csv", b"body,label\nx,sea\n", "line 1 has no 'text'; it has 'body', 'label'. Set data.text_column=body."),
    ("train.csv", b"text,label,text\nx,sea,y\n", "line 1 has the column 'text' twice"),
    ("train.csv", b"text,label\nx,sea\n\xff\xfe,sky\n", "line 3 is not UTF-8"),
    ("train.csv", b"text,label\n  ,sea\n", "1 of 1 rows has no text: line 2. Fill them, or set data.skip_empty=true"),
    ("train.csv", b"text,label\nx,\n", "1 of 1 rows has no label: line 2"),
    ("train.csv", b'text,label\n"x"y,sea\n', "line 2 is malformed"),
    ("train.csv", b'text,label\n"never closed,sea\n', "line 2 is malformed"),
    ("train.jsonl", b'{"text": "x", "label": "sea"}\n{"text": "x"', "line 2 is not JSON"),
    ("train.jsonl", b'["x", "sea"]\n', 'line 1 is ["x", "sea"]: expected an object'),
    ("train.jsonl", b'{"text": 5, "label": "sea"}\n', "line 1 has 5 as 'text'"),
    ("train.jsonl", b'{"text": "x", "label": 1.5}\n', "line 1 has 1.5 as 'label'"),
    ("train.jsonl", b'{"text": "x", "label": null}\n', "1 of 1 rows has no label: line 1"),
    ("train.jsonl", b'{"text": "x\\ud800", "label": "sea"}\n', "line 1 has \"x\\ud800\" as 'text'"),
    ("train.jsonl", b'{"text": "x", "label": "\\ud800"}\n', "line 1 has \"\\ud800\" as 'label'"),
    ("train.jsonl", b'{"text": "x", "label": ' + b"1" * 5000 + b"}\n", "line 1 is not JSON"),
    ("train.csv", b"\ntext,label\nx,sea\n", "line 1 is empty: expected a header with column names"),
    ("train.jsonl", b"[" * 100_000, "line 1 is not JSON"),
    ("train.json", b"[" * 100_000, "is not JSON"),
    ("train.json", b'{"text": "x", "label": "sea"}', 'is {"text": "x", "label": "sea"}: expected an array of objects'),
    ("train.json", b'[{"text": "x", "label": "sea"}, 5]', "row 2 is 5: expected an object"),
    ("train.json", b'[{"text": "x"}]', "row 1 has no 'label'; it has 'text'"),
    ("train.parquet", b"PAR1, but no more", "is not a parquet file that can be read"),
    ("train.csv.gz", b"text,label", "is not a complete gzip file"),
    ("train.csv.gz", gzip.compress(b"text,label\nx,sea\n", mtime=0)[:-9], "is not a complete gzip file"),
    ("train.parquet.gz", b"x", "expected a file that ends in .csv"),
    (
        "train.csv",
        "text,label\nx,sea\n".encode("utf-16-le"),
        "line 1 has a NUL byte: expected text in UTF-8; set data.",
    ),
    (
        "train.csv",
        "text,label\nnaïve,sea\n".encode("cp1252"),
        "line 2 is not UTF-8 (invalid continuation byte at byte 3",
    ),
    ("train.csv", b"text;label,more\nx;sea,y\n", "has no 'text' and no 'label'; it has 'text;label', 'more'"),
    ("train.csv", b"text|label\nx|sea\n", "it has 'text|label'. Set data.delimiter=pipe if that separates the columns"),
    ("train.tsv", b'text\tlabel\n"two\nlines"\tsea\n', "line 2 has 1 fields where the header has 2. Set data.quoted"),
    ("train.csv", b"text,label\n" + 25 * b",sea\n", "25 of 25 rows have no text: lines 2, 3, 4, 5, 6,"),
    ("train.csv", b"text,label\n" + 25 * b",sea\n" + b"x,\n", "20, 21 and 5 more; 1 of 26 rows has no label: line 27"),
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


def load(train, test=None, **changes):
    """The corpus of one or two files, with a cache next to them."""
    return load_corpus(FilesConfig(train=str(train), test=str(test or train), **changes), Path(train).parent)


TABLE = "text,label\na boat,sea\na bird,sky\nnaïve fish,sea\n"
TABLE_TEXTS = ["a boat", "a bird", "naïve fish"]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("content", "changes"),
    [
        (TABLE.replace(",", ";").encode(), {}),
        (TABLE.replace(",", "\t").encode(), {}),
        (TABLE.replace(",", "|").encode(), {"delimiter": "|"}),
        (TABLE.replace(",", "|").encode(), {"delimiter": "pipe"}),
        (
            TABLE.replace("label", "label,x")
            .replace(",", "\t")
            .encode()
            .replace(b"a\n", b"a\t\n")
            .replace(b"y\n", b"y\t\n"),
            {"delimiter": "tab"},
        ),
        (TABLE.encode("utf-8-sig"), {}),
        (TABLE.encode("utf-16"), {}),
        (TABLE.encode("utf-32"), {}),
        (TABLE.encode("cp1252"), {"encoding": "cp1252"}),
        (TABLE.encode("utf-16-be"), {"encoding": "utf-16-be"}),
        (TABLE.encode(), {"encoding": "utf8"}),
        (TABLE.replace("\n", "\r\n").encode(), {}),
        (TABLE.replace("\n", "\r").encode(), {}),
        (TABLE.replace("label", "label,,").replace("a\n", "a,,\n").replace("y\n", "y,,\n").encode(), {}),
        (TABLE.replace("label", "label,x,x").replace("a\n", "a,,\n").replace("y\n", "y,1,2\n").encode(), {}),
        (TABLE.replace("text,label", " text , label").encode(), {}),
    ],
)
def test_text_files_of_a_spreadsheet_are_read(tmp_path, monkeypatch, content, changes, large):
    if large:
        monkeypatch.setattr(text_files, "_LAZY_BYTES", 0)
    (tmp_path / "train.csv").write_bytes(content)
    corpus = load(tmp_path / "train.csv", **changes)
    assert list(corpus.train.texts) == TABLE_TEXTS
    assert corpus.train.labels == [0, 1, 0]
    assert corpus.label_names == ("sea", "sky")


def test_text_files_with_quotes_in_a_tsv_keep_every_row(tmp_path):
    rows = [f"word {number}\tsea" for number in range(20)] + ["other\tsky"]
    rows[3], rows[5] = '"It opens here\tsky', 'and closes here"\tsea'
    (tmp_path / "train.tsv").write_text("\n".join(["text\tlabel", *rows]))
    corpus = load(tmp_path / "train.tsv")
    assert list(corpus.train.texts) == [row.split("\t")[0] for row in rows]
    assert [corpus.label_names[label] for label in corpus.train.labels] == [row.split("\t")[1] for row in rows]


def test_text_files_with_quoted_fields_in_a_tsv_are_read_on_request(tmp_path):
    (tmp_path / "train.tsv").write_text('text\tlabel\n"two\nlines\tand a tab"\tsea\nx\tsky\n')
    assert list(load(tmp_path / "train.tsv", quoted=True).train.texts) == ["two\nlines\tand a tab", "x"]


@pytest.mark.parametrize("large", [False, True])
def test_text_files_with_empty_cells_skip_them_on_request(tmp_path, monkeypatch, large):
    if large:
        monkeypatch.setattr(text_files, "_LAZY_BYTES", 0)
    (tmp_path / "train.csv").write_text("text,label\na,sea\n ,sea\nb,\nc,sky\n")
    for _ in range(2):  # the second time from the cache
        corpus = load(tmp_path / "train.csv", skip_empty=True)
        assert list(corpus.train.texts) == ["a", "c"]
        assert "1 of 4 rows has no text: line 3; 1 of 4 rows has no label: line 4" in corpus.notes[0]


def test_text_files_with_float_labels_give_whole_numbers(tmp_path):
    rows = [{"text": "a", "label": 0.0}, {"text": "b", "label": 1}, {"text": "c", "label": 1.0}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = load(tmp_path / "train.jsonl")
    assert corpus.label_names == ("0", "1")
    assert corpus.train.labels == [0, 1, 1]


def test_text_files_with_whitespace_around_labels_strip_it_and_add_a_note(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,sea\nb, sea \nc,sky\n")
    corpus = load(tmp_path / "train.csv")
    assert corpus.label_names == ("sea", "sky")
    assert corpus.notes[0].endswith("whitespace around the labels of 1 rows was removed")


@pytest.mark.parametrize(
    ("header", "proposal"),
    [
        ("Text,labels", "Set data.text_column=Text data.label_column=labels."),
        ("v1,v2", "Set data.text_column=v2 data.label_column=v1."),
        ("text,Category", "Set data.label_column=Category."),
        ("label,review", "Set data.text_column=review."),
        ("a,b", "Set data.text_column and data.label_column to the names of columns."),
        ("label,Label", "Set data.text_column and data.label_column to the names of columns."),
    ],
)
def test_text_files_with_other_column_names_propose_keys(tmp_path, header, proposal):
    (tmp_path / "train.csv").write_text(f"{header}\na,b\n")
    with pytest.raises(InputError) as caught:
        load(tmp_path / "train.csv")
    assert str(caught.value).endswith(proposal)


def test_text_files_given_for_both_parts_add_a_note(tmp_path):
    write_rows(tmp_path / "train.csv")
    assert "are the same file" in load(tmp_path / "train.csv").notes[0]
    assert load(tmp_path / "train.csv", write_rows(tmp_path / "test.csv")).notes == ()
    train = str(tmp_path / "train.csv")
    same = FilesConfig(train=train, validation=train, test=str(tmp_path / "test.csv"))
    assert load_corpus(same, tmp_path).notes[0].startswith("data.train and data.validation are the same file")


@pytest.mark.parametrize("name", ["train.json", "train.parquet", "train.csv.gz", "train.tsv.gz", "train.jsonl.gz"])
def test_text_files_of_further_formats_give_the_same_corpus(tmp_path, name):
    expected = load(write_rows(tmp_path / "train.csv"))
    path = tmp_path / name
    rows = [{"text": text, "label": label, "id": number} for number, (text, label) in enumerate(ROWS)]
    if name == "train.json":
        path.write_text(json.dumps(rows))
    elif name == "train.parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
    else:
        plain = Path(write_rows(tmp_path / name.removesuffix(".gz")))
        path.write_bytes(gzip.compress(plain.read_bytes()))
    corpus = load(path, quoted=True)
    assert corpus == expected
    assert corpus.fingerprint() == expected.fingerprint()


def test_text_files_that_decompress_to_too_much_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files.table_rows, "_MAX_BYTES_IN_MEMORY", 1000)
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(b"text,label\n" + b"x,sea\n" * 1_000_000, mtime=0))
    with pytest.raises(InputError, match="takes more than"):
        load(tmp_path / "train.csv.gz")


PAIRS = [{"text": f"first {number}", "second": f"second {number}", "label": "ab"[number % 2]} for number in range(12)]


@pytest.mark.parametrize("large", [False, True])
def test_text_files_with_a_pair_column_give_pairs(tmp_path, monkeypatch, large):
    if large:
        monkeypatch.setattr(text_files, "_LAZY_BYTES", 0)
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    corpus = load(tmp_path / "train.jsonl", text_pair_column="second")
    assert list(corpus.train.texts) == [(row["text"], row["second"]) for row in PAIRS]
    assert corpus.fingerprint() != load(tmp_path / "train.jsonl").fingerprint()
    swapped = load(tmp_path / "train.jsonl", text_column="second", text_pair_column="text")
    assert corpus.fingerprint() != swapped.fingerprint()


def test_text_files_with_an_empty_second_text_are_refused(tmp_path):
    (tmp_path / "train.csv").write_text("text,second,label\na,,sea\n")
    with pytest.raises(InputError, match="1 of 1 rows has no text: line 2"):
        load(tmp_path / "train.csv", text_pair_column="second")


@pytest.mark.parametrize("large", [False, True])
def test_text_files_with_only_a_training_file_split_it(tmp_path, monkeypatch, large):
    if large:
        monkeypatch.setattr(text_files, "_LAZY_BYTES", 0)
    rows = [(f"text {number}", ("sea", "sea", "sky")[number % 3]) for number in range(150)]
    config = FilesConfig(train=write_rows(tmp_path / "all.csv", rows))
    corpus = load_corpus(config, tmp_path)
    parts = (corpus.train, corpus.validation, corpus.test)
    assert [len(part) for part in parts] == [108, 12, 30]
    assert [part.class_counts(2).tolist() for part in parts] == [[72, 36], [8, 4], [20, 10]]
    labels = {text: label for part in parts for text, label in zip(part.texts, part.labels, strict=True)}
    assert {text: corpus.label_names[label] for text, label in labels.items()} == dict(rows)
    again = load_corpus(config, tmp_path)
    assert again.fingerprint() == corpus.fingerprint()
    other = load_corpus(dataclasses.replace(config, split_seed=1), tmp_path)
    assert other.fingerprint() != corpus.fingerprint()
    assert list(other.test.texts) != list(corpus.test.texts)
    halves = load_corpus(dataclasses.replace(config, validation_frac=0.0, test_frac=0.5), tmp_path)
    assert (len(halves.train), halves.validation, len(halves.test)) == (75, None, 75)


def test_text_files_with_a_validation_file_read_it(tmp_path):
    train, test = write_rows(tmp_path / "train.csv"), write_rows(tmp_path / "test.csv", ROWS[:2])
    without = load_corpus(FilesConfig(train=train, test=test), tmp_path)
    assert without.validation is None
    validation = write_rows(tmp_path / "validation.jsonl", ROWS[1:])
    corpus = load_corpus(FilesConfig(train=train, test=test, validation=validation), tmp_path)
    assert list(corpus.validation.texts) == [text for text, _ in ROWS[1:]]
    assert corpus.validation.labels == [1, 0]
    assert corpus.fingerprint() != without.fingerprint()


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (
            50,
            {"test_frac": 0.999},
            r"data\.test_frac: expected a fraction .*, got 0.999: class sea has 25 of the 50 texts",
        ),
        (
            50,
            {"validation_frac": 0.001},
            r"data\.validation_frac: expected a fraction .*, got 0.001: class sea has 20 of the 40",
        ),
        (3, {}, r"data\.test_frac: .*class sky has 1 of the 3 texts"),
    ],
)
def test_text_files_split_that_leaves_a_class_without_texts_is_refused(tmp_path, rows, changes, message):
    train = write_rows(tmp_path / "all.csv", [(f"text {number}", ("sea", "sky")[number % 2]) for number in range(rows)])
    with pytest.raises(InputError, match=message):
        load_corpus(FilesConfig(train=train, **changes), tmp_path)


def test_text_files_with_unknown_labels_in_the_validation_file_are_refused(tmp_path):
    train, validation = write_rows(tmp_path / "a.csv"), write_rows(tmp_path / "b.csv", [("x", "land"), ("y", "ice")])
    with pytest.raises(InputError, match=r"data\.validation: expected the labels of .*, got ice, land in .*b\.csv"):
        load_corpus(FilesConfig(train=train, test=train, validation=validation), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delimiter": ";;"}, r"data\.delimiter: expected comma, semicolon, tab, pipe, one character .*, got ;;"),
        ({"delimiter": '"'}, r'data\.delimiter: expected comma, semicolon, tab, pipe, one character .*, got "'),
        ({"encoding": "klingon"}, r"data\.encoding: expected the name of a text encoding .*, got klingon"),
        ({"encoding": "base64"}, r"data\.encoding: expected the name of a text encoding"),
        ({"test_frac": 1.0}, r"data\.test_frac: expected a number above 0 and below 1, got 1.0"),
        ({"validation_frac": -0.1}, r"data\.validation_frac: expected at least 0 and below 1, or null, got -0.1"),
        (
            {"validation": "v.csv", "validation_frac": 0.1},
            r"data\.validation_frac: expected null or 0 with data\.valid",
        ),
        ({"split_seed": -1}, r"data\.split_seed: expected an integer of at least 0"),
        ({"text_pair_column": "text"}, r"data\.text_pair_column: expected a column other than"),
    ],
)
def test_files_config_with_a_value_out_of_range_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        FilesConfig(train="a.csv", **changes)


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_read_rows_reads_optional_columns_that_exist(tmp_path, suffix):
    path, rows = tmp_path / f"texts{suffix}", [{"text": "a", "label": "sea", "more": "1"}]
    if suffix == ".parquet":
        pytest.importorskip("pyarrow.parquet").write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
    else:
        path.write_text(
            {".csv": "text,label,more\na,sea,1\n", ".json": json.dumps(rows)}.get(suffix, json.dumps(rows[0]))
        )
    read = text_files.table_rows.read_rows(path, ["text"], text_files.TableFormat(), optional=["label", "absent"])
    (row,) = read
    assert {name: row.values.get(name) for name in ("text", "label", "absent")} == {
        "text": "a",
        "label": "sea",
        "absent": None,
    }


@pytest.mark.parametrize("name", ["text", "Review Text", "it's", "Größe", "a=b", "5", "Null"])
def test_as_argument_is_understood_by_the_shell_and_hydra(name):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (argument,) = shlex.split(text_files._as_argument("data.text_column", name))
    assert OverridesParser.create().parse_override(argument).value() == name
