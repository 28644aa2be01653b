"""WatchCallback in transformers' Trainer: gradients before clipping, losses, and stopping on a verdict."""

import pytest
import torch
from conftest import flat_parameters
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from bertmon.config import VerdictThresholds
from bertmon.errors import InputError
from bertmon.integrations.transformers_trainer import WatchCallback
from bertmon.monitor.history import HISTORY_FILE, History

pytest.importorskip("accelerate")


def texts(count=48):
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        ids = torch.randint(1, 20, (12,), generator=generator)
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(number % 3)}


def small_bert(dropout=0.0):
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=20,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            num_labels=3,
            hidden_dropout_prob=dropout,
        )
    )


def train(folder, *, dropout=0.0, checkpointing=False, watched=True, options=None, **arguments):
    data = list(texts())
    callback = WatchCallback(
        folder / "watched",
        **{"labels": [text["labels"] for text in data], "every": 2, "figures": False} | (options or {}),
    )
    arguments = {"per_device_train_batch_size": 8, "max_steps": 6, "learning_rate": 1e-3} | arguments
    trainer = Trainer(
        model=small_bert(dropout),
        args=TrainingArguments(
            output_dir=str(folder), report_to="none", save_strategy="no", logging_steps=1, use_cpu=True, **arguments
        ),
        train_dataset=data,
        eval_dataset=data,
        callbacks=[callback] if watched else [],
    )
    if checkpointing:
        new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"  # transformers renamed it in v5
        getattr(trainer.model, new if hasattr(trainer.model, new) else old)()
    trainer.train()
    return trainer, callback


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize(
    ("arguments", "backward_passes"),
    [
        ({}, 6 * [1]),
        ({"gradient_accumulation_steps": 3, "per_device_train_batch_size": 5}, [3, 3, 3, 1, 3, 3]),
        ({"eval_strategy": "steps", "eval_steps": 1}, 6 * [1]),
        ({"bf16": True}, 6 * [1]),
    ],
)
def test_watch_callback_measures_what_the_trainer_logs(tmp_path, arguments, backward_passes):
    trainer, callback = train(tmp_path, max_grad_norm=0.1, **arguments)
    history = callback.watch.history
    sums = [float(loss) for loss in logged(trainer, "loss")]  # the Trainer adds up the means of a step's passes
    means = [total / passes for total, passes in zip(sums, backward_passes, strict=True)]
    assert history.losses == pytest.approx(means, rel=1e-3 if "bf16" in arguments else 1e-5)
    assert history.grad_norms == pytest.approx([float(norm) for norm in logged(trainer, "grad_norm")], rel=1e-5)
    assert min(history.grad_norms) > 0.1  # measured before clipping
    assert [shot.lr for shot in history.snapshots] == pytest.approx(logged(trainer, "learning_rate")[::2])
    assert History.load(tmp_path / "watched" / HISTORY_FILE).snapshots == history.snapshots


def test_gradients_are_measured_before_clipping(tmp_path):
    _, clipped = train(tmp_path / "clipped", max_grad_norm=1e-3)
    _, unclipped = train(tmp_path / "unclipped", max_grad_norm=0)
    first, other = (callback.watch.history.snapshots[0] for callback in (clipped, unclipped))
    for statistic in ("grad_mean", "grad_max", "grad_std", "grad_zero", "weight_rms"):
        assert first[statistic].tolist() == other[statistic].tolist()


@pytest.mark.parametrize("arguments", [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}, {"checkpointing": True}])
def test_training_with_the_callback_is_unchanged_bit_for_bit(tmp_path, arguments):
    watched, callback = train(tmp_path / "watched", dropout=0.1, **arguments)
    alone, _ = train(tmp_path / "alone", dropout=0.1, watched=False, **arguments)
    assert torch.equal(flat_parameters(watched.model), flat_parameters(alone.model))
    assert not watched.model._forward_hooks
    assert len(callback.watch.history.losses) == 6


def test_logit_std_with_bf16_equals_that_with_float32(tmp_path):
    logit_stds = [
        train(tmp_path / str(bf16), bf16=bf16)[1].watch.history.snapshots[0].logit_std for bf16 in (False, True)
    ]
    assert logit_stds[0] == logit_stds[1] > 0


def test_doomed_run_ends_with_stop_and_continues_with_warn(tmp_path):
    thresholds = VerdictThresholds(min_logit_std=1e3, min_update_per_lr=1e3)  # every number is too small
    trainer, callback = train(tmp_path, options={"thresholds": thresholds, "on_doomed": "stop"})
    assert callback.watch.doomed
    assert trainer.state.global_step < 6
    assert callback.watch.diagnosis.since_step == trainer.state.global_step - 1
    trainer, callback = train(tmp_path / "warned", options={"thresholds": thresholds})
    assert callback.watch.doomed
    assert trainer.state.global_step == 6


def test_compiled_model_has_the_losses_of_the_trainer(tmp_path):
    trainer, callback = train(tmp_path, torch_compile=True, torch_compile_backend="eager")
    assert callback.watch.history.losses == pytest.approx(logged(trainer, "loss"), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_doomed": "panic"}, "on_doomed: expected warn or stop, got panic"),
        ({"on_error": "ignore"}, "on_error: expected log or raise, got ignore"),
        ({"report_to": "me"}, "report_to: expected auto, trainer or none, got me"),
        ({"every": 0}, r"monitor\.every: expected .*, got 0"),
        ({"labels": [1, 1]}, r"labels: expected .*, got 2 labels of 1 classes"),
    ],
)
def test_invalid_arguments_of_the_callback_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        WatchCallback(tmp_path / "b", **{"labels": [0, 1]} | options)
    assert not (tmp_path / "b").exists()
