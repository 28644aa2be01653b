"""What watching costs: the same run, from its first step to its last written byte, with watching on and off.

    python benchmarks/watching.py [repeats]

bert_small on docstrings, one epoch of 225 steps, the same seed. Variants take turns, so that a machine whose speed
drifts treats them alike; a ratio compares a variant with `off` of the same turn.
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

from bertmon import config, train
from bertmon.monitor import History
from bertmon.monitor.writer import RunWriter
from bertmon.run import _observer, assemble

VARIANTS = {
    "off": ["monitor=off"],
    "every 30 steps, no figures": ["monitor.figures=false"],
    "every 30 steps, figures": [],
    "every step, no figures": ["monitor.every=1", "monitor.figures=false"],
}


def seconds(overrides: list[str]) -> float:
    with initialize_config_module("bertmon.conf", version_base="1.3"):
        composed = compose("config", ["experiment=quickstart", "model=bert_small", "train.epochs=1", *overrides])
    settings = config.from_hydra(composed)
    corpus, parts = assemble(settings, torch.device("cpu"))
    history = History(train.plan(settings, len(parts.train), corpus.train.entropy()))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with RunWriter(Path(folder), draw=settings.monitor.figures) as writer:
            train.fit(
                parts,
                settings,
                history,
                observer=_observer(settings, parts.classifier, history, writer),
                record=writer.scalars,
                outcome=train.Outcome(),
                name="",
            )
        return time.perf_counter() - started


def main(repeats: int) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {commit.stdout.strip()}"
    )
    turns = [{name: seconds(overrides) for name, overrides in VARIANTS.items()} for _ in range(repeats)]
    print(f"\n| watching | seconds, median of {repeats} (least to most) | of `off` (least to most) |\n|---|---|---|")
    for name in VARIANTS:
        times = [turn[name] for turn in turns]
        ratios = [turn[name] / turn["off"] for turn in turns]
        print(
            f"| {name} | {statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f}) "
            f"| {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
