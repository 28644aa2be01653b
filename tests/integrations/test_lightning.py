"""bertmon.integrations.lightning with the real Lightning."""

import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from watched_training import examples, labels, scalar_steps, tiny_bert

from bertmon.monitor.history import HISTORY_FILE, History

pytest.importorskip("lightning")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Lightning's own imports
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import CSVLogger

    from bertmon.integrations.lightning import WatchCallback
    from bertmon.integrations.own_loop import Watch

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's
ROWS = examples()


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = tiny_bert()

    def training_step(self, batch, index):
        return self.model(**batch).loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=6)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fit(folder, callback=None, *, ckpt_path=None, callbacks=(), **options):
    module = Classifier()
    loader = DataLoader(ROWS, batch_size=8)
    trainer = pl.Trainer(
        **{
            "max_epochs": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
        }
        | options,
        callbacks=[*([callback] if callback else []), *callbacks],
    )
    torch.manual_seed(1)
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return trainer, torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def make_callback(folder, **options):
    return WatchCallback(folder, labels=labels(ROWS), **{"every": 2, "figures": False, "on_error": "raise"} | options)


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}, {"gradient_clip_val": 0.05}])
def test_lightning_training_is_unchanged_bit_for_bit_by_watching(tmp_path, options):
    callback = make_callback(tmp_path / "watched")
    trainer, watched = fit(tmp_path, callback, **options)
    _, alone = fit(tmp_path, **options)
    assert torch.equal(watched, alone)
    history = callback.watch.history
    assert len(history.losses) == len(history.plan) == trainer.global_step
    assert history.losses[0] == pytest.approx(np.log(3), abs=0.05)
    assert history.plan.lr[0] == pytest.approx(1e-4)
    assert history.plan.lr.max() == pytest.approx(1e-3 if not options.get("accumulate_grad_batches") else 5.5e-4)
    assert min(history.grad_norms) > 0.05  # before clipping
    assert history.snapshots[0].layers.labels[0] == "embeddings.word_embeddings"
    assert history.snapshots[0].logit_std > 0
    assert History.load(tmp_path / "watched" / HISTORY_FILE).snapshots == history.snapshots


def test_lightning_measures_the_gradients_of_a_plain_loop(tmp_path):
    callback = make_callback(tmp_path / "watched")
    fit(tmp_path, callback)
    module = Classifier()
    settings = module.configure_optimizers()
    optimizer, scheduler = settings["optimizer"], settings["lr_scheduler"]["scheduler"]
    module.train()
    torch.manual_seed(1)
    with Watch(
        module.model,
        optimizer,
        tmp_path / "plain",
        total_steps=12,
        labels=labels(ROWS),
        scheduler=scheduler,
        every=2,
        figures=False,
    ) as watch:
        for batch in DataLoader(ROWS, batch_size=8):
            loss = module.model(**batch).loss
            loss.backward()
            with watch.step(loss, batch):
                optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    assert np.array_equal(callback.watch.history.plan.lr, watch.history.plan.lr)
    first, expected = callback.watch.history.snapshots[0], watch.history.snapshots[0]
    assert first.layers == expected.layers
    assert first["weight_rms"] == pytest.approx(expected["weight_rms"])


def test_lightning_resumes_in_the_same_folder(tmp_path):
    saving = {"enable_checkpointing": True, "max_epochs": 2}

    def checkpoints():
        return [pl.callbacks.ModelCheckpoint(tmp_path / "saved", every_n_train_steps=5, save_top_k=-1)]

    fit(tmp_path, make_callback(tmp_path / "watched"), callbacks=checkpoints(), **saving)
    callback = make_callback(tmp_path / "watched")
    saved = next((tmp_path / "saved").glob("*step=15.ckpt"))
    fit(tmp_path, callback, ckpt_path=saved, callbacks=checkpoints(), **saving)
    assert callback.watch.folder == tmp_path / "watched"
    assert [shot.step for shot in callback.watch.history.snapshots] == list(range(0, 24, 2))
    assert len(callback.watch.history.losses) == 24
    assert scalar_steps(tmp_path / "watched", "depth_ratio") == list(range(0, 24, 2))


def test_lightning_loggers_get_the_signals(tmp_path):
    logger = CSVLogger(tmp_path, name="log")
    fit(tmp_path, make_callback(tmp_path / "watched"), logger=logger, log_every_n_steps=1)
    logger.save()
    table = (tmp_path / "log" / "version_0" / "metrics.csv").read_text().splitlines()
    columns = table[0].split(",")
    assert {"bertmon/depth_ratio", "bertmon/logit_std", "bertmon/update_per_lr/linear", "bertmon/doomed"} <= {*columns}
    assert [line.split(",")[columns.index("step")] for line in table[1:]] == ["1", "3", "5", "7", "9", "11"]


class Interrupt(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 6:
            raise ZeroDivisionError


def test_lightning_training_that_raises_writes_its_history(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, make_callback(tmp_path / "watched"), callbacks=[Interrupt()])
    assert len(History.load(tmp_path / "watched" / HISTORY_FILE).losses) == 7


def test_lightning_error_in_watching_does_not_end_training(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise ZeroDivisionError("no number")

    monkeypatch.setattr(Watch, "after_update", fail)
    trainer, _ = fit(tmp_path, make_callback(tmp_path / "watched", on_error="log"))
    assert trainer.global_step == 12
    assert [message for message in caplog.messages if "no number" in message] == [
        "Monitoring stopped after an error; training continues: no number"
    ]


def test_lightning_doomed_training_is_stopped_on_request(tmp_path, monkeypatch):
    monkeypatch.setattr(Watch, "doomed", True)
    trainer, _ = fit(tmp_path, make_callback(tmp_path / "watched", on_doomed="stop"), min_epochs=0)
    assert trainer.global_step < 12


class Diverging(Classifier):
    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        return loss * float("nan") if index == 6 else loss


def test_lightning_loggers_get_a_divergence_between_two_snapshots(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.Classifier", Diverging)
    logger = CSVLogger(tmp_path, name="log")
    fit(tmp_path, make_callback(tmp_path / "watched", every=10), logger=logger, log_every_n_steps=1)
    logger.save()
    table = (tmp_path / "log" / "version_0" / "metrics.csv").read_text().splitlines()
    columns = table[0].split(",")
    rows = [line.split(",") for line in table[1:]]
    doomed = {row[columns.index("step")]: row[columns.index("bertmon/doomed")] for row in rows}
    assert doomed == {"1": "0.0", "11": "1.0"}  # losses are read every tenth step


@pytest.mark.parametrize(
    ("options", "per_step"),
    [({"max_epochs": 2}, 12), ({"max_epochs": -1, "max_steps": 30}, 12), ({"accumulate_grad_batches": 5}, 3)],
)
def test_lightning_epoch_scheduler_is_planned_by_epoch(tmp_path, options, per_step, monkeypatch):
    class ByEpoch(Classifier):
        def configure_optimizers(self):
            settings = super().configure_optimizers()
            settings["lr_scheduler"]["interval"] = "epoch"
            return settings

    monkeypatch.setattr(f"{__name__}.Classifier", ByEpoch)
    callback = make_callback(tmp_path / "watched")
    fit(tmp_path, callback, **options)
    lr = callback.watch.history.plan.lr
    steps = np.flatnonzero(np.diff(lr)) + 1
    assert steps.tolist() == list(range(per_step, len(lr), per_step))


def test_lightning_loss_of_a_shorter_last_window_is_its_mean(tmp_path):
    module = Classifier()
    callback = make_callback(tmp_path / "watched")
    fit(tmp_path, callback, accumulate_grad_batches=5)  # twelve batches: windows of 5, 5 and 2
    torch.manual_seed(1)
    batch_losses = [module.training_step(batch, 0).item() for batch in DataLoader(ROWS, batch_size=8)]
    assert len(callback.watch.history.losses) == 3
    assert callback.watch.history.losses == pytest.approx(
        [np.mean(batch_losses[at : at + 5]) for at in (0, 5, 10)], abs=0.05
    )


def test_lightning_skipped_batch_is_not_counted(tmp_path, monkeypatch):
    class Skipping(Classifier):
        def training_step(self, batch, index):
            return None if index == 3 else super().training_step(batch, index)

    monkeypatch.setattr(f"{__name__}.Classifier", Skipping)
    callback = make_callback(tmp_path / "watched")
    fit(tmp_path, callback)
    assert len(callback.watch.history.losses) == 11


def test_lightning_training_of_unknown_length_is_refused_with_one_message(tmp_path, caplog):
    fit(tmp_path, make_callback(tmp_path / "watched", on_error="log"), max_epochs=-1, max_time="00:00:00:01")
    assert [message for message in caplog.messages if "stopped after an error" in message] == [
        "Monitoring stopped after an error; training continues: Trainer: expected max_steps, or max_epochs with "
        "a known number of batches, got neither."
    ]


def test_lightning_updates_skipped_by_the_scaler_are_not_counted(tmp_path, monkeypatch):
    from lightning.pytorch.plugins.precision import MixedPrecision

    class Overflowing(Classifier):
        def training_step(self, batch, index):
            overflow = torch.sqrt((self.model.classifier.bias * 0).sum())  # 0, with a gradient that is not finite
            return super().training_step(batch, index) + (overflow if index < 3 else 0)

    monkeypatch.setattr(f"{__name__}.Classifier", Overflowing)
    callback = make_callback(tmp_path / "watched", on_doomed="stop")
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    trainer, _ = fit(tmp_path, callback, plugins=[plugin])
    assert trainer.global_step == 12
    assert len(callback.watch.history.losses) == 9
    assert np.isfinite(callback.watch.history.grad_norms).all()
