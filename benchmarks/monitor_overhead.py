"""What watching costs: the same run, from its first step to its last written byte, with watching on and off.

    python benchmarks/watching.py [repeats [override...]]

One epoch of 225 steps on docstrings, the same seed, unless overrides say otherwise. On CUDA: BERT-base in bf16, texts
of at most 256 tokens; on the CPU: bert_small, 32. Variants take turns, so that a machine whose speed drifts treats them
alike; a ratio compares a variant with `off` of the same turn.
"""

import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_module

from bertmon import config
from bertmon.monitor.history import History
from bertmon.monitor.tensorboard import RunWriter
from bertmon.run import _observer, build_task
from bertmon.training import trainer

CUDA = torch.cuda.is_available()
SETUP = [
    "experiment=quickstart",
    "train.epochs=1",
    *(["model=bert_base", "data.max_length=256", "train.precision=bf16"] if CUDA else ["model=bert_small"]),
]
VARIANTS = {
    "off": ["monitor=off"],
    "every 30 steps, no figures": ["monitor.figures=false"],
    "every 30 steps, figures": [],
    "every step, no figures": ["monitor.every=1", "monitor.figures=false"],
}


def seconds(overrides: list[str]) -> float:
    with initialize_config_module("bertmon.conf", version_base="1.3"):
        composed = compose("config", [*SETUP, *overrides])
    settings = config.from_hydra(composed)
    corpus, parts = build_task(settings, torch.device("cuda" if CUDA else "cpu"))
    history = History(trainer.plan_run(settings, len(parts.train), corpus.train.label_entropy()))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with RunWriter(Path(folder), draw=settings.monitor.figures) as writer:
            trainer.fit(
                parts,
                settings,
                history,
                observer=_observer(settings, parts.classifier, history, writer),
                record=writer.scalars,
                outcome=trainer.TrainState(),
                name="",
            )
        return time.perf_counter() - started


def main(repeats: int, given: list[str]) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    where = torch.cuda.get_device_name() if CUDA else f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(f"{where}, torch {torch.__version__}, {commit.stdout.strip()} {' '.join(given)}".rstrip())
    turns = [{name: seconds([*given, *overrides]) for name, overrides in VARIANTS.items()} for _ in range(repeats)]
    print(f"\n| watching | seconds, median of {repeats} (least to most) | of `off` (least to most) |\n|---|---|---|")
    for name in VARIANTS:
        times = [turn[name] for turn in turns]
        ratios = [turn[name] / turn["off"] for turn in turns]
        print(
            f"| {name} | {statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f}) "
            f"| {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, sys.argv[2:])
