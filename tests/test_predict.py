"""Predictions with the saved model of a run."""

import csv
import json
import shlex
import shutil
import sys

import pytest
import torch
from conftest import completed, small_run, write_texts
from transformers import AutoTokenizer, pipeline

from bertmon import predict
from bertmon.config import FilesConfig, ModelConfig, SaveModel
from bertmon.data.tokenize import load_tokenizer, tokenize
from bertmon.errors import InputError
from bertmon.notation import format_percent
from bertmon.training.run_training import run_training


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    """The folder of a run that learned and saved its best model, its result, and its test file."""
    folder = tmp_path_factory.mktemp("predict")
    config = small_run(folder)
    config.train.epochs, config.optimizer.lr = 12, 5e-3
    config.train.save_model = SaveModel.best
    run_dir = folder / "run"
    run_dir.mkdir()
    result = run_training(config, run_dir, name="test")
    return run_dir, result, folder / "test.csv"


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_predict_equals_the_evaluation_of_the_run(trained_run, tmp_path, capsys):
    run_dir, result, test = trained_run
    predict.main([str(run_dir), str(test), "--out", str(tmp_path / "out.csv"), "--device", "cpu"])
    predictions = rows(tmp_path / "out.csv")
    assert [row["text"] for row in predictions] == [row["text"] for row in rows(test)]
    right = sum(row["prediction"] == row["label"] for row in predictions)
    assert right / len(predictions) == result.best.accuracy > 0.8
    confusion = [[0, 0], [0, 0]]
    for row in predictions:
        names = result.data.label_names
        confusion[names.index(row["label"])][names.index(row["prediction"])] += 1
    assert tuple(map(tuple, confusion)) == result.best.confusion
    assert f"accuracy {format_percent(result.best.accuracy)}" in capsys.readouterr().out


@pytest.mark.parametrize("batch_size", ["1", "3"])
def test_predict_does_not_depend_on_the_batch_size(trained_run, tmp_path, batch_size):
    run_dir, _, test = trained_run
    for size, name in ((batch_size, "a.csv"), ("64", "b.csv")):
        predict.main([str(run_dir / "model"), str(test), "--out", str(tmp_path / name), "--batch-size", size])
    first, second = rows(tmp_path / "a.csv"), rows(tmp_path / "b.csv")
    assert [row["prediction"] for row in first] == [row["prediction"] for row in second]
    for one, other in zip(first, second, strict=True):
        assert float(one["probability"]) == pytest.approx(float(other["probability"]), abs=2e-4)


def test_predict_equals_transformers_pipeline(trained_run, tmp_path):
    run_dir, _, test = trained_run
    predict.main([str(run_dir), str(test), "--out", str(tmp_path / "out.csv"), "--device", "cpu"])
    classify = pipeline("text-classification", model=str(run_dir / "model"), device=torch.device("cpu"))
    for row in rows(tmp_path / "out.csv"):
        (expected,) = classify([row["text"]])
        assert row["prediction"] == expected["label"]
        assert float(row["probability"]) == pytest.approx(expected["score"], abs=2e-4)


def test_predict_without_labels_prints_no_metrics(trained_run, tmp_path, capsys):
    run_dir, *_ = trained_run
    (tmp_path / "new.jsonl").write_text('{"text": "a boat on the wave"}\n{"text": "a bird"}\n')
    predict.main([str(run_dir), str(tmp_path / "new.jsonl"), "--device", "cpu"])
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == "text,prediction,probability"
    assert len(printed.out.splitlines()) == 3
    assert "accuracy" not in printed.out + printed.err


def test_predict_of_many_texts_writes_one_header(trained_run, tmp_path, monkeypatch):
    run_dir, _, test = trained_run
    arguments = [str(run_dir), str(test), "--batch-size", "3"]
    predict.main([*arguments, "--out", str(tmp_path / "a.csv")])
    monkeypatch.setattr(predict, "_CHUNK_BATCHES", 1)
    predict.main([*arguments, "--out", str(tmp_path / "b.csv")])
    assert rows(tmp_path / "a.csv") == rows(tmp_path / "b.csv")


@pytest.mark.parametrize("labels", [("", "sea"), ("sea", "")])
def test_predict_of_a_partly_labeled_file_keeps_its_columns(trained_run, tmp_path, labels, capsys):
    run_dir, *_ = trained_run
    (tmp_path / "part.csv").write_text("text,label\n" + "".join(f"a boat on the wave,{label}\n" for label in labels))
    predict.main([str(run_dir), str(tmp_path / "part.csv"), "--out", str(tmp_path / "out.csv")])
    assert [row["label"] for row in rows(tmp_path / "out.csv")] == list(labels)
    assert capsys.readouterr().out.startswith("accuracy ")  # of the one text with a label


def test_predict_reads_quoted_fields_on_request(trained_run, tmp_path):
    run_dir, *_ = trained_run
    (tmp_path / "new.tsv").write_text('text\tn\n"a\tboat"\t1\n')
    predict.main([str(run_dir), str(tmp_path / "new.tsv"), "--quoted", "true", "--out", str(tmp_path / "out.csv")])
    assert rows(tmp_path / "out.csv")[0]["text"] == "a\tboat"


@pytest.mark.parametrize("content", [b"text\nb\xc3\xa9b\xc3\xa9\n", b"\xef\xbb\xbftext\nb\xc3\xa9b\xc3\xa9\n"])
def test_predict_does_not_use_the_file_format_of_training(trained_run, tmp_path, content):
    run_dir, *_ = trained_run
    shutil.copytree(run_dir, tmp_path / "run")
    result = json.loads((tmp_path / "run/result.json").read_text())
    result["config"]["data"] |= {"encoding": "cp1252", "delimiter": "pipe"}
    (tmp_path / "run/result.json").write_text(json.dumps(result))
    (tmp_path / "new.csv").write_bytes(content)
    predict.main([str(tmp_path / "run"), str(tmp_path / "new.csv"), "--out", str(tmp_path / "out.csv")])
    assert [row["text"] for row in rows(tmp_path / "out.csv")] == ["bébé"]


def test_predict_into_a_pipe_that_closes_ends_without_a_traceback(trained_run, tmp_path, start_process):
    run_dir, *_ = trained_run
    texts = write_texts(tmp_path / "new.csv", 3000, seed=3)
    command = shlex.join([sys.executable, "-m", "bertmon", "predict", str(run_dir), str(texts), "--batch-size", "8"])
    process = completed(start_process(["sh", "-c", f"{command} | head -n 1"], cwd=tmp_path))
    assert process.stdout.startswith("text,prediction,probability")
    assert "Traceback" not in process.stderr


def test_predict_with_invalid_input_says_what_was_expected(trained_run, tmp_path):
    run_dir, _, test = trained_run
    (tmp_path / "other.csv").write_text("Text\nboat\n")
    (tmp_path / "label.csv").write_text("text,label\nboat,moon\n")
    (tmp_path / "pipes.csv").write_text("text|label\nboat|sea\n")
    (tmp_path / "windows.csv").write_bytes("text\nbébé\n".encode("cp1252"))
    (tmp_path / "half.jsonl").write_text('{"text": "x\\ud800"}\n')
    (tmp_path / "number.jsonl").write_text('{"text": 5}\n')
    for arguments, message in (
        ([tmp_path, test], "MODEL: expected the folder of a saved model, or of a run that saved one, got"),
        ([run_dir, tmp_path / "none.csv"], f"FILE: expected an existing file, got {tmp_path / 'none.csv'}."),
        ([run_dir, run_dir / "history.npz"], "FILE: expected a file of .csv"),
        ([run_dir, test, "--label-column", "stars"], "has no 'stars'; it has 'text', 'label'. Name the column with"),
        ([run_dir, test, "--text-column", "label"], "--label-column: expected a column other than those of the text"),
        ([run_dir, tmp_path / "other.csv"], "has no 'text'; it has 'Text'. Name the column with --text-column."),
        ([run_dir, tmp_path / "label.csv"], "label.csv, line 2 has 'moon' as 'label': expected sea, sky or an empty"),
        ([run_dir, tmp_path / "other.csv", "--text-column", "Text", "--text-pair-column", "b"], "with --text-pair-col"),
        ([run_dir, tmp_path / "pipes.csv"], "Set --delimiter=pipe if that separates the columns."),
        ([run_dir, tmp_path / "windows.csv"], "set --encoding, such as cp1252"),
        ([run_dir, tmp_path / "half.jsonl"], "line 1 has \"x\\ud800\" as 'text': expected a string"),
        ([run_dir, tmp_path / "number.jsonl"], "line 1 has 5 as 'text': expected a string"),
        ([run_dir, test, "--delimiter", "::"], "--delimiter: expected comma, semicolon, tab, pipe, one character"),
        ([run_dir, test, "--encoding", "klingon"], "--encoding: expected the name of a text encoding"),
        ([run_dir, test, "--batch-size", "0"], "--batch-size: expected an integer of at least 1, got 0."),
    ):
        with pytest.raises(SystemExit) as end:
            predict.main([*map(str, arguments), "--out", str(tmp_path / "out.csv")])
        assert message in str(end.value)
        assert not (tmp_path / "out.csv").exists()


def test_predict_ignores_labels_that_the_model_does_not_have(trained_run, tmp_path, capsys):
    run_dir, *_ = trained_run
    (tmp_path / "stars.csv").write_text("text,label\nboat,4.5\ncloud,2\n")
    predict.main([str(run_dir), str(tmp_path / "stars.csv"), "--ignore-labels"])
    output = capsys.readouterr()
    assert output.out.splitlines()[0] == "text,prediction,probability"
    assert len(output.out.splitlines()) == 3
    assert "accuracy" not in output.err


def test_predict_for_no_texts_writes_the_header(trained_run, tmp_path):
    run_dir, *_ = trained_run
    (tmp_path / "empty.csv").write_text("text,label\n")
    predict.main([str(run_dir), str(tmp_path / "empty.csv"), "--out", str(tmp_path / "out.csv")])
    assert (tmp_path / "out.csv").read_text().splitlines() == ["text,prediction,probability"]


def test_predict_reads_quotes_and_delimiter_like_the_run(settings, tmp_path):
    quoted = [f'"a ""{word}"" | here"|{label}\n' for word, label in (("boat", "sea"), ("cloud", "sky")) * 8]
    (tmp_path / "q.tsv").write_text("".join(["text|label\n", *quoted]))
    settings.data = FilesConfig(train=str(tmp_path / "q.tsv"), delimiter="pipe", quoted=True, max_length=32)
    settings.train.epochs, settings.train.save_model = 1, SaveModel.last
    (tmp_path / "run").mkdir()
    run_training(settings, tmp_path / "run", name="test")
    predict.main([str(tmp_path / "run"), str(tmp_path / "q.tsv"), "--out", str(tmp_path / "out.csv")])
    assert rows(tmp_path / "out.csv")[0]["text"] == 'a "boat" | here'
    (tmp_path / "plain.csv").write_text("text\nboat | here\n")  # another format has its own delimiter
    predict.main([str(tmp_path / "run"), str(tmp_path / "plain.csv"), "--out", str(tmp_path / "out.csv")])
    assert rows(tmp_path / "out.csv")[0]["text"] == "boat | here"


def test_predict_truncates_on_the_side_of_the_tokenizer(trained_run, tmp_path):
    """A tokenizer that keeps the ends of texts does so in training, and in the saved model."""
    run_dir, *_ = trained_run
    source = tmp_path / "left"
    shutil.copytree(run_dir / "model", source)
    settings_file = source / "tokenizer_config.json"
    settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | {"truncation_side": "left"}))
    tokenizer = load_tokenizer(ModelConfig(name=str(source)), ["boat"], tmp_path)
    tokenizer.to_transformers(4).save_pretrained(tmp_path / "saved")
    text = "the boat a wave and the cloud"
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    trained_on = tokenize(tokenizer, [text], 4, tmp_path).ids.tolist()
    assert trained_on == saved(text, truncation=True)["input_ids"]
    assert trained_on[1:3] == saved("the cloud")["input_ids"][1:3]


def test_model_without_tokenizer_files_is_refused(trained_run, tmp_path):
    run_dir, _, test = trained_run
    shutil.copytree(run_dir / "model", tmp_path / "bare")
    for file in (tmp_path / "bare").glob("*token*"):
        file.unlink()
    with pytest.raises(SystemExit, match=r"MODEL: expected a folder with tokenizer files, such as tokenizer\.json"):
        predict.main([str(tmp_path / "bare"), str(test)])
    with pytest.raises(InputError, match=r"model\.name: expected a model with a vocabulary"):
        load_tokenizer(ModelConfig(name=str(tmp_path / "bare")), ["boat"], tmp_path)


def test_run_without_a_saved_model_says_how_to_save_it(settings, tmp_path):
    (tmp_path / "run").mkdir()
    settings.train.epochs = 1
    run_training(settings, tmp_path / "run", name="test")
    with pytest.raises(SystemExit, match=r"train with train\.save_model=best to keep the model"):
        predict.main([str(tmp_path / "run"), str(write_texts(tmp_path / "new.csv", 4, seed=3))])
