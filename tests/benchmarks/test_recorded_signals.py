"""The rate margin and the token spread: their values, and recording them without changing training."""

import math

import pytest
import torch
from recorded_signals import (
    MULTIPLES,
    RateMargin,
    Signals,
    pack_signals,
    recording,
    token_spreads,
    unpack_signals,
    write_signals,
)

from bertmon.monitor.history import HISTORY_FILE, History
from bertmon.training.run_training import run_training
from bertmon.training.step import resolve_device
from bertmon.training.task import build_task


@pytest.fixture
def run(settings):
    settings.monitor.every = 5
    settings.monitor.figures = False
    return settings


def test_recording_does_not_change_training(tmp_path, run):
    run.model.hidden_dropout_prob = 0.1
    plain = run_training(run, tmp_path / "plain", name="plain")
    with recording() as rows:
        recorded = run_training(run, tmp_path / "recorded", name="recorded")
    assert recorded.evaluations == plain.evaluations
    one, other = (History.load(tmp_path / name / HISTORY_FILE) for name in ("plain", "recorded"))
    assert (one.losses, one.grad_norms, one.snapshots) == (other.losses, other.grad_norms, other.snapshots)
    assert [row.step for row in rows] == [shot.step for shot in one.snapshots] == [0, 5, 10]
    assert [math.isnan(row.rate_margin) for row in rows] == [False, True, False]
    layers = run.model.num_hidden_layers
    assert all(len(row.token_spread) == layers + 1 and row.passes != 1 for row in rows)


@pytest.fixture
def model_and_batch(run):
    task = build_task(run, resolve_device(run.device))
    batch = next(task.train.epoch_batches(0, 0))
    return task.classifier.eval(), batch


def descend(model, batch, rate):
    """One plain gradient step on the batch."""
    model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= rate * parameter.grad
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_margin_of_a_downhill_step_is_inversely_proportional_to_its_size(model_and_batch):
    model, batch = model_and_batch
    start = [parameter.detach().clone() for parameter in model.parameters()]
    margins = {}
    for rate in (0.5, 1.0):
        with torch.no_grad():
            torch._foreach_copy_(list(model.parameters()), start)
        model.zero_grad()
        margin = RateMargin(model, batch)
        after = descend(model, batch, rate)
        margins[rate] = margin.measure()
        assert all(map(torch.equal, model.parameters(), after))
        assert margin.measure(start=margins[rate]) == margins[rate]
    assert margins[0.5] == 2 * margins[1.0] < math.inf
    assert margins[1.0] > 1


def test_margin_of_an_uphill_step_is_the_smallest_multiple(model_and_batch):
    model, batch = model_and_batch
    margin = RateMargin(model, batch)
    descend(model, batch, -1e-2)
    assert margin.measure() == MULTIPLES[0]


def test_token_spread_of_identical_tokens_is_0(model_and_batch):
    model, batch = model_and_batch
    initial = token_spreads(model, batch)
    assert all(0.1 < value < 1.1 for value in initial)
    with torch.no_grad():
        for embedding in (module for module in model.modules() if isinstance(module, torch.nn.Embedding)):
            embedding.weight[:] = torch.arange(embedding.embedding_dim)
    assert token_spreads(model, batch) == pytest.approx([0.0] * len(initial), abs=1e-4)


def test_token_spread_ignores_padding(model_and_batch):
    model, batch = model_and_batch
    row, count = next((row, count) for row, count in enumerate(batch.token_counts) if count < batch.input_ids.shape[1])
    padded = batch._replace(input_ids=batch.input_ids[[row]], attention_mask=batch.attention_mask[[row]])
    cut = padded._replace(input_ids=padded.input_ids[:, :count], attention_mask=padded.attention_mask[:, :count])
    assert token_spreads(model, padded) == pytest.approx(token_spreads(model, cut), abs=1e-4)


def test_packing_keeps_signals(tmp_path):
    rows = [Signals(0, math.inf, (0.5, 0.25), 2), Signals(5, 0.5, (0.5, 0.125), 7)]
    run_dir = tmp_path / "1002" / "seed=0"
    run_dir.mkdir(parents=True)
    write_signals(rows, run_dir)
    pack_signals(tmp_path, tmp_path / "store")
    assert unpack_signals(tmp_path / "store") == {1002: rows}
