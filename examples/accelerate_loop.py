"""Monitor an accelerate training loop, on one or several devices. Needs `pip install accelerate`.

python examples/accelerate_loop.py runs/learns --lr 5e-4
python -m torch.distributed.run --nproc-per-node 2 examples/accelerate_loop.py runs/two_processes --lr 5e-4
python -m tensorboard.main --logdir runs --samples_per_plugin images=100
"""

import argparse
import itertools
import logging
from pathlib import Path

import torch
from accelerate import Accelerator
from toy_data import lines, small_bert
from transformers import get_linear_schedule_with_warmup

from bertmon.integrations.own_loop import Watch


def train(folder: Path, lr: float, steps: int) -> Watch:
    accelerator = Accelerator(cpu=True)
    model, examples = small_bert(), lines()
    loader = torch.utils.data.DataLoader(examples, batch_size=16, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    updates = steps * accelerator.num_processes  # accelerate steps the scheduler once for each process
    scheduler = get_linear_schedule_with_warmup(optimizer, updates // 10, updates)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    labels = [example["labels"] for example in examples]

    model.train()
    with Watch(model, optimizer, folder, total_steps=steps, labels=labels, scheduler=scheduler) as watch:
        for batch in itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), steps):
            loss = model(**batch).loss
            accelerator.backward(loss)
            with watch.step(loss, batch):
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if watch.doomed:
                break
    return watch


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    print(train(arguments.folder, arguments.lr, arguments.steps).diagnosis)
