"""Invalid input: one clear error each, no traceback, nothing written, no raw control characters.

The tests run the full command line in this process, since a start takes seconds, up to where a run would begin.
"""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TIMEOUT, write_texts
from unreadable_files import loop, pipe, sparse, write

from bertmon.cli import main as program
from bertmon.result import SweepFile

FILES = ["data=files", "data.train=train.csv", "data.test=test.csv", "cache_dir=cache"]
TINY = ["model.num_hidden_layers=2", "model.hidden_size=16", "model.intermediate_size=32", "data.max_length=32"]
TINY += ["train.batch_size=2"]
LONG = "x" * 5000

VALUES = [  # an override, part of the message
    # numbers: huge, negative, not finite, of another type
    ("seed=99999999999999999999999", "seed: expected an integer from 0 to 4294967295, got 9999999999999999999"),
    ("seed=1e400", "Value 'inf' of type 'float' could not be converted to Integer"),
    ("seed=nan", "Value 'nan' of type 'float' could not be converted to Integer"),
    ("seed=1.5", "full_key: seed"),
    ("seed=true", "Value 'True' of type 'bool' could not be converted to Integer"),
    ("seed=[1]", "Value '[1]' of type 'list' could not be converted to Integer"),
    ("seed={a:1}", "of type 'dict' could not be converted to Integer"),
    ("seed=null", "field 'seed' is not Optional"),
    ("seed=", "Value '' of type 'str' could not be converted to Integer"),
    ("seed=\u0661", "seed: could not parse the value \u0661; quote it"),
    (
        "train.epochs=1000000000000",
        "train.epochs: expected an integer of at least 1 and at most 10000000, ",
    ),
    (
        "train.epochs=10000000",
        "train.epochs: expected at most 10000000 steps, got ",
    ),
    (
        "train.batch_size=1000000000000000000000",
        "train.batch_size: expected an integer of at least 1 and at most 1000000",
    ),
    ("train.eval_batch_size=-1", "train.eval_batch_size: expected an integer of at least 1 and at most 10"),
    (
        "train.eval_every=99999999999999999999",
        "train.eval_every: expected an integer of at least 1 and at most 1000000",
    ),
    ("train.max_grad_norm=inf", "train.max_grad_norm: expected a finite number above 0, or null, got inf."),
    ("train.max_grad_norm=1e-400", "train.max_grad_norm: expected a finite number above 0, or null, got 0.0."),
    ("train.checkpoint_minutes=inf", "train.checkpoint_minutes: expected a finite number above 0, or null, got in"),
    ("optimizer.lr=1e400", "optimizer.lr: expected a finite number above 0, got inf."),
    ("optimizer.lr=[1]", "full_key: optimizer.lr"),
    ("optimizer.beta1=-0.0001", "optimizer.beta1: expected a number of at least 0 and below 1, got -0.0001."),
    ("optimizer.bias_correction=maybe", "Value 'maybe' is not a valid bool"),
    ("schedule.warmup_frac=0x10", "Value '0x10' of type 'str' could not be converted to Float"),
    ("schedule.warmup_frac=1_0", "schedule.warmup_frac: expected a number from 0 to 1, got 10.0."),
    (
        "monitor.every=99999999999999999999",
        "monitor.every: expected an integer of at least 1 and at most 10000000, ",
    ),
    ("monitor.thresholds.slow_after=null", "field 'monitor.thresholds.slow_after' is not Optional"),
    ("data.max_length=999999999999", "data.max_length: expected an integer of at least 8 and at most 10000000"),
    ("data.bucket_lengths=[1e5]", "full_key: data.bucket_lengths[0]"),
    ("data.bucket_lengths=7", "data.bucket_lengths"),
    ("data.bucket_lengths=[8,a,32]", "Value 'a' of type 'str' could not be converted to Integer"),
    ("data.bucket_lengths=[[8],32]", "data.bucket_lengths: expected ascending integers above 0 that end with"),
    # impossible models
    ("model.hidden_size=100000000", "model.hidden_size: expected an integer of at least 1 and at most 100000"),
    (
        "model.num_hidden_layers=100000000",
        "model.num_hidden_layers: expected an integer of at least 1 and at most ",
    ),
    (
        "model.intermediate_size=99999999999999999999",
        "model.intermediate_size: expected an integer of at least 1 and at most ",
    ),
    (
        "model.intermediate_size=9999999999",
        "model.intermediate_size: expected an integer of at least 1 and at most ",
    ),
    ("model.vocab_size=1000000000", "model.vocab_size: expected an integer of at least 100 and at most 10000"),
    (
        "model.max_position_embeddings=99999999999",
        "model.max_position_embeddings: expected an integer of at least 1 and at",
    ),
    ("model.num_attention_heads=3", "model.hidden_size: expected a multiple of model.num_attention_heads=3, got "),
    ("model.frozen_layers=3", "model.frozen_layers: expected at most the 2 encoder layers with weights of their own"),
    ("model.frozen_layers=-1", "model.frozen_layers: expected an integer of at least 0 and at most 1000, got -1"),
    ("model.model_type=''", "model.model_type: expected a name, or null, got ''."),
    ("model.tokenizer=''", "model.tokenizer: expected a name, or null, got ''."),
    ("model.name=''", "model.name: expected a name, or null, got ''."),
    ("model.tokenizer=../../etc", "model.tokenizer=../../etc: could not load a tokenizer ("),
    ("model.tokenizer=train.csv", "model.tokenizer=train.csv"),
    ("model.init=maybe", "Invalid value 'maybe', expected one of [random, pretrained]"),
    # groups and keys
    ("model=null", "model: expected the name of a file in conf/model, got null."),
    ("data=5", "data: expected the name of a file in conf/data, got 5."),
    ("schedule=true", "schedule: expected the name of a file in conf/schedule, got true."),
    ("experiment=1.5", "experiment: expected the name of a file in conf/experiment, got 1.5."),
    ("model=", "Could not find 'model/'"),
    ("data=../newsgroups", "Could not find 'data/../newsgroups'"),
    ("data=/etc/passwd", "Could not find 'data//etc/passwd'"),
    ("model=[]", "model: cannot build bert: The hidden size (16) is not a multiple of the num"),
    ("model={a:1}", "Key 'a' not in 'ModelConfig'"),
    ("hydra=null", "Got NoneType"),
    ("train=null", "train: expected the name of a file in conf/train, got null."),
    ("train=5", "train: expected the name of a file in conf/train, got 5."),
    ("monitor.thresholds=5", "full_key: monitor.thresholds"),
    ("~seed", "Interpolation key 'seed' not found"),
    ("~optimizer.lr", "does not support deletion"),
    ("+hack.__class__=1", "hack: no such key; the keys are experiment, name, seed, device, cache_dir, res"),
    ("+data._target_=os.system", "data._target_: no such key; the keys are data."),
    ("hydra.callbacks.preflight._target_=os.system", "'os.system' is blocklisted"),
    ("=5", "Could not start: ValueError: Config group override must be a string or a li"),
    ("seed==5", "Error parsing override 'seed==5'"),
    ("justaword", "Error parsing override 'justaword'"),
    ("--nonsense", "unrecognized arguments: --nonsense"),
    (f"{LONG}=1", "Could not start: OSError: [Errno 36] File name too long"),
    (f"schedule.decay={LONG}", "expected one of [linear, cosine, constant, "),
    (f"data.text_column='{LONG}'", "data.train: train.csv, line 1 has no 'xxxx"),
    # interpolations
    ("seed=${seed}", "Recursive interpolation"),
    ("seed=${oc.env:NO_SUCH_VARIABLE}", "'NO_SUCH_VARIABLE' not found"),
    ("cache=${nope:1}", "cache was renamed to cache_dir."),
    # control characters, invalid encodings
    ("seed=1\x1b[31m", "seed=1\\x1b[31m"),
    ("schedule.decay='\x1b[2J'", "Invalid value '\\x1b[2J', expected one of"),
    ("schedule.decay='\udce9'", "command line: expected UTF-8, got schedule.decay='\\udce9'."),
    ("data.train='a\x1b]0;title\x07.csv'", "data.train: expected an existing file"),
    ("data.train='a\nb.csv'", "data.train: expected an existing file"),
    ("data.train='a\u202eb.csv'", "data.train: expected an existing file"),
    ("data.train='a\udce9.csv'", "command line: expected UTF-8, got data.train='a\\udce9.csv'."),
    ("device='\x07'", "Invalid value '\\x07', expected one of [auto, cuda, cpu, mps]"),
    # paths
    ("data.train=" + "a/" * 3000 + ".csv", "data.train: expected a file that ends in .csv, .tsv, .jsonl"),
    ("data.train=" + "a" * 300 + ".csv", "data.train: expected an existing file"),
    ("data.train=/dev/zero", "data.train: expected a file that ends in .csv, .tsv, .jsonl, .json, .parque"),
    ("data.train=''", "data.train: expected a file that ends in .csv, .tsv, .jsonl, .json, .parque"),
    ("data.train='~nobody-here/x.csv'", "data.train: expected an existing file"),
    ("cache_dir='~nobody-here'", "cache_dir: expected a folder of an existing user, got ~nobody-here."),
    (f"model.tokenizer={LONG}", "or a local folder with tokenizer.json or vocab.txt"),
    (f"resume={LONG}", "run folder: expected names of at most 255 bytes without control characters"),
    ("data.label_column=text", "data.label_column: expected a column other than data.text_column=text, got "),
    ("resume=''", "resume: expected the folder of an earlier launch, or null, got ''."),
    ("resume=nowhere", "resume: expected the folder of an earlier launch, got nowhere."),
    ("resume=train.csv", "resume: expected the folder of an earlier launch, got train.csv."),
    ("resume=/", "resume: expected a folder with a sweep.json, got /."),
    ("resume=.", "resume: expected a folder with a sweep.json, got .."),
    ("hydra.run.dir=/", "hydra.run.dir: expected a folder other than the current one and those above it, got /."),
    ("hydra.run.dir=..", "hydra.run.dir: expected a folder other than the current one and those above it, got ..."),
    ("hydra.run.dir=''", "hydra.run.dir: expected a folder other than the current one and those above it, got .."),
    ("hydra.run.dir=null", "full_key: hydra.run.dir"),
    ("hydra.run.dir=train.csv", "could not create train.csv: File exists."),
    ("hydra.run.dir=train.csv/x", "could not create train.csv/x: Not a directory."),
    (f"hydra.run.dir={LONG}", "run folder: expected names of at most 255 bytes without control characters"),
    ("hydra.run.dir='a\x1b[31mb'", "run folder: expected names of at most 255 bytes without control characters,"),
    ("hydra.run.dir='a\nb'", "run folder: expected names of at most 255 bytes without control characters,"),
    ("hydra.sweep.subdir=../up", "hydra.sweep.subdir: expected a folder inside the sweep's, got ../up."),
    ("hydra.job.name=../x", "hydra.job.name: expected a name without /, got ../x."),
    ("hydra.output_subdir=../../x", "hydra.output_subdir: expected a name without /, got ../../x."),
]

SWEEPS = [  # overrides of a sweep, part of the message
    (["hydra.sweep.dir=/"], "hydra.sweep.dir: expected a folder other than the current one and those above it, got /."),
    (["hydra.sweep.dir=train.csv"], "could not create train.csv: File exists."),
    (["hydra.sweep.dir=/proc/x"], "could not create /proc/x: No such file or directory."),
    (["hydra.sweep.subdir=../../up"], "hydra.sweep.subdir: expected a folder inside the sweep's, got ../../up."),
    (["hydra.sweep.subdir=/abs"], "hydra.sweep.subdir: expected a folder inside the sweep's, got /abs."),
    (["hydra.sweep.subdir='${seed}/..'"], "hydra.sweep.subdir: expected a folder inside the sweep's, got 0/..."),
    (["seed=range(0,100000000000)"], "expected a sweep of at most 10000 runs, got 100000000000."),
    (["seed=1,2,"], "mismatched input"),
    (["seed=choice()"], "empty choice is not legal"),
    (["seed=glob(*)"], "The sweep is empty: the glob matches no config."),
    (["optimizer.lr=interval(0,1)"], "optimizer.lr: expected values or a range, got an interval, which only hydra"),
    (["hydra/launcher=nope"], "Could not find 'hydra/launcher/nope'"),
    (["optimizer.lr=0.1,nan"], "optimizer.lr: expected a finite number above 0, got nan."),
    (["model=bert_small,null"], "model: expected the name of a file in conf/model, got bert_small,null."),
]


ROW = b"text,label\na boat,sea\n"

TEXTS = [  # name of the training file, how to create it, part of the message
    ("folder.csv", lambda: os.mkdir("folder.csv"), "data.train: expected a file, got folder.csv."),
    ("pipe.csv", pipe("pipe.csv"), "data.train: expected a file, got pipe.csv."),
    ("loop.csv", loop("loop.csv"), "data.train: expected an existing file"),
    ("dangling.jsonl", lambda: os.symlink("nowhere", "dangling.jsonl"), "data.train: expected an existing file"),
    ("zero.csv", lambda: os.symlink("/dev/zero", "zero.csv"), "data.train: expected a file, got zero.csv."),
    (
        "memory.csv",
        lambda: os.symlink("/proc/self/mem", "memory.csv"),
        "data.train: memory.csv could not be read: Input/output error.",
    ),
    ("gigabyte.csv", sparse("gigabyte.csv"), "data.train: gigabyte.csv, line 1 is longer than 10000000 bytes."),
    ("gigabyte.jsonl", sparse("gigabyte.jsonl"), "data.train: gigabyte.jsonl, line 1 is longer than 10000000 bytes."),
    (
        "line.jsonl",
        write("line.jsonl", b'{"text": "' + b"x" * 11_000_000),
        "data.train: line.jsonl, line 1 is longer than 10000000 bytes.",
    ),
    (
        "quote.csv",
        write("quote.csv", ROW + b'"' + b"word\n" * 3_000_000),
        "data.train: quote.csv, line 3 is malformed: field larger than field limit (",
    ),
    (
        "utf16.csv",
        write("utf16.csv", ROW.decode().encode("utf-16")),
        "data.train: expected at least two labels, got only sea in utf16.csv.",
    ),
    ("utf16le.csv", write("utf16le.csv", ROW.decode().encode("utf-16-le")), "line 1 has a NUL byte"),
    ("utf32.tsv", write("utf32.tsv", ROW.decode().encode("utf-32-be")), "line 1 has a NUL byte"),
    ("latin.csv", write("latin.csv", ROW + "été,sky\n".encode("latin-1")), "line 3 is not UTF-8"),
    (
        "nul.csv",
        write("nul.csv", ROW + b"a\0b,sky\n"),
        "data.train: nul.csv, line 3 has a NUL byte: expected text in UTF-8; set dat",
    ),
    (
        "boms.csv",
        write("boms.csv", b"\xef\xbb\xbf\xef\xbb\xbf" + ROW),
        "data.train: boms.csv, line 1 has no 'text'; it has '\\ufefftext', 'label'. S",
    ),
    (
        "utf16long.csv",
        write("utf16long.csv", b"\xff\xfe" + "あい\n".encode("utf-16-le")),
        "data.train: utf16long.csv, line 1 has no 'text' and no 'label'; it has '\u3042\u3044'",
    ),
    (
        "mac.csv",
        write("mac.csv", ROW.replace(b"\n", b"\r")),
        "data.train: expected at least two labels, got only sea in mac.csv.",
    ),
    (
        "twins.jsonl",
        write("twins.jsonl", b'{"text": "x", "label": "a", "label": "b"}'),
        "data.train: twins.jsonl, line 1 is not JSON (it has a key twice).",
    ),
    (
        "nan.jsonl",
        write("nan.jsonl", b'{"text": "x", "label": NaN}'),
        "data.train: nan.jsonl has empty cells: 1 of 1 rows has no label: line 1. Fi",
    ),
    ("nested.jsonl", write("nested.jsonl", b'{"text": {"a": ["x"]}, "label": "a"}'), 'has {"a": ["x"]} as \'text\''),
    (
        "escape.csv",
        write("escape.csv", ROW + b"x,\x1b[31mred\n"),
        "data.train: escape.csv, line 3 has \"\\u001b[31mred\" as 'label': expected at ",
    ),
    ("lines.csv", write("lines.csv", ROW + b'x,"a\nb"\n'), "line 3 has \"a\\nb\" as 'label'"),
    ("bidi.csv", write("bidi.csv", ROW + "x,a\u202eb\n".encode()), "\"a\\u202eb\" as 'label'"),
    ("label.csv", write("label.csv", ROW + b"x," + b"y" * 2000), "none of them a control character"),
    ("column.csv", write("column.csv", b"te\x1b[31mxt,label\nx,y\n"), "it has 'te\\x1b[31mxt', 'label'"),
    (
        "columns.csv",
        write("columns.csv", b"\x1b[31m,\x1b[31m\nx,y\n"),
        "data.train: columns.csv, line 1 has no 'text' and no 'label'; it has '\\x1b[",
    ),
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with a data set, in which no run can train."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_texts(tmp_path / "train.csv", 8, seed=1)
    write_texts(tmp_path / "test.csv", 4, seed=2)

    def run_training(*arguments, **options):
        raise AssertionError("a run has begun")

    monkeypatch.setattr("bertmon.launch.job.run_training", run_training)
    return tmp_path


def error_of(monkeypatch, *arguments) -> str:
    """The one error that `bertmon` ends with."""
    before = {path for path in Path().rglob("*") if path.parts[0] != "cache"}
    monkeypatch.setattr(sys, "argv", ["bertmon", *arguments])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        program()
    code = caught.value.code
    if isinstance(code, str):
        err.write(code + "\n")
    assert code not in (0, None)
    everything = out.getvalue() + err.getvalue()
    assert "Traceback" not in everything, everything
    assert "a run has begun" not in everything, everything
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\udc80-\udcff]", everything), ascii(everything)
    assert len(everything) < 12_000
    assert {path for path in Path().rglob("*") if path.parts[0] != "cache"} == before
    return err.getvalue()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["monitor.enabled=false", "monitor.on_behind=stop"],
            "monitor.on_behind: expected ignore with monitor.enabled=false, got stop",
        ),
        (
            ["model.model_type=albert", "optimizer.layer_decay=1,0.9", "-m"],
            "optimizer.layer_decay: expected 1 for albert, whose parameter names have no layer numbers, got 0.9",
        ),
        (
            ["schedule.function=math.nope", "schedule.warmup_frac=0.1,0.7", "-m"],
            "schedule.function: expected an import",
        ),
        (
            ["schedule.function=math.sqrt"],
            "schedule.function: expected a factor from math.sqrt(0, 1, 12), got TypeError: math.sqrt() takes exactly",
        ),
        (["schedule.function=math.pi"], "schedule.function: expected a function, got math.pi."),
        (["schedule.function=.foo.bar"], "schedule.function: expected an importable module.function, got .foo.bar"),
        (["optimizer.eps=1e-60"], "optimizer.eps: expected a finite number of at least 1.2e-38"),
        (["train.class_weights=[1,1e300]"], "train.class_weights: expected balanced, a list of numbers above 0 (at mo"),
        (
            ["schedule=warmup_stable_decay", "schedule.decay_frac=0.5", "schedule.warmup_frac=0.1,0.7", "-m"],
            "schedule.decay_frac: expected warm-up (",
        ),
    ],
)
def test_incompatible_values_are_one_error(monkeypatch, overrides, message):
    assert message in error_of(monkeypatch, "experiment=quickstart", *FILES, *TINY, *overrides)


@pytest.mark.parametrize(("override", "message"), VALUES, ids=[ascii(each)[1:50] for each, _ in VALUES])
def test_invalid_value_is_one_error(monkeypatch, override, message):
    assert message in error_of(monkeypatch, "experiment=quickstart", *FILES, *TINY, override)


@pytest.mark.parametrize(("overrides", "message"), SWEEPS, ids=[each[0][:50] for each, _ in SWEEPS])
def test_invalid_sweep_is_one_error(monkeypatch, overrides, message):
    assert message in error_of(monkeypatch, "experiment=quickstart", *FILES, *TINY, "-m", *overrides)


@pytest.mark.parametrize(("name", "make", "message"), TEXTS, ids=[name for name, _, _ in TEXTS])
def test_unreadable_texts_are_one_error(monkeypatch, name, make, message):
    make()
    assert message in error_of(monkeypatch, "experiment=quickstart", *FILES, *TINY, f"data.train={name}")


@pytest.mark.parametrize(
    "overrides", [["model.hidden_size=10000000"], ["model.vocab_size=1000000", "model.hidden_size=10000000"]]
)
def test_model_larger_than_memory_is_one_error(monkeypatch, overrides):
    message = error_of(monkeypatch, "experiment=quickstart", *FILES, *TINY, *overrides)
    assert re.search(r"model: cannot build bert: its weights take [\d,]+ GB, and this machine has \d+ GB", message)


# --- folders to resume --------------------------------------------------------------------------


RESUMED = [  # id, content of the folder's sweep.json, part of the message
    ("nothing", None, "launch: not a sweep folder: sweep.json is missing or corrupt."),
    ("no JSON", "{", "not a sweep folder"),
    ("a list", "[]", "not a sweep folder"),
    ("no command", {"runs": []}, "not a sweep folder"),
    ("a word", {"runs": [], "command": "seed=1", "directory": "."}, "not a sweep folder"),
    ("numbers", {"runs": [], "command": [1], "directory": "."}, "not a sweep folder"),
    ("a number", {"runs": [], "command": [], "directory": 5}, "not a sweep folder"),
    ("runs elsewhere", {"runs": ["../x"], "command": [], "directory": "."}, "not a sweep folder"),
    (
        "nowhere",
        {"runs": [], "command": [], "directory": "/no\x1b[31m/where"},
        "launch was started in /no\\x1b[31m/where, which no longer exists. Create that ",
    ),
    ("a wrong key", {"runs": [], "command": ["nope=1"], "directory": "."}, "nope: no such key"),
    ("an escape", {"runs": [], "command": ["seed='\x1b[31m'"], "directory": "."}, "Value '\\x1b[31m' of type 'str'"),
    (
        "other settings",
        {"runs": [], "command": ["experiment=quickstart", *FILES, *TINY], "directory": "."},
        "cannot resume with different settings: ",
    ),
]


@pytest.mark.parametrize(("content", "message"), [each[1:] for each in RESUMED], ids=[each[0] for each in RESUMED])
def test_resume_of_invalid_folder_is_one_error(monkeypatch, content, message):
    Path("launch/quickstart/seed=0").mkdir(parents=True)
    if content is not None:
        Path("launch/sweep.json").write_text(content if isinstance(content, str) else json.dumps(content))
    for name in ("quickstart/seed=0",):
        Path("launch", name).mkdir(parents=True, exist_ok=True)
        settings = {"settings": {"optimizer": {"lr": "\x1b[31m"}, LONG: 1}}
        Path("launch", name, "result.json").write_text(json.dumps(settings))
    assert message in error_of(monkeypatch, "resume", "launch")


def test_resume_of_another_commands_folder_is_one_error(monkeypatch):
    Path("other").mkdir()
    SweepFile((".",), ("experiment=article", "hydra.run.dir=other"), os.getcwd()).write(Path("other"))
    message = error_of(monkeypatch, "experiment=quickstart", *FILES, *TINY, "resume=other")
    assert "resume: expected a folder of the same command, got other, which has none of its runs. To resume" in message
    assert "bertmon resume other" in message
    elsewhere = error_of(monkeypatch, "experiment=quickstart", *FILES, *TINY, "resume=other", "hydra.run.dir=before")
    assert "resume: expected the folder that hydra.run.dir names, got other." in elsewhere
    assert os.listdir("other") == ["sweep.json"]
    assert not os.path.exists("before")


TENSORBOARD = [  # arguments of `bertmon tensorboard`, part of the message
    ([], "there is no sweep in ./multirun; give the folder of one."),
    (["nowhere"], ", got nowhere."),
    (["train.csv"], ", got train.csv."),
    (["\x1b[31m"], ", got \\x1b[31m."),
    ([LONG], "xxx."),
    ([".", "--port", "abc"], "argument --port: expected an integer from 0 to 65535, got abc"),
    ([".", "--port", "99999"], "argument --port: expected an integer from 0 to 65535, got 99999"),
    ([".", "--bind_all"], "unrecognized arguments: --bind_all"),
    ([".", "--host", "0.0.0.0"], "unrecognized arguments: --host 0.0.0.0"),
    ([".", "--load_fast=true"], "unrecognized arguments: --load_fast=true"),
]


@pytest.mark.parametrize(("arguments", "message"), TENSORBOARD, ids=[" ".join(each)[:30] for each, _ in TENSORBOARD])
def test_tensorboard_with_invalid_arguments_is_one_error(monkeypatch, arguments, message):
    monkeypatch.setattr(os, "execv", lambda *arguments: pytest.fail("TensorBoard would start"))
    assert message in error_of(monkeypatch, "tensorboard", *arguments)[-500:]


# --- through the real command line -------------------------------------------------------------


def test_command_line_as_a_process(folder):
    """Bytes that are not UTF-8, exit codes, and output when the process ends."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

    def errors(*arguments) -> str:
        command = [sys.executable, "-m", "bertmon", *arguments]
        process = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=TIMEOUT, check=False
        )
        assert process.returncode == 1, process
        assert b"Traceback" not in process.stdout + process.stderr
        assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", process.stdout + process.stderr)
        return process.stderr.decode()

    quickstart = ["experiment=quickstart", *FILES, *TINY]
    assert "command line: expected UTF-8, got data.train=caf\\udce9.csv." in errors(
        *quickstart, b"data.train=caf\xe9.csv"
    )
    expected = "hydra.sweep.dir: expected a folder other than the current one and those above it, got ..."
    assert expected in errors(*quickstart, "-m", "hydra.sweep.dir=..")
    assert "x/\\x1b[31m: not a sweep folder" in errors("resume", "x/\x1b[31m")
    assert {path.name for path in folder.iterdir()} == {"train.csv", "test.csv"}
