"""`bertmon compare` on folders with foreign and corrupt files: each affects only its own run or is one error."""

import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import LEARNS, comparison
from matplotlib.figure import Figure
from unreadable_files import Make, loop, pipe, sparse, write

from bertmon.compare import layer_plots, selection
from bertmon.compare.__main__ import main as compare
from bertmon.monitor.history import HISTORY_FILE

LONG = "x" * 5000


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a sweep of two runs and one other file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.csv").touch()
    return tmp_path


def result(**changes) -> Make:
    def make() -> None:
        path = Path("sweep/warmup_frac=0.7/seed=0/result.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return make


def replace(name: str, make: Callable[[str], Make]) -> Make:
    """Replace a file of the sweep with something else."""

    def unlink_and_make() -> None:
        Path("sweep", name).unlink(missing_ok=True)
        make(f"sweep/{name}")()

    return unlink_and_make


def plan(content: object) -> Make:
    return lambda: Path("sweep/sweep.json").write_text(json.dumps(content))


def measured(**changes) -> Make:
    """Replace arrays of a run's history; None deletes one."""

    def make() -> None:
        with np.load(io.BytesIO(LEARNS)) as stored:
            arrays = dict(stored) | changes
        with Path("sweep", RUN, HISTORY_FILE).open("wb") as file:
            np.savez(file, **{name: array for name, array in arrays.items() if array is not None})

    return make


def about(**changes) -> Make:
    with np.load(io.BytesIO(LEARNS)) as stored:
        return measured(about=np.array(json.dumps(json.loads(str(stored["about"])) | changes)))


RUN = "warmup_frac=0.7/seed=0"
GUESSED = {"step": 100, "loss": 1.4, "accuracy": 0.25}
UNREADABLE = "Excluded: 1 unreadable."
NO_CURVES = f"could not read sweep/{RUN}/{HISTORY_FILE} ("
LABELS = ["$\\frac{\x1b[31m", "<script>alert(1)</script>", "a\nb", "x" * 9000, "\x07", "\u6f22"]

HUGE = {"steps": 10**400, "total_steps": 10**401, "verdict": "collapsed", "evaluations": [GUESSED]}

FOREIGN = [  # id, change to a complete sweep, part of the output or log of `bertmon compare`
    ("result is a pipe", replace(f"{RUN}/result.json", pipe), UNREADABLE),
    ("result is a folder", replace(f"{RUN}/result.json", lambda name: lambda: os.mkdir(name)), UNREADABLE),
    ("result links to itself", replace(f"{RUN}/result.json", loop), "warmup_frac=0.1: did not learn"),
    ("result is memory", replace(f"{RUN}/result.json", lambda n: lambda: os.symlink("/proc/self/mem", n)), UNREADABLE),
    ("result of a gigabyte", replace(f"{RUN}/result.json", sparse), UNREADABLE),
    ("result in UTF-16", replace(f"{RUN}/result.json", lambda n: write(n, "{}".encode("utf-16"))), UNREADABLE),
    ("result is deep", replace(f"{RUN}/result.json", lambda n: write(n, b'{"a":' * 100_000)), UNREADABLE),
    ("seconds are huge", result(seconds=10**400), UNREADABLE),
    ("steps are huge", result(**HUGE), "No run did better"),
    ("steps are negative", result(steps=-5), UNREADABLE),
    ("step of an evaluation is huge", result(evaluations=[{"step": 10**400}]), UNREADABLE),
    ("evaluation is a word", result(evaluations=["x"]), UNREADABLE),
    ("accuracy is a word", result(evaluations=[{"step": 1, "loss": 1, "accuracy": "x"}]), UNREADABLE),
    ("majority share is above 1", result(data={"majority_share": 5, "test_texts": 3}), UNREADABLE),
    ("status is an escape", result(status="\x1b[31m"), UNREADABLE),
    ("status is long", result(status=LONG), UNREADABLE),
    ("error is an escape", result(status="failed", error="\x1b[2J<script>"), "Excluded: 1 failed."),
    ("cause is an escape", result(verdict="collapsed", evaluations=[GUESSED], cause="\x1b[2J\n# x"), "\\x1b[2J\\n# x"),
    ("swept is an escape", result(config={"a\x1b[31m": "\x1b]0;x\x07\n"}), "\\x1b]0;x\\x07\\n"),
    ("swept is a formula", result(config={"text_column": "a$\\frac{b$"}), "a$\\frac{b$"),
    ("swept is long", result(config={"text_column": LONG * 20}), "xxx...xxx"),
    ("swept is deep", result(config={"x": {"y": [1]}}), "y=null"),
    ("seed is huge", result(seed=10**4000), "Best: "),
    ("plan is a pipe", replace("sweep.json", pipe), "Best: "),
    ("plan links to itself", replace("sweep.json", loop), "Best: "),
    ("plan leaves the folder", plan({"runs": ["../../etc", "x"]}), "Best: "),
    ("plan is absolute", plan({"runs": ["/etc"]}), "Best: "),
    ("plan has a NUL", plan({"runs": ["a\0b"]}), "Best: "),
    ("plan has a long name", plan({"runs": [LONG]}), "Best: "),
    ("plan has an escape", plan({"runs": ["a\x1b[31m/b"]}), "Best: "),
    ("folder has an escape", lambda: Path("sweep/warmup_frac=0.7").rename("sweep/\x1b[31m"), "Best: "),
    ("folder is not UTF-8", lambda: os.rename("sweep/warmup_frac=0.7", b"sweep/caf\xe9"), "Best: "),
    ("history is a pipe", replace(f"{RUN}/{HISTORY_FILE}", pipe), NO_CURVES),
    ("history is a folder", replace(f"{RUN}/{HISTORY_FILE}", lambda n: lambda: os.mkdir(n)), NO_CURVES),
    ("history has pickles", measured(lr=np.array([{}], dtype=object)), "Object arrays cannot be loaded"),
    ("history has words", measured(lr=np.array(["a"] * 100)), "inconsistent shapes"),
    ("history has no rates", measured(lr=None), NO_CURVES),
    ("history has no steps", measured(lr=np.ones(0)), NO_CURVES),
    ("history has a step after the last", measured(step=np.array([0, 1, 2, 3, 4000])), NO_CURVES),
    ("history has matrices", measured(lr=np.ones((100, 2))), "inconsistent shapes"),
    ("rates are not finite", measured(lr=np.full(100, np.nan), effective_lr=np.full(100, np.inf)), "Best: "),
    ("losses are huge", measured(loss=np.full(100, 1e308)), "Best: "),
    ("logit_std is huge", measured(logit_std=np.full(5, 1e300)), "Best: "),
    ("values are negative", measured(values=np.full((5, 6, 6), -1.0)), "Best: "),
    ("labels need escaping", about(labels=LABELS), "Best: "),
    ("labels are no list", about(labels=7), NO_CURVES),
    ("depths are words", about(depths=["x"] * 6), "inconsistent shapes"),
    ("chance is a word", about(chance_loss="x"), "inconsistent shapes"),
]


def run_compare(capfd, *arguments) -> tuple[object, str]:
    """Exit code and everything that `bertmon compare` prints."""
    try:
        compare(list(arguments))
        code = None
    except SystemExit as end:
        code = end.code
    printed = capfd.readouterr()
    everything = f"{printed.out}{printed.err}{code or ''}"
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\udc80-\udcff]", everything), ascii(everything)
    return code, everything


@pytest.mark.parametrize(("name", "make", "message"), FOREIGN, ids=[each[0] for each in FOREIGN])
def test_compare_skips_foreign_and_corrupt_files(folder, capfd, caplog, monkeypatch, name, make, message):
    comparison(folder / "sweep", seeds=1, measured=False)
    if name.split()[0] not in ("result", "plan", "status", "error"):
        Path("sweep", RUN, HISTORY_FILE).write_bytes(LEARNS)
    make()
    # Slow to draw, and drawn like the other figures.
    monkeypatch.setattr(layer_plots, "layer_heatmap", lambda *arguments: Figure())
    monkeypatch.setattr(selection, "select_steps", lambda curves: [0] if curves else [])
    code, output = run_compare(capfd, "sweep")
    assert code is None, output
    assert message in output + caplog.text
    assert len(caplog.records) <= 1
    page = Path("sweep/report.html").read_text()
    assert page.count("<script") == 1  # the report's own
    assert "\x1b" not in page + Path("sweep/report.md").read_text()
    assert {path.name for path in Path().iterdir()} == {"sweep", "train.csv"}


COMMANDS = [  # arguments of `bertmon compare`, part of the message
    (["nowhere"], "nowhere: expected the folder of a sweep"),
    (["train.csv"], "train.csv: expected the folder of a sweep"),
    (["."], ".: expected a run, but there is no result.json in it or below it"),
    (["\x1b[31m"], "\\x1b[31m: expected the folder of a sweep"),
    ([LONG], ": File name too long."),
    (["sweep", "--out", "train.csv"], "could not read or write train.csv: File exists."),
    (["sweep", "--out", "train.csv/x"], "could not read or write train.csv/x: Not a directory."),
    (["sweep", "--out", LONG], ": File name too long."),
    (["sweep", "--out", "taken"], "could not read or write taken/report.html: Is a directory."),
]


@pytest.mark.parametrize(("arguments", "message"), COMMANDS, ids=[" ".join(each)[:30] for each, _ in COMMANDS])
def test_compare_with_invalid_arguments_prints_one_error(folder, capfd, arguments, message):
    comparison(folder / "sweep", seeds=1, measured=False)
    Path("taken/report.html").mkdir(parents=True)
    if arguments == ["."]:
        shutil.rmtree("sweep")
    code, output = run_compare(capfd, *arguments)
    assert code == 1 or isinstance(code, str)
    assert message in output
