"""Any bytes in a file give a result or the documented error of its reader.

The bytes are random, or valid files that were cut, flipped and spliced. In CI the examples are few and always the same;
BERTMON_FUZZ=100000 tries that many new ones for each test.
"""

import io
import json
import os
import shutil
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LEARNS, comparison
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bertmon.compare import summary, tables
from bertmon.compare.results import read_sweep
from bertmon.config import FilesConfig
from bertmon.data import Corpus, load_corpus
from bertmon.errors import InputError
from bertmon.launch.run_dirs import resume_argvs
from bertmon.monitor.history import History
from bertmon.result import SWEEP_FILE, RunResult, run_names
from bertmon.storage import cached_bytes
from bertmon.training.checkpoint import Checkpoint, CheckpointMetadata, CorruptCheckpointError, save_checkpoint
from bertmon.training.state import TrainState

MORE = int(os.environ.get("BERTMON_FUZZ", "0"))
fuzzed = settings(
    max_examples=MORE or 150,
    derandomize=not MORE,
    database=None,
    deadline=None if MORE else 5000,  # ms; catches a reader that hangs
    suppress_health_check=list(HealthCheck),
)

WORDS = [b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"'", b",", b"\t", b"\n", b"\r", b"\r\n", b"{", b"[" * 2000]
WORDS += [b"}", b"]", b":", b"null", b"NaN", b"-1", b"1e999", b"9" * 400, b"9" * 5000, b"true", b"\\ud800", b"\\u0000"]
WORDS += [b"text", b"label", b"runs", b"status", b"PK\x03\x04", b"PK\x01\x02", b"\x93NUMPY", b"..", b"/", b"\x1b[2J"]


@st.composite
def mutated(draw, files):
    """A valid file with random mutations."""
    content = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        match draw(st.integers(0, 5)):
            case 0:
                del content[start:]
            case 1:
                del content[start : start + draw(st.integers(1, 64))]
            case 2 if start < len(content):
                content[start] ^= 1 << draw(st.integers(0, 7))
            case 3:
                content[start:start] = draw(st.sampled_from(WORDS))
            case 4:
                word = draw(st.sampled_from(WORDS) | st.binary(max_size=16))
                content[start : start + len(word)] = word
            case 5:
                other = draw(st.integers(0, len(content)))
                content[start:start] = content[other : other + draw(st.integers(1, 256))]
    return bytes(content)


def contents(*files):
    return mutated(files) | st.binary(max_size=200) | st.lists(st.sampled_from(WORDS), max_size=20).map(b"".join)


@cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="bertmon-fuzz-"))


@pytest.fixture(scope="module", autouse=True)
def _remove_folder():
    yield
    shutil.rmtree(folder())
    folder.cache_clear()


TABLE = 'id,text,label\n1,"a boat,\na wave",sea\n2,the sky,sky\n3,naïve ☃,sea\n'.encode()
LINES = b'{"text": "a boat", "label": "sea", "more": [1, {"x": null}]}\n\n{"text": "sky \\u2603", "label": 7}\n'


def check_texts(content: bytes, suffix: str) -> None:
    path = folder() / f"train{suffix}"
    path.write_bytes(content)
    try:
        corpus = load_corpus(FilesConfig(train=str(path), test=str(path)), folder())
    except InputError as error:
        message = str(error)
        assert message.startswith("data.train")
        assert not any(ord(character) < 32 for character in message)
        return
    assert isinstance(corpus, Corpus)
    assert len(corpus.train.texts) == len(corpus.train.labels) > 1
    assert all(text.strip() and text.encode() for text in corpus.train.texts)
    assert all((name.strip() and name.isprintable()) or not name.isascii() for name in corpus.label_names)


@fuzzed
@given(contents(TABLE), st.sampled_from([".csv", ".tsv"]))
@example(TABLE.replace(b"\n", b"\r"), ".csv")
@example(b"\0" * 100, ".csv")
@example(b'"text\n1,"\tlabel\n', ".tsv")  # found by fuzzing: the csv module prints the delimiter unescaped
@example(b"text,label\n" + b'"' * 1001, ".csv")
def test_any_table_is_read_or_refused(content, suffix):
    check_texts(content, suffix)


@fuzzed
@given(contents(LINES))
@example(b"[" * 100_000)
@example(b'{"text": "x", "label": ' + b"9" * 5000 + b"}")
@example(b'{"text": "x", "text": "y", "label": "a"}')
def test_any_json_lines_are_read_or_refused(content):
    check_texts(content, ".jsonl")


@cache
def valid_checkpoint() -> bytes:
    layer = torch.nn.Linear(3, 2)
    adamw = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    adamw.step()
    metadata = CheckpointMetadata({"seed": 1}, "f", TrainState(steps=100), {}, {"e": 5})
    save_checkpoint(folder() / "whole", layer, adamw, metadata, history=b"history")
    return (folder() / "whole").read_bytes()


@fuzzed
@given(st.deferred(lambda: contents(valid_checkpoint())))
@example(b"\xff\xff\xff\xff\x00\x00\x00\x00{}")
@example((100 * 10**9).to_bytes(8, "little") + b"{}")
def test_any_checkpoint_is_restored_or_corrupt(content):
    """A changed checkpoint is never mistaken for a valid one."""
    path = folder() / "checkpoint"
    path.write_bytes(content)
    try:
        checkpoint = Checkpoint(path)
    except CorruptCheckpointError as error:
        message = str(error)
        assert str(path) in message
        return
    assert checkpoint.metadata.state.steps == 100
    assert checkpoint.history == b"history"
    layer = torch.nn.Linear(3, 2)
    checkpoint.restore(layer, torch.optim.AdamW(layer.parameters()))


def test_checkpoint_with_changed_metadata_is_corrupt(tmp_path):
    changed = valid_checkpoint().replace(b'\\"steps\\": 100', b'\\"steps\\": 900')
    assert changed != valid_checkpoint()
    (tmp_path / "c").write_bytes(changed)
    with pytest.raises(CorruptCheckpointError, match="its checksums do not match"):
        Checkpoint(tmp_path / "c")


@cache
def valid_cache() -> bytes:
    cached_bytes(folder() / "cache", "whole", lambda: b"what was made once")
    return (folder() / "cache" / "whole").read_bytes()


@fuzzed
@given(st.deferred(lambda: contents(valid_cache())))
def test_any_cache_file_is_used_or_rebuilt(content):
    (folder() / "cache").mkdir(exist_ok=True)
    (folder() / "cache" / "file").write_bytes(content)
    expected = b"made again" if content != valid_cache() else b"what was made once"
    assert cached_bytes(folder() / "cache", "file", lambda: b"made again") == expected


def bomb(size: int) -> bytes:
    """A history whose rates would take `size` bytes of zeros."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
        packed.open("lr.npy", "w") as part,
    ):
        np.lib.format.write_array_header_1_0(part, {"descr": "<f8", "fortran_order": False, "shape": (size // 8,)})
        for _ in range(size // 2**24):
            part.write(bytes(2**24))
    return file.getvalue()


def claim(shape: tuple[int, ...]) -> bytes:
    """A history whose rates claim a large shape but have no data."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed, packed.open("lr.npy", "w") as part:
        np.lib.format.write_array_header_1_0(part, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return file.getvalue()


STORED = io.BytesIO()
with np.load(io.BytesIO(LEARNS)) as _arrays:
    np.savez(STORED, **dict(_arrays))  # not deflated: mutations reach the arrays


def reseal(content: bytes) -> bytes:
    """The same archive with correct checksums, if it still is one, so that zipfile reads its arrays."""
    file = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
            for part in old.infolist():
                start = part.header_offset + 30 + len(part.filename) + len(part.extra)
                new.writestr(part.filename, content[start : start + min(part.file_size, len(content))])
    except Exception:  # no longer an archive
        return content
    return file.getvalue()


@fuzzed
@given(contents(LEARNS, STORED.getvalue()) | mutated([STORED.getvalue()]).map(reseal))
@example(bomb(2**24))
@example(claim((12_500_000_000,)))
@example(claim((2**62,)))
@example(claim((-1,)))
def test_any_history_is_read_or_refused(content):
    try:
        history = History.from_bytes(content)
    except ValueError as error:
        message = str(error)
        assert "history" in message
        return
    assert len(history.losses) == len(history.grad_norms) <= len(history.plan)
    for shot in history.snapshots:
        assert shot.depth_ratio is not None
        assert shot.signals is not None
    assert history.to_bytes()


def test_history_larger_than_memory_is_refused_before_it_is_unpacked(monkeypatch):
    monkeypatch.setattr("bertmon.monitor.history._MAX_BYTES", 2**25)
    monkeypatch.setattr(np, "load", lambda *arguments, **options: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match="more than 33554432 bytes"):
        History.from_bytes(bomb(2**26))


@cache
def sweep() -> Path:
    return comparison(folder() / "sweep", seeds=1, measured=False)


RESULT = "warmup_frac=0.7/seed=0/result.json"


@cache
def valid_result() -> bytes:
    return (sweep() / RESULT).read_bytes()


scalars = st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)


@st.composite
def changed_results(draw):
    """A result as JSON, with some values replaced at some depth."""
    result = json.loads(valid_result())
    for _ in range(draw(st.integers(1, 3))):
        at = result
        while True:
            key = draw(st.sampled_from(sorted(at))) if isinstance(at, dict) else draw(st.integers(0, len(at) - 1))
            if not (isinstance(at[key], dict | list) and at[key] and draw(st.booleans())):
                break
            at = at[key]
        at[key] = draw(anything)
    return json.dumps(result).encode()


@fuzzed
@given(st.deferred(lambda: contents(valid_result()) | changed_results()))
def test_any_result_leaves_the_summary_readable(content):
    """A corrupt result affects only its own run; the summary is still printed."""
    (sweep() / RESULT).write_bytes(content)
    read = read_sweep([sweep()])
    text = (
        summary.console_summary(read)
        + tables.runs_table(read).markdown()
        + tables.unfinished_table(read).markdown()
        + summary.progress_line(read)
    )
    assert "warmup_frac=0.1" in text
    assert not any(ord(character) < 32 and character != "\n" for character in text)
    ended = RunResult.read_ended((sweep() / RESULT).parent)
    assert ended is None or isinstance(ended.final.accuracy, float)
    assert ended is None or RunResult.from_dict(json.loads(ended.to_json())).status is ended.status


PLAN = b'{"runs": ["warmup_frac=0.1/seed=0", "a/seed=1"], "command": ["seed=1,2", "-m"], "directory": "/"}\n'


@fuzzed
@given(contents(PLAN) | anything.map(lambda value: json.dumps({"runs": value, "command": value}).encode()))
@example(b'{"runs": ["../x"]}')
@example(b'{"runs": ["/x"]}')
@example(json.dumps({"runs": [], "command": [], "directory": "x" * 5000}).encode())  # found by fuzzing: a long name
def test_any_sweep_file_stays_inside_its_folder(content):
    (folder() / SWEEP_FILE).write_bytes(content)
    for name in run_names(folder()):
        assert (folder() / name).resolve().is_relative_to(folder().resolve())
    try:
        assert all(isinstance(word, str) for argv in resume_argvs(folder()) for word in argv)
    except InputError as error:
        message = str(error)
        assert "not a sweep folder" in message or "no longer exists" in message
