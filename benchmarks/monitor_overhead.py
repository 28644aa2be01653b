"""Overhead of watching: the same run, from its first step to its last written byte, with watching on and off.

    python benchmarks/monitor_overhead.py [repeats] [OVERRIDE...]

One epoch of 225 steps on docstrings with the same seed, unless overridden. On CUDA: BERT-base in bf16, texts of up to
256 tokens; on the CPU: bert_small, up to 32. Without a network: model.tokenizer=FOLDER. Variants take turns, so that
drifts of the machine's speed affect all of them; a ratio compares a variant with `off` of the same turn.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from environment import CUDA, DEVICE, compose_config, describe

from bertmon.monitor.history import History
from bertmon.monitor.tensorboard import RunWriter
from bertmon.result import Status
from bertmon.training.state import TrainState
from bertmon.training.task import build_monitor, build_task
from bertmon.training.trainer import Trainer

SETUP = [
    "experiment=quickstart",
    "train.epochs=1",
    "train.eval_every=1000000",  # at the end only
    *(
        ["model=bert_base", "data.max_length=256", "train.precision=bf16", "optimizer.lr=3e-5"]
        if CUDA
        else ["model=bert_small"]
    ),
]
VARIANTS = {
    "off": ["monitor=off"],
    "every 30 steps, no figures": ["monitor.figures=false"],
    "every 30 steps, figures": [],
    "every step, no figures": ["monitor.every=1", "monitor.figures=false"],
}


def train_seconds(overrides: Sequence[str]) -> float:
    """Seconds from the first step until the event file is closed; reading texts and building the model do not count."""
    config = compose_config([*SETUP, *overrides])
    task = build_task(config, DEVICE)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with RunWriter(Path(folder), draw=config.monitor.figures) as writer:
            monitor = build_monitor(config, task, History(task.plan), writer)
            state = TrainState()
            Trainer(task, config, monitor, state, log_scalars=writer.scalars, name="").fit()
        seconds = time.perf_counter() - started
    assert state.status is Status.finished, state.status
    return seconds


def main(repeats: int, overrides: Sequence[str]) -> None:
    """See the module's docstring."""
    if CUDA:
        torch.zeros(1, device=DEVICE)  # so that no variant includes CUDA's startup
    print(f"{describe()} {' '.join(overrides)}".rstrip())
    turns = [{name: train_seconds([*overrides, *own]) for name, own in VARIANTS.items()} for _ in range(repeats)]
    print(f"\n| watching | seconds, median of {repeats} (least to most) | of `off` (least to most) |\n|---|---|---|")
    for name in VARIANTS:
        times = [turn[name] for turn in turns]
        ratios = [turn[name] / turn["off"] for turn in turns]
        print(
            f"| {name} | {statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f}) "
            f"| {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |"
        )


if __name__ == "__main__":
    words = sys.argv[1:]
    main(int(next((word for word in words if word.isdigit()), "5")), [word for word in words if "=" in word])
