"""The same small training in several kinds of loops, on one process or on two that share the batches.

torchrun --nproc-per-node=2 distributed_trainings.py FOLDER: one after another, each in FOLDER/KIND/watched.
"""

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader, DistributedSampler
from watched_training import arguments, examples, labels, tiny_bert

from bertmon import distributed
from bertmon.config import VerdictThresholds
from bertmon.integrations.own_loop import Watch

ROWS = examples()
OPTIONS = {"labels": labels(ROWS), "every": 2, "figures": False}
EXACT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def with_trainer(folder, world, **callback_options):
    from transformers import Trainer

    from bertmon.integrations.transformers_trainer import WatchCallback

    callback = WatchCallback(folder / "watched", on_error="raise", **OPTIONS | callback_options)
    options = {
        "per_device_train_batch_size": 8 // world,
        "train_sampling_strategy": "sequential",
        "average_tokens_across_devices": False,  # with it, transformers 5 doubles a classifier's gradients
    }
    trainer = Trainer(
        model=tiny_bert(**EXACT), args=arguments(folder, **options), train_dataset=ROWS, callbacks=[callback]
    )
    trainer.train()
    assert hasattr(callback, "watch") == (trainer.args.process_index == 0)
    return trainer.state.global_step


def with_doomed_trainer(folder, world):
    thresholds = VerdictThresholds(min_logit_std=1e3, min_update_per_lr=1e3)
    steps = with_trainer(folder, world, thresholds=thresholds, on_doomed="stop")
    assert steps < 12, steps


def with_plain_loop(folder, world):
    model = tiny_bert(**EXACT)
    replica = distributed.wrap_ddp(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sampler = DistributedSampler(ROWS, world, distributed.rank(), shuffle=False)
    with Watch(replica, optimizer, folder / "watched", total_steps=12, **OPTIONS) as watch:
        for batch in DataLoader(ROWS, batch_size=8 // world, sampler=sampler):
            loss = replica(**batch).loss
            loss.backward()
            with watch.step(loss, batch):
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            optimizer.zero_grad()
    verdicts = [None] * world
    if world > 1:
        torch.distributed.all_gather_object(verdicts, str(watch.diagnosis))
    assert len(set(verdicts)) == 1, verdicts


def with_accelerate(folder, world):
    from accelerate import Accelerator
    from transformers import get_scheduler

    accelerator = Accelerator(cpu=True)
    model = tiny_bert(**EXACT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=4 * world, num_training_steps=12 * world)
    loader = DataLoader(ROWS, batch_size=8 // world)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    with Watch(model, optimizer, folder / "watched", total_steps=12, scheduler=scheduler, **OPTIONS) as watch:
        for batch in loader:
            loss = model(**batch).loss
            accelerator.backward(loss)
            with watch.step(loss, batch):
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    assert watch.history.plan.lr.argmax() == 4


def with_lightning(folder, world):
    import lightning.pytorch as pl

    from bertmon.integrations.lightning import WatchCallback

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = tiny_bert(**EXACT)

        def training_step(self, batch, index):
            return self.model(**batch).loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    callback = WatchCallback(folder / "watched", on_error="raise", **OPTIONS)
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        max_epochs=1,
        callbacks=[callback],
        default_root_dir=folder,
        use_distributed_sampler=False,  # it shuffles
        **dict.fromkeys(off, False),
    )
    sampler = DistributedSampler(ROWS, world, distributed.rank(), shuffle=False)
    trainer.fit(Module(), DataLoader(ROWS, batch_size=8 // world, sampler=sampler))
    assert hasattr(callback, "watch") == (trainer.global_rank == 0)


KINDS = {
    "plain": with_plain_loop,
    "accelerate": with_accelerate,
    "trainer": with_trainer,
    "doomed_trainer": with_doomed_trainer,
    "lightning": with_lightning,
}


if __name__ == "__main__":
    distributed.init()
    for kind, train in KINDS.items():
        (Path(sys.argv[1]) / kind).mkdir(exist_ok=True)
        train(Path(sys.argv[1]) / kind, distributed.world_size())
