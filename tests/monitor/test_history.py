"""The history of a run: its file, and files that are not histories."""

import dataclasses
import io
import json
import math

import numpy as np
import pytest
from conftest import bert_snapshot

from bertmon.monitor.history import STATISTICS, History, RunPlan, Snapshot, WeightTable


def plan(steps=5, lr=0.5):
    return RunPlan(np.full(steps, lr), np.full(steps, 2 * lr), chance_loss=1.0, warmup_frac=0.1, bias_correction=False)


def measured_history():
    snapshot = bert_snapshot(2)
    snapshots = [dataclasses.replace(snapshot, step=step, effective_lr=2e-4, lr=1e-4) for step in (0, 30)]
    return History(plan(40, lr=1e-4), losses=[1.5, math.nan], grad_norms=[0.25, math.inf], snapshots=snapshots)


def test_history_loaded_from_its_file_equals_the_original(tmp_path):
    history = measured_history()
    (tmp_path / "history.npz").write_bytes(history.to_bytes())
    loaded = History.load(tmp_path / "history.npz")
    assert [dataclasses.replace(shot, logit_std=1e-3) for shot in loaded.snapshots] == history.snapshots
    assert loaded.snapshots[0].logit_std == pytest.approx(1e-3)
    assert (loaded.losses[0], loaded.grad_norms) == (1.5, [0.25, math.inf])
    assert math.isnan(loaded.losses[1])
    assert np.array_equal(loaded.plan.effective_lr, history.plan.effective_lr)
    assert (loaded.plan.chance_loss, loaded.plan.warmup_frac, loaded.plan.bias_correction) == (1.0, 0.1, False)


def test_history_without_a_step_can_be_stored(tmp_path):
    (tmp_path / "history.npz").write_bytes(History(plan()).to_bytes())
    loaded = History.load(tmp_path / "history.npz")
    assert (loaded.losses, loaded.snapshots) == ([], [])


def replace_arrays(content: bytes, **changes):
    """The bytes of a history with other arrays; None removes one."""
    with np.load(io.BytesIO(content)) as stored:
        arrays = {name: stored[name] for name in stored.files} | changes
    file = io.BytesIO()
    np.savez_compressed(file, **{name: array for name, array in arrays.items() if array is not None})
    return file.getvalue()


def test_history_of_version_0_1_with_logit_spread_is_read():
    history = measured_history()
    old = replace_arrays(history.to_bytes(), logit_std=None, logit_spread=np.array([1e-3, math.nan], dtype=np.float32))
    loaded = History.from_bytes(old)
    assert loaded.snapshots[0].logit_std == pytest.approx(1e-3)
    assert math.isnan(loaded.snapshots[1].logit_std)
    assert loaded.snapshots[0].signals["logit_std"] == pytest.approx(1e-3)
    assert np.array_equal(loaded.snapshots[0].values, history.snapshots[0].values)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": np.zeros(3, dtype=np.float32)},  # more losses than gradient norms
        {"loss": np.zeros(41, dtype=np.float32), "grad_norm": np.zeros(41, dtype=np.float32)},  # more than planned
        {"step": np.array([0, 40])},  # beyond the plan
        {"step": np.array([0])},  # fewer steps than snapshots
        {"lr": None},
        {"logit_std": None},
        {"about": np.array("[]")},
        {"about": np.array(json.dumps({"labels": 3}))},
        {"values": np.zeros((2, 3, 6))},  # fewer weights than labels
        {"lr": np.array([object()])},  # a pickle
    ],
)
def test_history_with_inconsistent_arrays_is_a_value_error(changes):
    with pytest.raises(ValueError, match="history"):
        History.from_bytes(replace_arrays(measured_history().to_bytes(), **changes))


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x04\x95\x00.\x94."])
def test_history_of_other_bytes_is_a_value_error(content):
    with pytest.raises(ValueError, match="history"):
        History.from_bytes(content)


def test_history_of_a_folder_is_an_os_error(tmp_path):
    with pytest.raises(OSError):  # noqa: PT011
        History.load(tmp_path)


def test_mean_since_averages_the_steps_from_that_one_on():
    history = History(plan(), losses=[4.0, 1.0, 2.0], grad_norms=[9.0, 0.5, 1.5])
    assert history.mean_since(1) == {
        "loss/train": 1.5,
        "learning_rate": 0.5,
        "effective_learning_rate": 1.0,
        "grad_norm": 1.0,
    }
    assert history.mean_since(0, 1.0)["clipped"] == pytest.approx(2 / 3)


# --- weights and signals of a snapshot -----------------------------------------------------------


def test_matrix_groups_are_the_matrices_that_every_layer_has():
    groups = bert_snapshot(3).layers.matrix_groups
    assert list(groups) == [
        "enc.l.*.attention.query",
        "enc.l.*.attention.key",
        "enc.l.*.attention.value",
        "enc.l.*.attention.output.dense",
        "enc.l.*.intermediate.dense",
        "enc.l.*.output.dense",
    ]
    assert [len(rows) for rows in groups.values()] == [3] * 6


def test_snapshot_leaves_out_undefined_signals():
    table = WeightTable(("only",), ("linear",), (0,))
    values = np.full((1, len(STATISTICS)), math.nan)
    assert Snapshot(0, 0.0, 0.0, math.nan, table, values).signals == {}
    assert Snapshot(0, 0.0, 0.0, 0.5, table, values).signals == {"logit_std": 0.5}


def test_snapshot_update_per_lr_is_the_median_over_the_weights_of_a_kind():
    table = WeightTable(("a", "b", "c", "d"), ("linear", "linear", "linear", "norm"), (0, 1, 2, 0))
    values = np.ones((4, len(STATISTICS)))
    values[:, STATISTICS.index("update_ratio")] = [1e-3, 4e-3, math.nan, 2e-3]
    values[:, STATISTICS.index("weight_rms")] = [0.5, 0.5, 0.5, 1.0]
    signals = Snapshot(0, 1e-3, 2e-3, math.nan, table, values).signals
    assert signals["update_per_lr/linear"] == pytest.approx((0.25 + 1.0) / 2)
    assert signals["update_per_lr/norm"] == pytest.approx(1.0)
    assert "update_per_lr/embedding" not in signals
