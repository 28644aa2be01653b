"""How costs scale with layers, weights and documents. The slope is that of log(cost) over log(size); 1 is linear.

    python benchmarks/scaling.py [layers] [weights] [documents] [OVERRIDE...]

For scaling with the runs of a sweep, see benchmarks/report.py (the report) and benchmarks/many_runs.py (memory).
"""

import json
import math
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from environment import compose_config, describe

from bertmon.config import RunConfig
from bertmon.data.batches import Batch
from bertmon.monitor.history import History
from bertmon.monitor.tensorboard import RunWriter
from bertmon.training.step import GuardedUpdate, forward_backward
from bertmon.training.task import Task, build_monitor, build_task

SHAPES = {  # with a vocabulary of 30,522: 4 M, 11 M, 29 M, 110 M, 335 M weights
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "base": (12, 768),
    "large": (24, 1024),
}
"""Layers and width; feed-forward is four times as wide, heads have size 64 (Turc et al. 2019, arXiv 1908.08962)."""

Table = Callable[[Sequence[str]], Iterator[tuple[str, dict[str, float]]]]
"""(overrides) -> rows: a label, and costs by column; the first column is the size."""


def milliseconds(call: Callable[[], Any], repeats: int, prepare: Callable[[], Any] = lambda: None) -> float:
    """Median time of `call`; `prepare` runs before each call and is not timed."""
    times = []
    for _ in range(repeats + 1):  # the first is a warm-up
        prepare()
        started = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times[1:])


def watched(overrides: Sequence[str], *, repeats: int) -> dict[str, float]:
    """The cost of a step and of watching it, without figures, which are drawn in another process."""
    small = ["data.train_per_package=40", "data.test_per_package=4", "monitor.figures=false", "monitor.every=1"]
    config = compose_config(["experiment=quickstart", "model=bert_small", *small, "train.epochs=1000", *overrides])
    task = build_task(config, torch.device("cpu"))
    batch = next(task.train.epoch_batches(0, 0))
    update = GuardedUpdate(task.classifier, task.optimizer, config.train.max_grad_norm)

    def step() -> None:
        loss, _ = forward_backward(task.classifier, [batch], config.train.precision)
        update.update(loss, 1e-4)

    step_ms = milliseconds(step, repeats)
    watching_ms = sum(_monitor_ms(config, task, batch, repeats))
    weights = sum(parameter.numel() for parameter in task.classifier.parameters())
    return {
        "M weights": weights / 1e6,
        "step, ms": step_ms,
        "watching, ms": watching_ms,
        "share": watching_ms / step_ms,
    }


def _monitor_ms(config: RunConfig, task: Task, batch: Batch, repeats: int) -> Iterator[float]:
    """The cost of each part of a monitor's work at a watched step; the last one is its flush."""
    forward_backward(task.classifier, [batch], config.train.precision)
    zero, one = torch.zeros(()), torch.ones(())
    with tempfile.TemporaryDirectory() as folder, RunWriter(Path(folder), draw=False) as writer:
        monitor = build_monitor(config, task, History(task.plan), writer)

        def due_step() -> int:
            return len(monitor.history.losses)

        def measure() -> None:
            monitor.measure_gradients(due_step())
            monitor.before_update(due_step(), batch, logits)
            monitor.after_update(due_step())
            monitor.record(one, zero)

        logits = torch.zeros(len(batch.labels), len(task.corpus.label_names))
        yield milliseconds(lambda: monitor.measure_gradients(due_step()), repeats)
        yield milliseconds(lambda: monitor.before_update(due_step(), batch, logits), repeats)
        yield milliseconds(lambda: monitor.after_update(due_step()), repeats)
        yield milliseconds(monitor.flush, repeats, prepare=measure)


def layers(overrides: Sequence[str]) -> Iterator[tuple[str, dict[str, float]]]:
    """A growing number of layers of the same width."""
    for count in (2, 4, 8, 16, 24):
        row = watched([f"model.num_hidden_layers={count}", *overrides], repeats=10)
        yield f"{count} layers of width 128", row


def weights(overrides: Sequence[str]) -> Iterator[tuple[str, dict[str, float]]]:
    """BERT in its published sizes."""
    for name, (depth, width) in SHAPES.items():
        shape = [
            f"model.num_hidden_layers={depth}",
            f"model.hidden_size={width}",
            f"model.num_attention_heads={width // 64}",
            f"model.intermediate_size={4 * width}",
        ]
        yield f"BERT-{name}, {depth} layers of {width}", watched([*shape, *overrides], repeats=3)


def documents(overrides: Sequence[str]) -> Iterator[tuple[str, dict[str, float]]]:
    """From a JSONL file to the first batch, in a separate process, without a cache and then with one."""
    for count in (10_000, 100_000, 1_000_000):
        with tempfile.TemporaryDirectory() as folder:
            for name, lines in (("train", count), ("test", 100)):
                write_documents(Path(folder, f"{name}.jsonl"), lines)
            columns = {"MB": Path(folder, "train.jsonl").stat().st_size / 1e6}
            for cache in ("no cache", "cached"):
                command = [sys.executable, __file__, "--first-batch", folder, *overrides]
                finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                seconds, megabytes = map(float, finished.stdout.split())
                columns |= {f"to the first batch, s ({cache})": seconds, f"peak memory, MB ({cache})": megabytes}
            yield f"{count} documents", columns


def write_documents(path: Path, count: int) -> None:
    """Write JSON lines of 20 made-up words each, in four classes."""
    rng = random.Random(0)
    syllables = [f"{first}{second}" for first in "bdfgklmnprst" for second in "aeiou"]
    with path.open("w") as file:
        for number in range(count):
            text = " ".join("".join(rng.choices(syllables, k=3)) for _ in range(20))
            file.write(json.dumps({"text": text, "label": number % 4}) + "\n")


def first_batch(folder: str, overrides: Sequence[str]) -> None:
    """Print the seconds to the first batch and the process's peak memory in MB."""
    started = time.perf_counter()
    files = [f"data.{name}={folder}/{name}.jsonl" for name in ("train", "test")]
    base = ["experiment=quickstart", "model=bert_small", "data=files", *files, f"cache_dir={folder}/cache"]
    task = build_task(compose_config([*base, *overrides]), torch.device("cpu"))
    next(task.train.epoch_batches(0, 0))
    print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The least-squares slope of log(cost) over log(size)."""
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(cost) for cost in costs]).slope


TABLES: dict[str, Table] = {"layers": layers, "weights": weights, "documents": documents}


def main(names: Sequence[str], overrides: Sequence[str]) -> None:
    """See the module's docstring."""
    print(f"{describe()} {' '.join(overrides)}".rstrip())
    for name in names or TABLES:
        rows = []
        for label, row in TABLES[name](overrides):
            if not rows:
                print(f"\n| {name} | {' | '.join(row)} |\n|---|{'---|' * len(row)}")
            rows.append(row)
            print(f"| {label} | {' | '.join(f'{value:.3g}' for value in row.values())} |", flush=True)
        size, *costs = rows[0]
        slopes = [slope([row[size] for row in rows], [row[cost] for row in rows]) for cost in costs]
        print(f"| slope over {size} | | {' | '.join(f'{value:.2f}' for value in slopes)} |")


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == ["--first-batch"]:
        first_batch(words[1], words[2:])
    elif any("=" not in word and word not in TABLES for word in words):
        sys.exit(__doc__)
    else:
        main([word for word in words if "=" not in word], [word for word in words if "=" in word])
