"""The TensorBoard files of a run, read by TensorBoard's own reader."""

import dataclasses
import math
import re
from concurrent.futures import Future

import numpy as np
import pytest
from conftest import bert_snapshot
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bertmon.errors import StorageError
from bertmon.monitor import figure_canvas, figures
from bertmon.monitor.history import STATISTICS
from bertmon.monitor.tensorboard import EventFile, RunWriter


def read(folder):
    return EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()


def test_figure_that_cannot_be_drawn_stops_figures_but_not_the_run(tmp_path, monkeypatch, caplog):
    class Drawer:
        def submit(self, snapshot):
            future = Future()
            future.set_exception(ValueError("no font"))
            return future

    monkeypatch.setattr("bertmon.monitor.figure_process.shared", Drawer)
    with RunWriter(tmp_path) as writer:
        for step in (0, 30):
            writer.snapshot(dataclasses.replace(bert_snapshot(2), step=step))
        writer.scalars(60, {"loss/train": 1.0})
    (message,) = caplog.messages
    assert message == "could not draw the figures of step 0 (ValueError('no font')); this run gets no more figures"
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [point.step for point in events.Scalars("loss/train")] == [60]


def test_run_writer_writes_what_tensorboard_reads(tmp_path):
    snapshot = bert_snapshot(1)
    with RunWriter(tmp_path) as writer:
        writer.text("config", "seed: 1\n# no *markdown*")
        writer.scalars(3, {"grad_norm": 1.5, "learning_rate": 1e-3})
        writer.snapshot(snapshot)
        writer.hparams({"schedule.warmup_frac": 0.1, "data.train": None, "flag": True}, {"grad_norm": 0.5}, {})
    assert len(list(tmp_path.iterdir())) == 1  # one event file, no second run

    events = read(tmp_path)
    tags = events.Tags()
    assert set(tags["images"]) == {"gradient_flow", "update_ratio"}
    expected = {f"{statistic}/{layer}" for statistic in STATISTICS for layer in snapshot.layers.labels}
    assert set(tags["scalars"]) == expected | {"grad_norm", "learning_rate"}
    for statistic in STATISTICS:
        points = [events.Scalars(f"{statistic}/{layer}")[0] for layer in snapshot.layers.labels]
        assert [point.step for point in points] == [30] * len(points)
        np.testing.assert_allclose([point.value for point in points], snapshot[statistic], rtol=1e-6)
    picture = events.Images("gradient_flow")[0]
    assert picture.step == 30
    assert picture.encoded_image_string == figure_canvas.png(figures.gradient_flow(snapshot))
    assert "config/text_summary" in tags["tensors"]


def test_run_writer_draws_gradient_depth_of_models_with_layers(tmp_path):
    with RunWriter(tmp_path) as writer:
        writer.snapshot(bert_snapshot(2))
    assert set(read(tmp_path).Tags()["images"]) == {"gradient_depth", "gradient_flow", "update_ratio"}


def test_run_writer_without_figures_writes_scalars(tmp_path):
    with RunWriter(tmp_path, draw=False) as writer:
        writer.snapshot(bert_snapshot(1))
    tags = read(tmp_path).Tags()
    assert tags["images"] == []
    assert tags["scalars"]


def test_headlines_sort_first_and_have_logarithms(tmp_path):
    with RunWriter(tmp_path, draw=False) as writer:
        writer.snapshot(bert_snapshot(1))
        writer.scalars(30, {"depth_ratio": 1e-4, "logit_std": 0.0, "update_per_lr/linear": 10.0, "loss/train": 1.5})
    events = read(tmp_path)
    tags = sorted(events.Tags()["scalars"])
    headlines = ["Headlines/log10_depth_ratio", "Headlines/log10_update_per_lr", "Headlines/loss_train"]
    assert tags[:3] == headlines  # 0 has no logarithm
    assert [events.Scalars(tag)[0].value for tag in headlines] == pytest.approx([-4, 1, 1.5])
    assert events.Scalars("depth_ratio")[0].value == pytest.approx(1e-4)


def test_hparams_metrics_without_a_curve_become_points(tmp_path):
    with RunWriter(tmp_path, draw=False) as writer:
        writer.scalars(7, {"accuracy/test": 0.75})
        writer.hparams({"seed": 1}, {"accuracy/test": 0.75}, {"peak_effective_lr": 2e-3, "did_not_learn": 1.0})
    events = read(tmp_path)
    points = {tag: events.Scalars(tag) for tag in ("accuracy/test", "peak_effective_lr", "did_not_learn")}
    assert {tag: [(point.step, round(point.value, 6)) for point in each] for tag, each in points.items()} == {
        "accuracy/test": [(7, 0.75)],
        "peak_effective_lr": [(0, 0.002)],
        "did_not_learn": [(0, 1.0)],
    }


def test_event_file_name_has_integer_seconds(tmp_path):
    names = [EventFile(tmp_path).path.name for _ in range(2)]  # in one second
    assert all(re.fullmatch(r"events\.out\.tfevents\.\d{10}\..+\.\d+\.\d+", name) for name in names)
    assert len(set(names)) == 2


def test_event_file_that_cannot_be_written_raises_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"^could not write .*file/events\.out"):
        EventFile(tmp_path / "file")


def test_truncate_to_positions_removes_everything_later(tmp_path):
    with RunWriter(tmp_path, draw=False) as writer:
        writer.scalars(1, {"x": 1.0})
        positions = writer.positions()
        writer.scalars(2, {"x": 2.0})
    with RunWriter(tmp_path, draw=False, truncate_to=positions) as writer:
        writer.scalars(2, {"x": 3.0})
        both = writer.positions()
        writer.scalars(3, {"x": 4.0})
    with RunWriter(tmp_path, draw=False) as writer:  # like a process killed before its first checkpoint
        writer.scalars(9, {"x": 9.0})
    with RunWriter(tmp_path, draw=False, truncate_to=both):
        pass
    assert [(point.step, point.value) for point in read(tmp_path).Scalars("x")] == [(1, 1.0), (2, 3.0)]
    assert all(isinstance(position, int) for position in both.values())


def test_truncate_to_in_a_file_that_lost_bytes_keeps_the_rest_and_warns(tmp_path, caplog):
    with RunWriter(tmp_path, draw=False) as writer:
        writer.scalars(1, {"x": 1.0})
        writer.scalars(2, {"x": 2.0})
        positions = writer.positions()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-10])
    with RunWriter(tmp_path, draw=False, truncate_to=positions) as writer:
        writer.scalars(3, {"x": 3.0})
    assert len(caplog.messages) == 1
    assert "lost 10 bytes since the checkpoint" in caplog.messages[0]
    assert {point.step for point in read(tmp_path).Scalars("x")} >= {1, 3}


def test_scalars_of_nan_are_written_without_a_logarithm(tmp_path):
    with RunWriter(tmp_path, draw=False) as writer:
        writer.scalars(0, {"logit_std": math.nan})
    assert read(tmp_path).Tags()["scalars"] == ["logit_std"]
