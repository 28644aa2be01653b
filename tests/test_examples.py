"""The examples, as a user runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

from bertmon.monitor.history import HISTORY_FILE, History

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("name", ["own_loop.py", "trainer.py"])
def test_example(name, tmp_path):
    if name == "trainer.py":
        pytest.importorskip("accelerate")
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), str(tmp_path / "run"), "--lr", "1e-2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ": collapsed - gradients vanish towards the input" in done.stdout
    assert done.stdout.splitlines()[-1] in done.stderr  # told when it was known, and again at the end
    history = History.load(tmp_path / "run" / HISTORY_FILE)
    assert 31 <= len(history.losses) < 400
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))
