"""WatchCallback with losses, schedules and models other than the Trainer's defaults."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import BertForTokenClassification, Trainer
from watched_training import examples, labels, tiny_bert, trainer

from bertmon.errors import InputError
from bertmon.integrations.transformers_trainer import WatchCallback
from bertmon.monitor.diagnosis import Verdict

pytest.importorskip("accelerate")

WEIGHTS = torch.tensor([1.0, 2.0, 3.0])


class LossOfModelCalledWithLabels(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits, inputs["labels"], weight=WEIGHTS)
        return (loss, outputs) if return_outputs else loss


class LossOfModelCalledWithoutLabels(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        targets = inputs.pop("labels")
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits, targets, weight=WEIGHTS)
        return (loss, outputs) if return_outputs else loss


class LossWithoutOutputs(Trainer):
    def compute_loss(self, model, inputs, num_items_in_batch=None):
        return model(**inputs).loss


def weighted_loss(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs.logits, labels, weight=WEIGHTS)


def watched(folder, *, callback=None, **keywords):
    options = {"every": 5, "figures": False, "on_error": "raise"} | (callback or {})
    watcher = WatchCallback(folder / "watched", labels=labels(examples()), **options)
    watched_trainer = trainer(folder, watcher, **keywords)
    watched_trainer.train()
    return watched_trainer, watcher


def parameters(trained):
    return torch.cat([parameter.detach().flatten() for parameter in trained.model.parameters()])


@pytest.mark.parametrize(
    "keywords",
    [
        {"kind": LossOfModelCalledWithLabels},
        {"kind": LossOfModelCalledWithoutLabels},
        {"compute_loss_func": weighted_loss},
        {"options": {"label_smoothing_factor": 0.1}},
    ],
    ids=["labels in the model", "labels taken out", "compute_loss_func", "label smoothing"],
)
def test_callback_with_a_custom_loss_records_the_cross_entropy_and_changes_nothing(tmp_path, keywords):
    watched_trainer, callback = watched(tmp_path / "a", **keywords)
    plain_trainer = trainer(tmp_path / "b", None, **keywords)
    plain_trainer.train()
    history = callback.watch.history
    assert torch.equal(parameters(watched_trainer), parameters(plain_trainer))
    assert len(history.losses) == 12
    assert history.losses[0] == pytest.approx(np.log(3), abs=0.05)
    assert history.plan.loss_known
    assert [shot.step for shot in history.snapshots] == [0, 5, 10]


def test_callback_without_model_outputs_records_no_losses_or_logits(tmp_path, caplog):
    watched_trainer, callback = watched(tmp_path / "a", kind=LossWithoutOutputs)
    history = callback.watch.history
    assert watched_trainer.state.global_step == len(history.grad_norms) == 12
    assert not history.plan.loss_known
    assert np.isnan(history.losses).all()
    assert np.isfinite(history.snapshots[-1]["update_ratio"]).all()
    assert callback.watch.diagnosis.verdict is Verdict.undecided
    assert [message for message in caplog.messages if "the loss is not known" in message]
    assert [message for message in caplog.messages if "no verdict on collapse for this model" in message]


def test_callback_with_reduce_on_plateau_warns_of_unknown_rates(tmp_path, caplog):
    _, callback = watched(
        tmp_path,
        options={"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 4},
        eval_dataset=examples()[:16],
    )
    assert len(callback.watch.history.losses) == 12
    warnings = [message for message in caplog.messages if "ReduceLROnPlateau" in message]
    assert warnings == [
        "scheduler: the learning rates of ReduceLROnPlateau cannot be known in advance: "
        "verdicts assume that the current rate does not change."
    ]


@pytest.mark.parametrize(
    "name", ["cosine_with_restarts", "inverse_sqrt", "constant_with_warmup", "warmup_stable_decay", "polynomial"]
)
def test_callback_plans_the_rates_of_other_schedules(tmp_path, name, caplog):
    more = {"lr_scheduler_kwargs": {"num_decay_steps": 6}} if name == "warmup_stable_decay" else {}
    options = {"lr_scheduler_type": name, "warmup_steps": 3, "logging_steps": 1} | more
    watched_trainer, callback = watched(tmp_path, options=options)
    rates = [entry["learning_rate"] for entry in watched_trainer.state.log_history if "learning_rate" in entry]
    assert callback.watch.history.plan.lr.tolist() == pytest.approx(rates)
    assert not [message for message in caplog.messages if "learning rate is" in message]


def test_callback_gives_no_verdict_on_collapse_for_a_token_classifier(tmp_path, caplog):
    torch.manual_seed(0)
    model = BertForTokenClassification(tiny_bert().config)
    rows = [row | {"labels": [number % 3 for number in range(12)]} for row in examples()]
    callback = WatchCallback(
        tmp_path / "watched", labels=[row["labels"] for row in rows], every=5, figures=False, on_error="raise"
    )
    trainer(tmp_path, callback, model=model, rows=rows).train()
    history = callback.watch.history
    assert history.losses[0] == pytest.approx(np.log(3), abs=0.05)
    assert np.isnan([shot.logit_std for shot in history.snapshots]).all()
    assert len([message for message in caplog.messages if "no verdict on collapse for this model" in message]) == 1


def test_callback_refuses_a_model_that_returns_tuples(tmp_path):
    with pytest.raises(InputError, match=r"model: expected one whose output has \.logits .* got a tuple"):
        watched(tmp_path, model=tiny_bert(return_dict=False))


def test_callback_warns_of_bfloat16_weights_that_do_not_change(tmp_path, caplog):
    watched(
        tmp_path / "bfloat16",
        model=tiny_bert().to(torch.bfloat16),
        options={"learning_rate": 2e-5, "lr_scheduler_type": "constant"},
    )
    messages = [message for message in caplog.messages if "did not change in the last two watched steps" in message]
    assert len(messages) == 1
    assert messages[0].endswith("they are stored in 16 bits, which round small updates away; keep them in float32.")
    caplog.clear()
    watched(tmp_path / "float32", options={"learning_rate": 2e-5, "lr_scheduler_type": "constant"})
    assert not [message for message in caplog.messages if "did not change" in message]
