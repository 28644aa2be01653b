"""Watch in common loops: with accelerate, scaled float16, lists as batches, layers unfrozen during training."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import get_scheduler
from watched_training import examples, labels, scalar_steps, tiny_bert

from bertmon.errors import InputError
from bertmon.integrations.own_loop import Watch
from bertmon.monitor.diagnosis import Verdict
from bertmon.monitor.history import HISTORY_FILE, History

ROWS = examples()


def batches(count):
    return itertools.islice(itertools.cycle(DataLoader(ROWS, batch_size=8)), count)


def open_watch(model, optimizer, folder, steps=12, **options):
    options = {"labels": labels(ROWS), "every": 2, "figures": False} | options
    return Watch(model, optimizer, folder, total_steps=steps, **options)


def take_step(watch, model, optimizer, batch):
    loss = model(**batch).loss
    loss.backward()
    with watch.step(loss, batch):
        optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("prepared", ["all", "scheduler", "none"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_watch_accepts_objects_prepared_by_accelerate(tmp_path, prepared, accumulate, caplog):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model, steps = tiny_bert(), 12 // accumulate
    plain_optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    plain_scheduler = get_scheduler("linear", plain_optimizer, num_warmup_steps=2, num_training_steps=steps)
    model, optimizer, loader, scheduler = accelerator.prepare(
        model, plain_optimizer, DataLoader(ROWS, batch_size=8), plain_scheduler
    )
    with open_watch(
        model,
        optimizer if prepared == "all" else plain_optimizer,
        tmp_path,
        steps,
        scheduler=plain_scheduler if prepared == "none" else scheduler,
    ) as watch:
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                with watch.step(loss, batch):  # in every pass, like the optimizer's step
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    assert len(watch.history.losses) == steps
    assert watch.history.plan.lr.argmax() == 2
    assert not [message for message in caplog.messages if "learning rate is" in message or "exceeds" in message]


def test_watch_of_batches_that_are_lists_needs_a_logits_function(tmp_path, caplog):
    model = tiny_bert()
    own_logits = {"logits": lambda batch: model(batch[0], attention_mask=batch[1]).logits}
    for name, options in (("without", {}), ("with", own_logits)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        with open_watch(model, optimizer, tmp_path / name, **options) as watch:
            for batch in batches(12):
                ids, mask, targets = [batch[key] for key in ("input_ids", "attention_mask", "labels")]
                loss = model(ids, attention_mask=mask, labels=targets).loss
                loss.backward()
                with watch.step(loss, [ids, mask, targets]):
                    optimizer.step()
                optimizer.zero_grad()
        assert len(watch.history.losses) == 12
        assert math.isnan(watch.history.snapshots[0].logit_std) == (name == "without")
    assert [message for message in caplog.messages if "batch: expected" in message] == [
        "batch: expected a mapping of the model's inputs, or logits=..., got list: "
        "no verdict on collapse for this model, gradients and updates only."
    ]


def test_watch_refuses_a_model_that_returns_tuples(tmp_path):
    model = tiny_bert(return_dict=False)
    optimizer = torch.optim.AdamW(model.parameters())
    with open_watch(model, optimizer, tmp_path) as watch:
        batch = next(batches(1))
        loss = model(**batch)[0]
        loss.backward()
        watch.measure_gradients()
        with pytest.raises(InputError, match=r"model: .* return_dict=True\), or logits=\.\.\., got a tuple"):
            watch.before_update(batch)


@pytest.mark.parametrize("unscaled_first", [False, True])
def test_watch_with_a_scaler_unscales_gradients_and_leaves_out_skipped_updates(tmp_path, unscaled_first):
    def train(folder, scaler):
        model = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        with open_watch(model, optimizer, folder, scaler=scaler) as watch:
            for number, batch in enumerate(batches(12)):
                if number in (0, 5) and not scaler.is_enabled():
                    continue  # the updates that the scaler skips
                loss = model(**batch).loss
                scaler.scale(loss).backward()
                if number in (0, 5):
                    model.classifier.weight.grad[0, 0] = torch.inf  # float16 overflows like this
                if unscaled_first:
                    scaler.unscale_(optimizer)
                with watch.step(loss, batch):
                    scaler.step(optimizer)
                    scaler.update()
                optimizer.zero_grad()
        assert not watch.doomed or watch.diagnosis.verdict is not Verdict.diverged
        return watch.history

    scaled = train(tmp_path / "scaled", torch.amp.GradScaler("cpu", init_scale=2.0**16))
    plain = train(tmp_path / "plain", torch.amp.GradScaler("cpu", enabled=False))
    assert len(scaled.losses) == 10
    assert scaled.losses == pytest.approx(plain.losses, rel=1e-5)
    assert scaled.grad_norms == pytest.approx(plain.grad_norms, rel=1e-4)
    assert [shot.step for shot in scaled.snapshots] == [0, 2, 4, 6, 8]
    for one, other in zip(scaled.snapshots, plain.snapshots, strict=True):
        assert one.values == pytest.approx(other.values, rel=1e-2, abs=1e-9)


def test_layers_unfrozen_during_training_are_watched_from_then_on(tmp_path):
    model = tiny_bert()
    for parameter in model.bert.parameters():
        parameter.requires_grad = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with open_watch(model, optimizer, tmp_path) as watch:
        for number, batch in enumerate(batches(12)):
            if number == 5:
                for parameter in model.bert.encoder.layer[1].parameters():
                    parameter.requires_grad = True
            take_step(watch, model, optimizer, batch)
    history = History.load(tmp_path / HISTORY_FILE)
    query = history.snapshots[0].layers.labels.index("enc.l.1.attention.query")
    classifier = history.snapshots[0].layers.labels.index("classifier")
    assert classifier == len(history.snapshots[0].layers) - 1
    assert query < classifier
    assert [math.isnan(shot["update_ratio"][query]) for shot in history.snapshots] == 3 * [True] + 3 * [False]
    assert not np.isnan([shot["update_ratio"][classifier] for shot in history.snapshots]).any()
    assert scalar_steps(tmp_path, "update_ratio/enc.l.1.attention.query") == [6, 8, 10]


def test_watch_warns_of_updates_outside_its_step(tmp_path, caplog):
    model = tiny_bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with open_watch(model, optimizer, tmp_path) as watch:
        for batch in batches(12):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            with watch.step(loss, batch):
                pass
            optimizer.zero_grad()
    notes = [message for message in caplog.messages if "did not change" in message]
    assert len(notes) == 1
    assert notes[0].startswith("step 2: 18 of 22 weights, embeddings.word_embeddings first, did not change")
    assert notes[0].endswith("does optimizer.step() run inside of watch.step?")


def test_watch_resumes_where_checkpoint_was_called(tmp_path):
    model = tiny_bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with open_watch(model, optimizer, tmp_path) as watch:
        for number, batch in enumerate(batches(9)):
            take_step(watch, model, optimizer, batch)
            if number == 5:
                watch.checkpoint()
    with open_watch(model, optimizer, tmp_path, first_step=6) as watch:
        assert len(watch.history.losses) == 6
        for batch in batches(6):
            take_step(watch, model, optimizer, batch)
    assert scalar_steps(tmp_path, "depth_ratio") == [0, 2, 4, 6, 8, 10]
    with pytest.raises(InputError, match="already contains a run: choose another folder or delete it"):
        open_watch(model, optimizer, tmp_path, first_step=7)


def test_advice_names_the_settings_of_the_loop(tmp_path):
    model = tiny_bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with open_watch(model, optimizer, tmp_path) as watch:
        for number, batch in enumerate(batches(12)):
            loss = model(**batch).loss * (torch.nan if number == 5 else 1)
            loss.backward()
            with watch.step(loss, batch):
                optimizer.step()
            optimizer.zero_grad()
    assert watch.diagnosis.verdict is Verdict.diverged
    assert watch.diagnosis.advice == "a learning rate of 1e-4"


def test_parameter_groups_are_measured_by_their_own_learning_rates(tmp_path):
    model = tiny_bert()
    head = {id(parameter) for parameter in model.classifier.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in head], "lr": 1e-4},
        {"params": [p for p in model.parameters() if id(p) in head], "lr": 1e-3},
    ]
    optimizer = torch.optim.AdamW(groups)
    with open_watch(model, optimizer, tmp_path, every=1) as watch:
        for batch in batches(3):
            take_step(watch, model, optimizer, batch)
    snapshot = watch.history.snapshots[0]
    assert snapshot.lr == 1e-3
    assert dict(zip(snapshot.layers.labels, snapshot.layers.lr_scales, strict=True)) == {
        label: pytest.approx(1.0 if label == "classifier" else 0.1) for label in snapshot.layers.labels
    }
    assert snapshot.signals["update_per_lr/linear"] == pytest.approx(1, abs=0.2)  # Adam's first update equals its rate


def test_layer_unfrozen_in_exchange_for_another_is_watched(tmp_path):
    model = tiny_bert()
    layers = model.bert.encoder.layer
    for parameter in [*model.bert.parameters(), *model.classifier.parameters()]:
        parameter.requires_grad = False
    layers[0].requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with open_watch(model, optimizer, tmp_path, every=1, on_error="raise") as watch:
        for number, batch in enumerate(batches(4)):
            layers[0].requires_grad_(number < 2)
            layers[1].requires_grad_(number >= 2)
            take_step(watch, model, optimizer, batch)
    table = watch.history.snapshots[0].layers
    measured = {
        depth: [
            not np.isnan(shot["update_ratio"][table.labels.index(f"enc.l.{depth}.attention.query")])
            for shot in watch.history.snapshots
        ]
        for depth in (0, 1)
    }
    assert measured == {0: [True, True, False, False], 1: [False, False, True, True]}


def test_group_added_during_training_is_measured_by_its_own_rate(tmp_path):
    model = tiny_bert()
    model.bert.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.classifier.parameters(), lr=1e-3)
    with open_watch(model, optimizer, tmp_path, every=1, on_error="raise") as watch:
        for number, batch in enumerate(batches(6)):
            if number == 3:
                model.bert.requires_grad_(True)
                optimizer.add_param_group({"params": list(model.bert.parameters()), "lr": 1e-5})
            take_step(watch, model, optimizer, batch)
    steps = [shot.signals["update_per_lr/linear"] for shot in watch.history.snapshots]
    assert min(steps) > 0.3  # Adam's first updates; by the largest rate they would be 0.01


@pytest.mark.parametrize("unfrozen_after", [False, True])
def test_training_that_resumes_with_more_layers_has_one_history(tmp_path, unfrozen_after):
    def build(frozen):
        model = tiny_bert()
        model.bert.requires_grad_(not frozen)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3)

    model, optimizer = build(frozen=True)
    with open_watch(model, optimizer, tmp_path, on_error="raise") as watch:
        for batch in batches(6):
            take_step(watch, model, optimizer, batch)
        watch.checkpoint()
    model, optimizer = build(frozen=unfrozen_after)
    with open_watch(model, optimizer, tmp_path, first_step=6, on_error="raise") as watch:
        model.bert.requires_grad_(True)
        for batch in batches(6):
            take_step(watch, model, optimizer, batch)
    history = History.load(tmp_path / HISTORY_FILE)
    assert len(history.losses) == 12
    query = history.snapshots[0].layers.labels.index("enc.l.0.attention.query")
    classifier = history.snapshots[0].layers.labels.index("classifier")
    assert [math.isnan(shot["update_ratio"][query]) for shot in history.snapshots] == 3 * [True] + 3 * [False]
    assert not np.isnan([shot["update_ratio"][classifier] for shot in history.snapshots]).any()


def test_another_model_cannot_resume_a_folder(tmp_path):
    model = tiny_bert(num_hidden_layers=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with open_watch(model, optimizer, tmp_path) as watch:
        for batch in batches(3):
            take_step(watch, model, optimizer, batch)
        watch.checkpoint()
    model = tiny_bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(InputError, match=r"expected the model watched there, got one without enc\.l\.2\.attention"):
        open_watch(model, optimizer, tmp_path, first_step=3)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_plain_loop_after_an_interrupted_accelerate_loop_is_watched(tmp_path):
    state = pytest.importorskip("accelerate.state").GradientState()
    model = tiny_bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    state._set_sync_gradients(False)
    try:
        with open_watch(model, optimizer, tmp_path) as watch:
            for batch in batches(3):
                take_step(watch, model, optimizer, batch)
    finally:
        state._set_sync_gradients(True)
    assert len(watch.history.losses) == 3
