"""Errors in measuring end monitoring but not the loop; mistakes in calling Watch are raised."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import BatchEncoding
from watched_training import examples, labels, tiny_bert

from bertmon.errors import InputError, StorageError
from bertmon.integrations.own_loop import Watch
from bertmon.monitor.history import HISTORY_FILE, History
from bertmon.monitor.monitor import Monitor

ROWS = examples(24)


def batch_of(size=8, first=0):
    rows = ROWS[first : first + size]
    ids = torch.stack([row["input_ids"] for row in rows]) if rows else torch.zeros(0, 12, dtype=torch.long)
    return {"input_ids": ids, "labels": torch.tensor(labels(rows), dtype=torch.long)}


@pytest.fixture
def loop(tmp_path):
    model = tiny_bert()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def open_watch(**options):
        options = {"labels": labels(ROWS), "every": 1, "figures": False, "total_steps": 6} | options
        return Watch(model, adamw, tmp_path / "watched", **options)

    return model, adamw, open_watch


def take_steps(loop, watch, count, batch=None):
    model, adamw, _ = loop
    batch = batch_of() if batch is None else batch
    for _ in range(count):
        loss = model(**batch).loss
        loss.backward()
        with watch.step(loss, batch):
            adamw.step()
        adamw.zero_grad()


def fail_at(step, error, method):
    def failing(self, at, *arguments):
        if at == step:
            raise error
        return method(self, at, *arguments)

    return failing


@pytest.mark.parametrize("error", [ZeroDivisionError("no number"), StorageError("could not write: no space.")])
def test_error_in_measuring_is_logged_once_and_the_loop_continues(loop, tmp_path, monkeypatch, caplog, error):
    monkeypatch.setattr(Monitor, "after_update", fail_at(2, error, Monitor.after_update))
    with loop[2]() as watch:
        take_steps(loop, watch, 5)
    assert [message for message in caplog.messages if "stopped" in message] == [
        f"Monitoring stopped after an error; training continues: {error}"
    ]
    assert len(History.load(tmp_path / "watched" / HISTORY_FILE).snapshots) == 2


def test_error_in_measuring_is_raised_on_request(loop, monkeypatch):
    monkeypatch.setattr(Monitor, "after_update", fail_at(2, ZeroDivisionError(), Monitor.after_update))
    with pytest.raises(ZeroDivisionError), loop[2](on_error="raise") as watch:
        take_steps(loop, watch, 5)


def test_failure_to_write_the_history_is_logged(loop, monkeypatch, caplog):
    def fail(path, content):
        raise OSError(28, "No space left on device")

    with loop[2]() as watch:
        take_steps(loop, watch, 2)
        monkeypatch.setattr("bertmon.integrations.own_loop.atomic_write", fail)
    assert caplog.messages[-1].startswith("Monitoring stopped after an error; training continues: could not write ")
    assert caplog.messages[-1].endswith("watched: No space left on device.")


def test_mistake_in_the_loop_is_raised_and_can_be_corrected(loop):
    with loop[2]() as watch:
        with pytest.raises(InputError, match="expected gradients, got none"), watch.step(torch.tensor(1.0), batch_of()):
            pass
        take_steps(loop, watch, 3)
    assert len(watch.history.losses) == 3


@pytest.mark.parametrize("kind", [torch.Tensor.item, lambda loss: loss[None]])
def test_loss_can_be_a_number_or_a_one_element_tensor(loop, kind):
    model, adamw, open_watch = loop
    with open_watch(on_error="raise") as watch:
        loss = model(**batch_of()).loss
        loss.backward()
        with watch.step(kind(loss), batch_of()):
            adamw.step()
    assert watch.history.losses == [loss.item()]


@pytest.mark.parametrize("texts", [0, 1])
def test_batch_of_fewer_than_two_texts_gives_one_warning(loop, caplog, texts):
    model, adamw, open_watch = loop
    logits = torch.zeros(texts, 3)
    with open_watch(on_error="raise", total_steps=30, logits=lambda batch: logits) as watch:
        for _ in range(21):
            model(**batch_of()).loss.backward()
            with watch.step(1.0, batch_of(texts)):
                adamw.step()
            adamw.zero_grad()
    assert np.isnan([shot.logit_std for shot in watch.history.snapshots]).all()
    assert [message for message in caplog.messages if "two texts" in message] == [
        "A batch of fewer than two texts: how logits differ between texts is unknown, no verdict on collapse."
    ]


def test_model_that_cannot_run_in_float32_is_watched_without_logits(tmp_path, caplog):
    model = tiny_bert()
    model.bert.to(torch.bfloat16)
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with Watch(model, adamw, tmp_path, total_steps=2, labels=labels(ROWS), every=1, figures=False) as watch:
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(**batch_of()).loss
            loss.backward()
            with watch.step(loss, batch_of()):
                adamw.step()
            adamw.zero_grad()
    assert len(watch.history.snapshots) == 2
    (message,) = [message for message in caplog.messages if "float32" in message and "logits" in message]
    assert message.startswith("the logits of a batch could not be computed in float32 (")
    assert message.endswith("): no verdict on collapse for this model, gradients and updates only.")


def test_logits_function_gets_the_original_batch(loop):
    model, _, open_watch = loop
    batch = BatchEncoding(batch_of(12))
    seen = []

    def logits(inputs):
        seen.append(inputs)
        return model(inputs.input_ids).logits

    with open_watch(on_error="raise", logits=logits) as watch:
        take_steps(loop, watch, 1, batch)
    assert seen[0] is batch
    assert watch.history.snapshots[0].logit_std > 0


class Merging(torch.nn.Linear):
    """Merges its adapter into its weight outside of training, as loralib's layers do."""

    def __init__(self):
        super().__init__(3, 2)
        self.adapter = torch.nn.Parameter(torch.ones(2, 3))
        self.merged = False

    def train(self, mode=True):
        if not mode and not self.merged:
            self.weight.data += self.adapter.data
            self.merged = True
        return super().train(mode)

    def forward(self, x):
        return F.linear(x, self.weight if self.merged else self.weight + self.adapter)


def test_module_that_merges_in_eval_mode_stays_in_train_mode(tmp_path):
    torch.manual_seed(0)
    model, x = Merging(), torch.randn(6, 3)
    adamw = torch.optim.AdamW(model.parameters(), lr=0.1)
    with Watch(model, adamw, tmp_path, total_steps=3, labels=[0, 1], every=1, figures=False, logits=model) as watch:
        for _ in range(3):
            loss = F.cross_entropy(model(x), torch.tensor([0, 1] * 3))
            loss.backward()
            with watch.step(loss, x):
                adamw.step()
            adamw.zero_grad()
    assert watch.history.snapshots[0].logit_std > 0
    assert model.training
    assert not model.merged


def test_multi_label_or_multi_device_model_is_refused(loop, tmp_path):
    model, _, open_watch = loop
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(InputError, match="model: expected a classifier with one label for each text or token, got pro"):
        open_watch()
    model.config.problem_type = None
    model.classifier.to("meta")
    with pytest.raises(InputError, match=r"model: expected one with whole weights .* got layers on cpu, meta: "):
        open_watch()
    assert list(tmp_path.iterdir()) == []
