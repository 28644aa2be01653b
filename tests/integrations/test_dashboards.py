"""Signals in W&B (offline), MLflow (a file store), and the Trainer's own log."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TIMEOUT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from watched_training import examples, labels, trainer

from bertmon.integrations.transformers_trainer import WatchCallback

pytest.importorskip("accelerate")
SIGNALS = {"bertmon/depth_ratio", "bertmon/logit_std", "bertmon/update_per_lr/linear", "bertmon/doomed"}


def make_callback(folder, **options):
    return WatchCallback(
        folder, labels=labels(examples()), **{"every": 5, "figures": False, "on_error": "raise"} | options
    )


def logged(watched_trainer):
    return [entry for entry in watched_trainer.state.log_history if "bertmon/doomed" in entry]


@pytest.mark.parametrize(
    ("report_to", "trainer_reports", "expected"),
    [("auto", "tensorboard", True), ("auto", "none", False), ("trainer", "none", True), ("none", "tensorboard", False)],
)
def test_headline_signals_are_logged_by_the_trainer(tmp_path, monkeypatch, report_to, trainer_reports, expected):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    watched_trainer = trainer(
        tmp_path, make_callback(tmp_path / "watched", report_to=report_to), options={"report_to": trainer_reports}
    )
    watched_trainer.train()
    assert [entry["step"] for entry in logged(watched_trainer)] == ([1, 6, 11] if expected else [])
    if expected:
        assert set(logged(watched_trainer)[0]) >= SIGNALS
        assert logged(watched_trainer)[0]["bertmon/doomed"] in (0.0, 1.0)
    if expected and trainer_reports == "tensorboard":
        events = EventAccumulator(str(tmp_path / "board")).Reload()
        assert [event.step for event in events.Scalars("train/bertmon/depth_ratio")] == [1, 6, 11]


PROGRAM = """
import sys
from pathlib import Path
from watched_training import examples, labels, tiny_bert, trainer

folder = Path(sys.argv[2])

def with_trainer():
    from bertmon.integrations.transformers_trainer import WatchCallback

    callback = WatchCallback(folder / "watched", labels=labels(examples()), every=5, on_error="raise")
    trainer(folder, callback, options={"report_to": sys.argv[1]}).train()

def with_sync():
    import torch, wandb
    from torch.utils.data import DataLoader
    from bertmon.integrations.own_loop import Watch

    run = wandb.init(project="test", sync_tensorboard=True)
    model = tiny_bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rows = examples()
    with Watch(
        model, optimizer, folder / "watched", total_steps=12, labels=labels(rows), every=5, figures=False
    ) as watch:
        for batch in DataLoader(rows, batch_size=8):
            loss = model(**batch).loss
            loss.backward()
            with watch.step(loss, batch):
                optimizer.step()
            optimizer.zero_grad()
    run.finish()

with_sync() if sys.argv[1] == "sync" else with_trainer()
"""


def run_program(kind, folder, **environment):
    """Run PROGRAM in its own process, since these libraries leave threads and processes running."""
    tests, root = Path(__file__).parents[1], Path(__file__).parents[2]
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind, str(folder)],
        env=os.environ | {"PYTHONPATH": f"{tests}{os.pathsep}{root}"} | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert process.returncode == 0, process.stderr[-3000:]


def log_records(data, block=32768):
    """Contents of a file in LevelDB's log format, after W&B's header of 7 bytes: CRC, length and type of each part."""
    position, content = 7, b""
    while position + 7 <= len(data):
        if block - position % block < 7:
            position += block - position % block
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        content += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a full record, or its last part
            yield content
            content = b""


def wandb_history(folder):
    """History, summary and watched folders in the file of the only offline run."""
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    rows, summary, folders = [], {}, []
    for content in log_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            rows.append({item.key or "/".join(item.nested_key): item.value_json for item in record.history.item})
        if record.WhichOneof("record_type") == "summary":
            summary |= {item.key or "/".join(item.nested_key): item.value_json for item in record.summary.update}
        if record.WhichOneof("record_type") == "tbrecord":
            folders.append(record.tbrecord.log_dir)
    return rows, summary, folders


def offline_variables(folder):
    return {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(folder),
        "WANDB_ERROR_REPORTING": "false",
    }


@pytest.mark.slow
def test_wandb_run_of_the_trainer_has_signals_figures_and_the_verdict(tmp_path):
    pytest.importorskip("wandb")
    run_program("wandb", tmp_path, **offline_variables(tmp_path))
    rows, summary, _ = wandb_history(tmp_path)
    assert len([row for row in rows if "train/bertmon/depth_ratio" in row]) == 3
    with_figure = [row for row in rows if any(key.startswith("bertmon/gradient_flow") for key in row)]
    steps = [row["train/global_step"] for row in with_figure]
    assert steps == ["1", "6", "11"]
    assert "bertmon/verdict" in summary
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/bertmon/*.png"))) == 9


@pytest.mark.slow
def test_wandb_sync_tensorboard_uploads_what_watch_writes(tmp_path):
    pytest.importorskip("wandb")
    run_program("sync", tmp_path, **offline_variables(tmp_path))
    rows, _, folders = wandb_history(tmp_path)
    keys = {key for row in rows for key in row}
    assert folders == [str(tmp_path / "watched")]
    assert {"loss/train", "depth_ratio", "learning_rate"} <= keys


@pytest.mark.slow
def test_mlflow_run_of_the_trainer_has_signals_figures_and_the_verdict(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    run_program(
        "mlflow",
        tmp_path,
        MLFLOW_TRACKING_URI=(tmp_path / "mlruns").as_uri(),
        MLFLOW_ALLOW_FILE_STORE="true",
        GIT_PYTHON_REFRESH="quiet",
    )
    metrics = [*tmp_path.glob("mlruns/*/*/metrics/**/depth_ratio")]
    assert len(metrics) == 1
    assert [line.split()[2] for line in metrics[0].read_text().splitlines()] == ["1", "6", "11"]
    images = {path.name for path in tmp_path.glob("mlruns/*/*/artifacts/bertmon/gradient_flow/*.png")}
    assert images == {"step_000001.png", "step_000006.png", "step_000011.png"}
    assert len([*tmp_path.glob("mlruns/*/*/tags/bertmon.verdict")]) == 1
    assert mlflow.__version__
