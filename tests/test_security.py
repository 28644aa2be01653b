"""The promises of SECURITY.md."""

import ast
import dataclasses
import json
import logging
import os
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import BUILD_MODEL, TEXTS, TINY, completed, save_pretrained_bert

import bertmon
from bertmon import data, model, sanitize
from bertmon.config import FilesConfig, Init, ModelConfig
from bertmon.data import tokenize
from bertmon.errors import InputError
from bertmon.launch.run_dirs import sweep_dir_of_run
from bertmon.launch.run_names import setting_dir_name
from bertmon.predict import load_classifier
from bertmon.result import DataSummary, RunResult, recording

ROOT = Path(bertmon.__file__).parent
SOURCES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in ROOT.rglob("*.py")}

BAD = ["../../etc/passwd", "/etc/passwd", "..", ".", "~", "a\0b", "a\nb", "\x1b[2J", "a\u202eb", "x" * 5000, "☃" * 200]
BAD += ["$(touch marker)", "`touch marker`", "; touch marker", "-rf", "a/../../b", "con", " ", "{a: 1}", "%2e%2e%2f"]


# --- no third-party code -------------------------------------------------------------------------


class Evil:
    """Its pickle creates a folder when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def save_trapped_model(folder, marker, *, known):
    """Save a model folder in which every part refers to its own code, which would create `marker`.

    known: transformers knows the family. Otherwise only that code could load the model.
    """
    save_pretrained_bert(folder)
    code = f"import os\nos.mkdir({str(marker)!r})\nclass Evil: pass\n"
    for name in ("evil.py", "modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "setup.py"):
        (folder / name).write_text(code)
    heads = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoTokenizer")
    traps = {
        "auto_map": {head: ["evil.Evil", "evil.Evil"] if head == "AutoTokenizer" else "evil.Evil" for head in heads},
        "custom_pipelines": {"text-classification": {"impl": "evil.Evil"}},
        "trust_remote_code": True,
    }
    about = json.loads((folder / "config.json").read_text()) | traps
    if not known:
        about["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "tokenizer_config.json").write_text(json.dumps(traps | {"tokenizer_class": "EvilTokenizer"}))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc"]))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(marker)))
    torch.save(Evil(marker), folder / "training_args.bin")


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("part", ["config", "weights", "check", "tokenizer", "name", "predict"])
def test_code_in_a_model_folder_is_never_run(tmp_path, part, known, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder, marker = tmp_path / "model", tmp_path / "marker"
    save_trapped_model(folder, marker, known=known)
    pretrained = ModelConfig(init=Init.pretrained, name=str(folder))
    actions = {
        "config": lambda: model.build_model_config(ModelConfig(name=str(folder)), **BUILD_MODEL),
        "weights": lambda: model.build_model(pretrained, **BUILD_MODEL),
        "check": lambda: model.check_model(pretrained, **BUILD_MODEL),
        "tokenizer": lambda: tokenize.load_tokenizer(ModelConfig(tokenizer=str(folder)), TEXTS, tmp_path),
        "name": lambda: tokenize.load_tokenizer(ModelConfig(name=str(folder)), TEXTS, tmp_path),
        "predict": lambda: load_classifier(folder, torch.device("cpu")),
    }
    try:
        actions[part]()
    except InputError:
        assert not known or part in ("tokenizer", "name", "predict")
    assert not marker.exists()


@pytest.mark.parametrize("known", [True, False])
def test_traps_of_a_model_folder_fire_if_its_code_is_trusted(tmp_path, start_process, known):
    """Positive control of the test above: each trap would run."""
    heads = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoTokenizer")
    for head in heads:
        save_trapped_model(tmp_path / head, tmp_path / f"{head}.marker", known=known)
    code = (
        "import contextlib, transformers, torch\n"
        f"for head in {heads}:\n"
        "    with contextlib.suppress(Exception):\n"
        f"        getattr(transformers, head).from_pretrained({str(tmp_path)!r} + '/' + head, trust_remote_code=True)\n"
    )
    done = completed(start_process([sys.executable, "-c", code], HF_HOME=str(tmp_path / "home")))
    fired = {path.stem for path in tmp_path.glob("*.marker")}
    assert fired == set(heads), done.stderr
    (tmp_path / "AutoModel.marker").rmdir()
    torch.load(tmp_path / "AutoModel" / "training_args.bin", weights_only=False)
    assert (tmp_path / "AutoModel.marker").is_dir()


def test_no_key_can_enable_remote_code():
    """trust_remote_code is the constant False in every call of transformers, and no key can change it."""
    calls = [
        (name, node)
        for name, source in SOURCES.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained"
    ]
    assert len(calls) >= 5
    for name, call in calls:
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        assert isinstance(given["trust_remote_code"], ast.Constant), name
        assert given["trust_remote_code"].value is False
        starred = [ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg is None]
        assert set(starred) <= {"architecture", "labels"}  # keys of ModelConfig, and the names of the labels


@pytest.mark.parametrize("step", [model.check_model, model.build_model])
def test_pickled_weights_are_refused_and_not_read(tmp_path, step):
    save_pretrained_bert(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.safetensors.bin", "pytorch_model-00001-of-00001.bin"):
        (tmp_path / "model" / name).write_bytes(pickle.dumps(Evil(tmp_path / "marker")))
    with pytest.raises(InputError, match=r"model\.safetensors"):
        step(ModelConfig(init=Init.pretrained, name=str(tmp_path / "model")), **BUILD_MODEL)
    (tmp_path / "model" / "model.safetensors").write_bytes(pickle.dumps(Evil(tmp_path / "marker")))
    with pytest.raises(InputError, match=r"model"):
        step(ModelConfig(init=Init.pretrained, name=str(tmp_path / "model")), **BUILD_MODEL)
    assert not (tmp_path / "marker").exists()


TRUSTED = {  # imports that would be refused elsewhere, and what they are for
    "monitor/figure_process.py": {"subprocess"},  # a list of arguments; both ends of its socket are ours
    "launch/preflight.py": {"joblib"},  # counts cores
    "launch/hydra_setup.py": {"joblib"},  # counts cores
    "compare/report.py": {"subprocess"},  # this program, with a list of arguments
    "launch/workers.py": {"subprocess"},  # scontrol, with the job's own id
}
MAY_EXEC = {"cli.py"}  # TensorBoard, with a list of arguments and no shell


def test_no_source_reads_pickles_or_starts_a_shell():
    for name, source in SOURCES.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                refused = {"pickle", "dill", "joblib", "shelve", "marshal", "subprocess", "pty"}
                assert not refused & set(modules) - TRUSTED.get(name, set()), name
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "os.system", "os.popen", "torch.load", "__import__"), name
                assert "spawn" not in called, name
                assert not any(keyword.arg == "shell" for keyword in node.keywords), name
                if called.startswith("os.exec"):
                    assert name in MAY_EXEC
                if called in ("np.load", "numpy.load"):
                    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    assert given.get("allow_pickle") == "False", name


# --- nothing leaves its folder -----------------------------------------------------------------


@pytest.mark.parametrize("value", BAD, ids=[ascii(value)[1:20] for value in BAD])
def test_no_value_leads_out_of_the_launch_folder(tmp_path, value):
    start = tmp_path / "start"
    subdir = f"{setting_dir_name([f'data.train={value}', 'seed=3'], [], 'quickstart')}/seed=3"
    folder = start / subdir
    assert folder.resolve().parent.parent == start
    assert sweep_dir_of_run(folder, subdir) == start
    assert not sanitize.has_control_characters(str(folder))
    folder.mkdir(parents=True)


def test_labels_and_texts_are_treated_as_plain_text(tmp_path):
    """The longest path of a label: file, corpus, model, result.json."""
    labels = [
        value for value in BAD if not sanitize.has_control_characters(value) and value.strip() and len(value) <= 1000
    ]
    rows = [json.dumps({"text": f"{label} {{{{7*7}}}} <script>", "label": label}) for label in labels]
    train = tmp_path / "train.jsonl"
    train.write_text("\n".join(rows))
    before = set(tmp_path.parent.rglob("*"))
    corpus = data.load_corpus(FilesConfig(train=str(train), test=str(train)), tmp_path)
    assert set(corpus.label_names) == set(labels)
    built = model.build_model(dataclasses.replace(TINY), **BUILD_MODEL | {"label_names": corpus.label_names})
    assert set(built.config.label2id) == set(labels)
    with recording(tmp_path) as result:
        result.data = DataSummary("f", 1, 1, corpus.label_names, 1.0)
    assert RunResult.read(tmp_path).data.label_names == corpus.label_names
    added = {path.name for path in set(tmp_path.parent.rglob("*")) - before}
    assert added == {"result.json", ".lock"}


# --- the terminal ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ☃ 漢 é 👍🏽", "plain ☃ 漢 é 👍🏽"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\r\nb\tc", "a\\r\\nb\\tc"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("a\u202eb\u2028c\u2066", "a\\u202eb\\u2028c\\u2066"),
        ("\ud800", "\\ud800"),
        ("x" * 30, "xxxxxxxxxx...xxxxxxxxxx"),
    ],
)
def test_sanitize_line_escapes_control_characters(text, shown):
    assert sanitize.sanitize_line(text, 20) == shown


def test_sanitize_keeps_only_newlines_and_tabs():
    assert sanitize.sanitize("a\n\tb\r\x1b\n") == "a\n\tb\\r\\x1b\n"
    assert str(InputError("a\n\x1b[2J")) == "a\n\\x1b[2J"


def test_messages_and_tracebacks_in_logs_are_escaped(capsys):
    logger, handler = logging.getLogger(), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    others = {each: each.formatter for each in logger.handlers}
    try:
        sanitize.sanitize_logs()
        sanitize.sanitize_logs()
        try:
            raise ValueError("\x1b[31m")
        except ValueError:
            logger.exception("label %s", "\x07")
    finally:
        logger.removeHandler(handler)
        for each, formatter in others.items():
            each.setFormatter(formatter)
    output = capsys.readouterr().err
    assert output.startswith("label \\x07\nTraceback")
    assert output.endswith("ValueError: \\x1b[31m\n")
    assert not re.search(r"[\x07\x1b]", output)
