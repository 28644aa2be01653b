"""How costs grow: with layers, weights, documents. The slope is that of log(cost) over log(size); 1 is linear.

    python benchmarks/growth.py [layers] [weights] [documents]

Runs in a sweep: benchmarks/report.py (the report) and benchmarks/load.py (memory).
"""

import json
import math
import platform
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
from hydra import compose, initialize_config_module

from bertmon import config
from bertmon.config import RunConfig
from bertmon.monitor.history import History
from bertmon.monitor.tensorboard import RunWriter
from bertmon.run import _observer, build_task
from bertmon.training import trainer
from bertmon.training.step import GuardedUpdate, forward_backward

SHAPES = {  # weights of these architectures, with 30,522 words: 4 M, 11 M, 29 M, 110 M, 335 M
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "base": (12, 768),
    "large": (24, 1024),
}
"""Layers and width; feed-forward is four times as wide, heads have 64 (Turc et al. 2019, arXiv 1908.08962)."""


def settings_of(*overrides: str) -> RunConfig:
    with initialize_config_module("bertmon.conf", version_base="1.3"):
        return config.from_hydra(compose("config", ["experiment=quickstart", "model=bert_small", *overrides]))


def milliseconds(call: Callable[[], Any], repeats: int) -> float:
    call()
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        found.append(1e3 * (time.perf_counter() - started))
    return statistics.median(found)


def watched(*overrides: str, repeats: int) -> dict[str, float]:
    """What a step takes, and what watching adds to it, part by part; the figures are drawn elsewhere."""
    settings = settings_of("monitor.figures=false", "data.train_per_package=40", "data.test_per_package=4", *overrides)
    corpus, parts = build_task(settings, torch.device("cpu"))
    history = History(trainer.plan_run(settings, 10_000, corpus.train.label_entropy()))
    updater = GuardedUpdate(parts.classifier, parts.optimizer, settings.train.max_grad_norm)
    batch = next(parts.train.epoch_batches(0, 0))
    weights = sum(parameter.numel() for parameter in parts.classifier.parameters())
    with tempfile.TemporaryDirectory() as folder, RunWriter(Path(folder), draw=False) as writer:
        observer = _observer(settings, parts.classifier, history, writer)
        assert observer is not None

        def step() -> None:
            loss, _ = forward_backward(parts.classifier, batch, settings.train.precision)
            updater.update(loss, 1e-4)

        def read() -> None:
            history.losses.append(1.0)
            history.grad_norms.append(1.0)
            observer._measured = observer._measured or measured
            observer._measured = observer._measured._replace(step=len(history.losses) - 1)
            observer.flush()

        step_ms = milliseconds(step, repeats)
        forward_backward(parts.classifier, batch, settings.train.precision)
        parts_ms = {
            "gradients": milliseconds(observer.measure_gradients, repeats),
            "before": milliseconds(observer.keep_weights, repeats),
            "after": milliseconds(lambda: observer.measure_updates(0), repeats),
        }
        measured = observer._measured
        parts_ms["read"] = milliseconds(read, repeats)
    watching = sum(parts_ms.values())
    return {"M weights": weights / 1e6, "step, ms": step_ms, "watching, ms": watching, "share": watching / step_ms}


def layers() -> Iterator[tuple[str, dict[str, float]]]:
    for count in (2, 4, 8, 16, 24):
        yield f"{count} layers of width 128", watched(f"model.num_hidden_layers={count}", repeats=10)


def weights() -> Iterator[tuple[str, dict[str, float]]]:
    for name, (depth, width) in SHAPES.items():
        overrides = [
            f"model.num_hidden_layers={depth}",
            f"model.hidden_size={width}",
            f"model.num_attention_heads={width // 64}",
            f"model.intermediate_size={4 * width}",
        ]
        yield f"BERT-{name}, {depth} layers of {width}", watched(*overrides, repeats=3)


def documents() -> Iterator[tuple[str, dict[str, float]]]:
    """From a JSONL file to the first batch, in a process of its own, with no cache and then with one."""
    for count in (10_000, 100_000, 1_000_000):
        with tempfile.TemporaryDirectory() as folder:
            rng = random.Random(0)
            words = [f"{first}{second}" for first in "bdfgklmnprst" for second in "aeiou"]
            for name, lines in (("train", count), ("test", 100)):
                with (Path(folder) / f"{name}.jsonl").open("w") as file:
                    for number in range(lines):
                        text = " ".join("".join(rng.choices(words, k=3)) for _ in range(20))
                        file.write(json.dumps({"text": text, "label": number % 4}) + "\n")
            told = {}
            for cached in ("first", "again"):
                command = [sys.executable, __file__, "--first-batch", folder]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                seconds, megabytes = map(float, done.stdout.split())
                told |= {f"to the first batch, s ({cached})": seconds, f"peak memory, MB ({cached})": megabytes}
            size = (Path(folder) / "train.jsonl").stat().st_size / 1e6
            yield f"{count} documents", {"MB": size, **told}


def first_batch(folder: str) -> None:
    started = time.perf_counter()
    files = [f"data.{name}={folder}/{name}.jsonl" for name in ("train", "test")]
    with initialize_config_module("bertmon.conf", version_base="1.3"):
        overrides = ["experiment=quickstart", "data=files", *files, f"cache_dir={folder}/cache"]
        settings = config.from_hydra(compose("config", overrides))
    _, parts = build_task(settings, torch.device("cpu"))
    next(parts.train.epoch_batches(0, 0))
    print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(cost) for cost in costs]).slope


def main(asked: Sequence[str]) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {commit.stdout.strip()}"
    )
    for name, table in (("layers", layers), ("weights", weights), ("documents", documents)):
        if asked and name not in asked:
            continue
        rows = []
        for label, row in table():
            if not rows:
                print(f"\n| {name} | {' | '.join(row)} |\n|---|{'---|' * len(row)}")
            rows.append(row)
            print(f"| {label} | {' | '.join(f'{value:.3g}' for value in row.values())} |", flush=True)
        size, *costs = rows[0]
        slopes = [slope([row[size] for row in rows], [row[cost] for row in rows]) for cost in costs]
        print(f"| slope over {size} | | {' | '.join(f'{value:.2f}' for value in slopes)} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--first-batch"]:
        first_batch(sys.argv[2])
    else:
        main(sys.argv[1:])
