"""What test_distributed_watching.py starts by torchrun: python distributed_trainings.py KIND FOLDER."""

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
    if world > 1:
        distributed.init()
    verdict = watch_plain_loop(folder, world)
    verdicts = [None] * world
    if world > 1:
        torch.distributed.all_gather_object(verdicts, verdict)
        assert len(set(verdicts)) == 1, verdicts
        torch.distributed.destroy_process_group()


def watch_plain_loop(folder, world):
    """The replica is freed on return: one that outlives gloo's process group can hang forever, in torch 2.13."""
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
    assert len(watch.history.losses) == 12
    return str(watch.diagnosis)


def with_accelerate(folder, world):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    watch_accelerate(accelerator, folder, world)
    accelerator.end_training()


def watch_accelerate(accelerator, folder, world):
    """As watch_plain_loop, with prepared objects."""
    from transformers import get_scheduler

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


if __name__ == "__main__":
    kind, folder, world = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    {
        "trainer": with_trainer,
        "doomed_trainer": with_doomed_trainer,
        "plain": with_plain_loop,
        "accelerate": with_accelerate,
    }[kind](folder, world)
