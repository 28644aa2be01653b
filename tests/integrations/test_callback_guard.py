"""A callback never ends training that would have continued without it."""

import logging

import pytest
import torch
from watched_training import RaiseAt, examples, labels, tiny_bert, trainer

from bertmon.errors import InputError, StorageError
from bertmon.integrations.own_loop import Watch
from bertmon.integrations.transformers_trainer import WatchCallback
from bertmon.monitor.tensorboard import EventFile

pytest.importorskip("accelerate")


def parameters(trained):
    return torch.cat([parameter.detach().flatten() for parameter in trained.model.parameters()])


def make_callback(folder, **options):
    return WatchCallback(folder, labels=labels(examples()), **{"every": 5, "figures": False} | options)


def fail_on_call(number, error, original=None):
    """The function, which raises the error after `number` calls."""
    calls = iter(range(number))

    def fail(*args, **kwargs):
        if next(calls, None) is None:
            raise error
        return original(*args, **kwargs)

    return fail


def errors(caplog):
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("method", ["measure_gradients", "before_update", "after_update", "__init__"])
def test_error_in_monitoring_is_logged_once_and_training_is_unchanged(tmp_path, caplog, monkeypatch, method):
    plain_trainer = trainer(tmp_path / "plain_trainer", None, options={"max_grad_norm": 0.1})
    plain_trainer.train()
    calls = 0 if method == "__init__" else 3
    monkeypatch.setattr(Watch, method, fail_on_call(calls, ZeroDivisionError("no number"), getattr(Watch, method)))
    watched_trainer = trainer(tmp_path, make_callback(tmp_path / "watched"), options={"max_grad_norm": 0.1})
    watched_trainer.train()
    assert [record.message for record in errors(caplog)] == [
        "Monitoring stopped after an error; training continues: no number"
    ]
    assert errors(caplog)[0].exc_info
    assert watched_trainer.state.global_step == 12
    assert torch.equal(parameters(watched_trainer), parameters(plain_trainer))
    assert not {"compute_loss", "training_step"} & vars(watched_trainer).keys()


def test_full_disk_ends_monitoring_but_not_training(tmp_path, caplog, monkeypatch):
    callback = make_callback(tmp_path / "watched")
    monkeypatch.setattr(
        EventFile,
        "_write",
        fail_on_call(4, StorageError("could not write: No space left on device."), EventFile._write),
    )
    watched_trainer = trainer(tmp_path, callback)
    watched_trainer.train()
    assert watched_trainer.state.global_step == 12
    assert len(errors(caplog)) == 1
    assert "No space left on device" in errors(caplog)[0].message
    assert errors(caplog)[0].exc_info in (None, False, (None, None, None))


def test_error_is_raised_on_request(tmp_path, monkeypatch):
    monkeypatch.setattr(Watch, "after_update", fail_on_call(2, ZeroDivisionError, Watch.after_update))
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, make_callback(tmp_path / "watched", on_error="raise")).train()


def test_callback_that_failed_monitors_the_next_training(tmp_path, monkeypatch):
    callback = make_callback(tmp_path / "watched")
    with monkeypatch.context() as patch:
        patch.setattr(Watch, "after_update", fail_on_call(2, ZeroDivisionError, Watch.after_update))
        trainer(tmp_path, callback).train()
    trainer(tmp_path, callback).train()
    assert callback.watch.folder == tmp_path / "watched-2"
    assert len(callback.watch.history.losses) == 12


def test_failure_to_close_an_interrupted_training_does_not_end_the_next_one(tmp_path, caplog, monkeypatch):
    callback = make_callback(tmp_path / "watched")
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, callback, RaiseAt(3, ZeroDivisionError)).train()
    close = fail_on_call(0, StorageError("could not write: No space left on device."))
    monkeypatch.setattr(callback.watch, "close", close)
    watched_trainer = trainer(tmp_path, callback)
    watched_trainer.train()
    assert watched_trainer.state.global_step == len(callback.watch.history.losses) == 12
    assert [record.message for record in errors(caplog)] == [
        "Monitoring stopped after an error; training continues: could not write: No space left on device."
    ]


def test_sharded_model_is_refused(tmp_path, caplog, monkeypatch):
    kind = type("FullyShardedDataParallel", (torch.nn.Module,), {})
    model = torch.nn.Module.__new__(kind)
    torch.nn.Module.__init__(model)
    adamw = torch.optim.AdamW(tiny_bert().parameters())
    with pytest.raises(InputError, match="FSDP, DeepSpeed and tensor parallelism are not supported"):
        Watch(model, adamw, tmp_path, total_steps=3, labels=[0, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_doomed": "panic"}, "on_doomed: expected warn or stop, got panic"),
        ({"on_error": "panic"}, "on_error: expected log or raise, got panic"),
        ({"report_to": "wandb"}, "report_to: expected auto, trainer or none, got wandb"),
        ({"every": 0}, r"monitor\.every: expected .*, got 0"),
        ({"labels": None}, r"labels: expected the class numbers .* got None"),
        ({"labels": ["a", "b"]}, r"labels: expected the class numbers .* got 'a' \(str\): number the classes first"),
        ({"labels": [0, None]}, r"labels: expected the class numbers .* got None"),
        ({"labels": [0.5, 1.0]}, r"labels: expected the class numbers .* got 0\.5"),
        ({"labels": [[0, 1], [1, 0]]}, r"labels: .* got one-hot rows such as \[0, 1\]: pass argmax over each row"),
        ({"labels": torch.eye(3)}, r"labels: .* got one-hot rows"),
        ({"labels": [1, 1]}, "labels: expected the labels of the training texts, of at least two classes"),
    ],
)
def test_invalid_arguments_are_refused_when_the_callback_is_created(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        WatchCallback(tmp_path / "watched", **{"labels": [0, 1]} | options)
