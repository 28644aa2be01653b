"""The programs in examples/, run in this process: at a learning rate of 1e-2 their model collapses."""

import importlib
import logging
from pathlib import Path

import pytest

from bertmon.monitor.diagnosis import Verdict
from bertmon.monitor.history import HISTORY_FILE, History

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("own_loop", "torch"),
        ("transformers_trainer", "accelerate"),
        ("accelerate_loop", "accelerate"),
        pytest.param("lightning_trainer", "lightning", marks=pytest.mark.filterwarnings("ignore")),
    ],
)
def test_example_at_a_large_learning_rate_stops_as_collapsed(name, needs, tmp_path, caplog):
    pytest.importorskip(needs)
    caplog.set_level(logging.INFO)
    trained = importlib.import_module(name).train(tmp_path / "run", lr=1e-2, steps=300)
    watch = getattr(trained, "watch", trained)
    assert watch.diagnosis.verdict is Verdict.collapsed
    assert f"step {watch.diagnosis.since_step}: collapsed - " in caplog.text
    history = History.load(tmp_path / "run" / HISTORY_FILE)
    assert 31 <= len(history.losses) < 120
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_fits_one_screen(path):
    source = path.read_text()
    assert len(source.splitlines()) < 60
    assert path.name == "toy_data.py" or f"python examples/{path.name}" in source
