"""Tokens a second beside what others train with: the same model, texts, batches, precision and threads.

    python benchmarks/peers.py [turns [variants with this in their names, beside the Trainer]]

On CUDA: BERT-base, 16 texts of at most 256 tokens. On the CPU: bert_small, 16 of at most 32. Each turn trains each
variant in a process of its own for one epoch and for two; their difference is an epoch without start, compilation,
evaluation and first calls. Those are told apart, as seconds before and after it. Ratios are to the Trainer at its
defaults in the same turn. seaborn is needed for the article's figures.

The floor of an epoch is its model FLOPs over the rate of a large matrix product on the same machine: 6 x parameters x
tokens, without the embedding tables, which are looked up, and 12 x layers x width x length^2 a text for attention.
Padding is no token.
"""

import copy
import functools
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from torch import nn

from bertmon import config, schedule
from bertmon.config import RunConfig
from bertmon.data import tokenize
from bertmon.monitor.history import History
from bertmon.monitor.tensorboard import RunWriter
from bertmon.run import _observer, build_task
from bertmon.training import trainer

CUDA = torch.cuda.is_available()
SETUP = [
    "experiment=quickstart",
    "data.test_per_package=2",
    *(["model=bert_base", "data.max_length=256", "train.precision=bf16"] if CUDA else ["model=bert_small"]),
]


def settings_of(epochs: int, *overrides: str) -> RunConfig:
    with initialize_config_module("bertmon.conf", version_base="1.3"):
        composed = compose("config", [*SETUP, f"train.epochs={epochs}", *overrides])
    return config.from_hydra(composed)


def bertmon(epochs: int, *overrides: str) -> None:
    settings = settings_of(epochs, *overrides)
    corpus, parts = build_task(settings, torch.device("cuda" if CUDA else "cpu"))
    history = History(trainer.plan(settings, len(parts.train), corpus.train.label_entropy()))
    with tempfile.TemporaryDirectory() as folder, RunWriter(Path(folder), draw=settings.monitor.figures) as writer:
        observer = _observer(settings, parts.classifier, history, writer)
        outcome = trainer.Outcome()
        trainer.fit(parts, settings, history, observer=observer, record=writer.scalars, outcome=outcome, name="")


def texts_of(settings: RunConfig, parts: trainer.Parts) -> list[dict[str, Any]]:
    """The training texts as the Trainer takes them."""
    held = parts.train._all
    assert held is not None
    ids = held.ids.split(held.lengths.tolist())
    return [
        {"input_ids": row.tolist(), "labels": label}
        for row, label in zip(ids, parts.train._labels.tolist(), strict=True)
    ]


def trainer(epochs: int, **best: Any) -> None:
    from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast, Trainer, TrainingArguments

    settings = settings_of(epochs)
    corpus, parts = build_task(settings, torch.device("cpu"))
    vocabulary = tokenize.load_tokenizer(settings.model, corpus.train.texts, settings.cache_path())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary.tokenizer, pad_token="[PAD]")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=settings.train.batch_size,
            num_train_epochs=epochs,
            learning_rate=settings.optimizer.lr,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=not CUDA,
            **best,
        )
        Trainer(
            model=parts.classifier,
            args=arguments,
            train_dataset=texts_of(settings, parts),
            data_collator=DataCollatorWithPadding(tokenizer),
        ).train()


def article(epochs: int) -> None:
    """A plain loop that watches as the article does: every 30 steps, weight by weight, with copies and figures."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import seaborn
    from torch.utils.tensorboard import SummaryWriter

    settings = settings_of(epochs)
    device = torch.device("cuda" if CUDA else "cpu")
    _, parts = build_task(settings, device)
    model = parts.classifier
    total = epochs * len(parts.train)
    factor = functools.partial(schedule.lr_factor, shape="linear", warmup_frac=0.1, total_steps=total)
    scheduler = torch.optim.lr_scheduler.LambdaLR(parts.optimizer, factor)
    batches = itertools.chain.from_iterable(parts.train.epoch_batches(0, epoch) for epoch in range(epochs))
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        for step, batch in enumerate(batches):
            with torch.autocast(device.type, torch.bfloat16, enabled=CUDA):
                scores = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            loss = nn.functional.cross_entropy(scores.float(), batch.labels)
            loss.backward()
            watched = step % 30 == 0
            if watched:
                weights = [(name, p) for name, p in model.named_parameters() if "bias" not in name]
                gradients = [p.grad.abs() for _, p in weights]
                rows = [(g.mean().item(), g.max().item(), g.std().item(), (g == 0).sum().item()) for g in gradients]
                before = copy.deepcopy(model.state_dict())
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            parts.optimizer.step()
            if step + 1 < total:
                scheduler.step()
            parts.optimizer.zero_grad()
            writer.add_scalar("loss/train", loss.item(), step)
            if watched:
                after = copy.deepcopy(model.state_dict())
                ratios = [((after[n] - before[n]).norm() / before[n].norm()).item() for n, _ in weights]
                for tag, values in (("gradient_flow", [row[0] for row in rows]), ("update_ratio", ratios)):
                    figure, axes = plt.subplots(figsize=(10, 14))
                    seaborn.barplot(x=values, y=[name for name, _ in weights], ax=axes)
                    writer.add_figure(tag, figure, step)


VARIANTS: dict[str, Callable[[int], None]] = {
    "transformers Trainer, defaults, nothing logged": trainer,
    "bertmon, watching every 30 steps with figures": bertmon,
    "bertmon, watching, train.compile=true": lambda epochs: bertmon(epochs, "train.compile=true"),
    "bertmon, watching off": lambda epochs: bertmon(epochs, "monitor=off"),
    "a plain loop that watches as the article does": article,
}
if CUDA:
    VARIANTS["transformers Trainer, bf16, fused AdamW, torch_compile"] = functools.partial(
        trainer, bf16=True, optim="adamw_torch_fused", torch_compile=True
    )


COMPILED = [name for name in VARIANTS if "compile" in name]
"""Each has a run before it whose time is not counted: it leaves the compiled kernels in torch's cache."""


def matrix_rate() -> float:
    """FLOPs a second of a large matrix product, the best of ten; bf16 on CUDA, fp32 on the CPU."""
    size, kind = (8192, torch.bfloat16) if CUDA else (1024, torch.float32)
    matrix = torch.randn(size, size, dtype=kind, device="cuda" if CUDA else "cpu")
    times = []
    for _ in range(13):
        started = time.perf_counter()
        matrix @ matrix
        if CUDA:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return float(2 * size**3 / min(times[3:]))


def flops(parts: trainer.Parts) -> float:
    """Model FLOPs of an epoch."""
    weights = sum(p.numel() for name, p in parts.classifier.named_parameters() if "embeddings" not in name)
    shape, lengths = parts.classifier.config, parts.train._all.lengths
    attention = 12 * shape.num_hidden_layers * shape.hidden_size * float((lengths**2).sum())
    return 6 * weights * float(lengths.sum()) + attention


def measure(name: str) -> None:
    """Print the seconds of the variant with one epoch and with two, and of an epoch the tokens and the floor."""
    settings = settings_of(1)
    _, parts = build_task(settings, torch.device("cpu"))
    floor = flops(parts) / matrix_rate()
    seconds = []
    if name in COMPILED:
        VARIANTS[name](1)
    for epochs in (1, 2):
        started = time.perf_counter()
        VARIANTS[name](epochs)
        if CUDA:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds, "tokens": int(parts.train._all.lengths.sum()), "floor": floor}))


def main(turns: int, wanted: str) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    where = torch.cuda.get_device_name() if CUDA else f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(f"{where}, torch {torch.__version__}, {commit.stdout.strip()}\n")
    names = [name for name in VARIANTS if name == next(iter(VARIANTS)) or wanted in name]
    found: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in names}
    for _ in range(turns):
        for name in names:
            done = subprocess.run([sys.executable, __file__, name], stdout=subprocess.PIPE, text=True, check=True)
            told = json.loads(done.stdout.splitlines()[-1])
            one, two = told["seconds"]
            found[name].append((told["tokens"] / (two - one), 2 * one - two, two - one, told["floor"]))
    print(
        f"| median of {turns} (least to most) | tokens/s | of the Trainer's | seconds of an epoch | its floor | share "
        "| seconds before and after |\n|---|---|---|---|---|---|---|"
    )
    for name, turns_of in found.items():
        rates = [rate for rate, *_ in turns_of]
        ratios = [rate / base for (rate, *_), (base, *_) in zip(turns_of, next(iter(found.values())), strict=True)]
        apart, epoch, floor = (statistics.median(turn[column] for turn in turns_of) for column in (1, 2, 3))
        print(
            f"| {name} | {statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f}) "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"| {epoch:.2f} | {floor:.2f} | {floor / epoch:.0%} | {apart:.1f} |"
        )


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in VARIANTS:
        measure(sys.argv[1])
    else:
        main(int((sys.argv[1:] or ["5"])[0]), (sys.argv[2:] or [""])[0])
