"""Which room may import which: a new edge is a decision, made here."""

import ast
import subprocess
import sys
from pathlib import Path

import bertmon

ALLOWED = {
    "bertmon": set(),
    "terminal": set(),
    "__main__": {"board", "compare.__main__", "config", "folders", "run"},
    "board": {"record", "terminal"},
    "cache": set(),
    "checkpoint": set(),
    "config": {"terminal"},
    "distributed": set(),
    "schedule": set(),
    "monitor": set(),
    "record": {"cache", "config", "terminal"},
    "data": {"config", "data.corpus", "data.docstrings", "data.files", "data.newsgroups"},
    "data.corpus": {"cache"},
    "data.docstrings": {"cache", "config", "data.corpus", "terminal"},
    "data.files": {"cache", "config", "data.corpus", "data.rows", "terminal"},
    "data.newsgroups": {"cache", "config", "data.corpus", "terminal"},
    "data.rows": {"terminal"},
    "hub": {"config"},
    "tokens": {"cache", "config", "data.corpus", "hub", "terminal"},
    "model": {"config", "hub", "terminal"},
    "optimizer": {"config"},
    "monitor.stats": set(),
    "monitor.figures": {"monitor"},
    "monitor.drawer": {"monitor", "monitor.figures"},
    "monitor.eventfile": {"config"},
    "monitor.writer": {"monitor", "monitor.drawer", "monitor.eventfile"},
    "monitor.diagnosis": {"config", "monitor"},
    "monitor.observer": {"config", "monitor", "monitor.diagnosis", "monitor.stats"},
    "batches": {"distributed", "tokens"},
    "step": {"batches", "config", "distributed", "monitor.stats"},
    "train": {
        "batches",
        "config",
        "distributed",
        "monitor",
        "monitor.diagnosis",
        "monitor.observer",
        "optimizer",
        "record",
        "schedule",
        "step",
    },
    "watch": {
        "cache",
        "config",
        "data.corpus",
        "model",
        "monitor",
        "monitor.diagnosis",
        "monitor.observer",
        "monitor.stats",
        "monitor.writer",
        "optimizer",
    },
    "trainer": {"config", "watch"},
    "compare": {"config", "monitor", "monitor.diagnosis", "record", "terminal"},
    "compare.words": {"compare", "record", "terminal"},
    "compare.shown": {"compare", "monitor"},
    "compare.charts": {"compare", "compare.shown", "monitor", "terminal"},
    "compare.page": {"cache", "compare", "compare.charts", "compare.shown", "compare.words", "record", "terminal"},
    "compare.events": {"compare", "compare.charts", "compare.shown", "monitor.eventfile"},
    "compare.__main__": {"compare.events", "compare.page", "compare.words", "config", "terminal"},
    "sweep": {"config", "distributed"},
    "folders": {"cache", "config", "record", "sweep", "terminal"},
    "launch": {
        "board",
        "compare.events",
        "compare.page",
        "compare.words",
        "config",
        "data",
        "distributed",
        "folders",
        "model",
        "search",
        "step",
        "sweep",
        "terminal",
        "tokens",
        "worker",
    },
    "search": set(),
    "worker": {"record", "terminal"},
    "run": {
        "batches",
        "cache",
        "checkpoint",
        "compare",
        "compare.page",
        "compare.words",
        "config",
        "data",
        "distributed",
        "folders",
        "launch",
        "model",
        "monitor",
        "monitor.diagnosis",
        "monitor.observer",
        "monitor.writer",
        "optimizer",
        "record",
        "run",  # itself, by its own name
        "step",
        "terminal",
        "tokens",
        "train",
    },
}
ROOT = Path(bertmon.__file__).parent


def name_of(path):
    dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip(".")
    return dotted or "bertmon"


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bertmon":
            inside = node.module.removeprefix("bertmon").lstrip(".")
            for alias in node.names:
                room = ROOT / inside.replace(".", "/") / alias.name
                is_room = room.is_dir() or room.with_suffix(".py").exists()
                yield f"{inside}.{alias.name}".lstrip(".") if is_room else inside
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("bertmon") for alias in node.names), path


def test_every_import_is_in_the_table():
    found = {name_of(path): set(imported(path)) for path in ROOT.rglob("*.py")}
    assert found == ALLOWED


def test_a_report_needs_no_torch():
    code = (
        "import sys, bertmon.compare.__main__; print({'torch', 'transformers', 'sklearn', 'scipy'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_the_vocabulary_needs_numpy_alone():
    code = "import sys, bertmon.monitor; print({'torch', 'matplotlib', 'tensorboard', 'hydra'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
