"""Tokens per second of bertmon and other training loops, with the same model, texts, batches and threads.

    python benchmarks/vs_trainer.py [turns] [part of the variants' names] [OVERRIDE...]

On CUDA: BERT-base, 16 texts of up to 256 tokens, in bf16, except for the Trainer at its defaults, which computes in
float32. On the CPU: bert_small, 16 texts of up to 32 tokens, in float32. Overrides come last and take precedence;
without a network: `model.tokenizer=FOLDER`. Each turn trains each variant in its own process for one epoch and for
more; the difference, per epoch, excludes startup, compilation, evaluation and first calls, which are reported
separately as seconds before and after. Ratios are to the Trainer at its defaults, which every turn includes.

The floor of an epoch is its model FLOPs divided by the rate of a large matrix product on the same machine: 6 x
parameters x tokens, without the embedding tables, which are looked up, plus 12 x layers x width x length^2 per text for
attention. Padding does not count as tokens.
"""

import copy
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from environment import CUDA, DEVICE, compose_config, describe
from torch import nn

from bertmon.config import RunConfig
from bertmon.data import tokenize
from bertmon.data.batches import Batch
from bertmon.monitor.history import History
from bertmon.monitor.tensorboard import RunWriter
from bertmon.result import Status
from bertmon.training.state import TrainState
from bertmon.training.task import Task, build_monitor, build_task
from bertmon.training.trainer import Trainer

SETUP = [
    "experiment=quickstart",
    "data.test_per_package=2",
    "train.eval_every=1000000",  # at the end of each epoch only
    *(
        ["model=bert_base", "data.max_length=256", "train.precision=bf16", "optimizer.lr=3e-5"]
        if CUDA
        else ["model=bert_small"]
    ),
]
EPOCHS = (1, 4) if CUDA else (1, 2)
"""Epochs of the two trainings whose difference is measured; more where an epoch is short compared with the noise."""

# --- what is trained ------------------------------------------------------------------------------


def config_of(epochs: int, overrides: Sequence[str]) -> RunConfig:
    """The config that all variants share."""
    return compose_config([*SETUP, f"train.epochs={epochs}", *overrides])


def train_with_bertmon(epochs: int, overrides: Sequence[str], *own: str) -> None:
    """bertmon's own loop; `own` are the variant's overrides."""
    config = config_of(epochs, [*overrides, *own])
    task = build_task(config, DEVICE)
    with tempfile.TemporaryDirectory() as folder, RunWriter(Path(folder), draw=config.monitor.figures) as writer:
        monitor = build_monitor(config, task, History(task.plan), writer)
        state = TrainState()
        Trainer(task, config, monitor, state, log_scalars=writer.scalars, name="").fit()
    assert state.status is Status.finished, state.status


def train_with_transformers(epochs: int, overrides: Sequence[str], **arguments: Any) -> None:
    """transformers' Trainer; `arguments` are the variant's TrainingArguments."""
    from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast, Trainer, TrainingArguments

    config = config_of(epochs, overrides)
    task = build_task(config, torch.device("cpu"))
    tokenizer, tokens = tokenize_training_texts(config, task)
    rows = torch.as_tensor(tokens.ids).split(tokens.lengths.tolist())
    labels = task.corpus.train.labels
    with tempfile.TemporaryDirectory() as folder:
        training = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=config.train.batch_size,
            num_train_epochs=epochs,
            learning_rate=config.optimizer.lr,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=not CUDA,
            **arguments,
        )
        Trainer(
            model=task.classifier,
            args=training,
            train_dataset=[
                {"input_ids": row.tolist(), "labels": int(label)} for row, label in zip(rows, labels, strict=True)
            ],
            data_collator=DataCollatorWithPadding(
                PreTrainedTokenizerFast(tokenizer_object=tokenizer.tokenizer, pad_token="[PAD]")
            ),
        ).train()


def tokenize_training_texts(config: RunConfig, task: Task) -> tuple[tokenize.TextTokenizer, tokenize.TokenizedTexts]:
    """The tokens that the task trains on."""
    texts = task.corpus.train.texts
    tokenizer = tokenize.load_tokenizer(config.model, texts, config.cache_path())
    return tokenizer, tokenize.tokenize(tokenizer, texts, config.data.max_length, config.cache_path())


def train_as_the_article(epochs: int, overrides: Sequence[str]) -> None:
    """A plain loop that watches like the article: every 30 steps, weight by weight, with copies and figures."""
    from torch.utils.tensorboard import SummaryWriter

    task = build_task(config_of(epochs, overrides), DEVICE)
    batches = itertools.chain.from_iterable(task.train.epoch_batches(0, epoch) for epoch in range(epochs))
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        for step, batch in enumerate(batches):
            loss = _backward(task.classifier, batch)
            watch = _ArticleWatch(task.classifier) if step % 30 == 0 else None
            nn.utils.clip_grad_norm_(task.classifier.parameters(), 1.0)
            for group in task.optimizer.param_groups:
                group["lr"] = task.plan.lr[step]
            task.optimizer.step()
            task.optimizer.zero_grad()
            writer.add_scalar("loss/train", loss.item(), step)
            if watch:
                watch.write(writer, step)


def _backward(model: nn.Module, batch: Batch) -> torch.Tensor:
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=CUDA):
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    loss = nn.functional.cross_entropy(logits.float(), batch.labels)
    loss.backward()
    return loss.detach()


class _ArticleWatch:
    """Statistics of one step, weight by weight: computed before the update, written after it."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        weights = [(name, weight) for name, weight in model.named_parameters() if "bias" not in name]
        gradients = [weight.grad.abs() for _, weight in weights if weight.grad is not None]
        self._names = [name for name, _ in weights]
        self._rows = [(g.mean().item(), g.max().item(), g.std().item(), (g == 0).sum().item()) for g in gradients]
        self._before = copy.deepcopy(model.state_dict())

    def write(self, writer: Any, step: int) -> None:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt
        import seaborn

        before, after = self._before, copy.deepcopy(self._model.state_dict())
        ratios = [((after[name] - before[name]).norm() / before[name].norm()).item() for name in self._names]
        for tag, values in (("gradient_flow", [row[0] for row in self._rows]), ("update_ratio", ratios)):
            figure, axes = plt.subplots(figsize=(10, 14))
            seaborn.barplot(x=values, y=self._names, ax=axes)
            writer.add_figure(tag, figure, step)


REFERENCE = "transformers Trainer, defaults, nothing logged"
VARIANTS: dict[str, Callable[[int, Sequence[str]], None]] = {
    REFERENCE: train_with_transformers,
    "bertmon, watching every 30 steps with figures": train_with_bertmon,
    "bertmon, watching, train.compile=true": lambda *task: train_with_bertmon(*task, "train.compile=true"),
    "bertmon, watching off": lambda *task: train_with_bertmon(*task, "monitor=off"),
    "a plain loop that watches as the article does": train_as_the_article,
}
if CUDA:
    fastest = functools.partial(train_with_transformers, bf16=True, optim="adamw_torch_fused")
    VARIANTS["transformers Trainer, bf16, fused AdamW"] = fastest
    VARIANTS["transformers Trainer, bf16, fused AdamW, torch_compile"] = functools.partial(fastest, torch_compile=True)
COMPILED = [name for name in VARIANTS if "compile" in name]
"""Each is run once before it is timed, so that torch's cache contains the compiled kernels."""

# --- the measurement ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Epoch:
    """The measurements of one turn of a variant."""

    tokens: int
    fewer: float  # seconds to train for EPOCHS[0] epochs
    more: float  # and for EPOCHS[1]
    floor: float  # seconds

    @property
    def seconds(self) -> float:
        return (self.more - self.fewer) / (EPOCHS[1] - EPOCHS[0])

    @property
    def overhead(self) -> float:
        """Seconds before the first step and after the last one."""
        return self.fewer - EPOCHS[0] * self.seconds

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOPs per second of a large matrix product, the best of ten; in float32 without TF32."""
    size = 8192 if CUDA else 1024
    torch.set_float32_matmul_precision("highest")
    matrix = torch.randn(size, size, dtype=dtype, device=DEVICE)
    times = []
    for _ in range(13):
        started = time.perf_counter()
        matrix @ matrix
        if CUDA:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return float(2 * size**3 / min(times[3:]))


def epoch_flops(classifier: nn.Module, lengths: torch.Tensor) -> float:
    """Model FLOPs of an epoch over texts of these lengths."""
    weights = sum(p.numel() for name, p in classifier.named_parameters() if "embeddings" not in name)
    shape: Any = classifier.config
    attention = 12 * shape.num_hidden_layers * shape.hidden_size * float((lengths.double() ** 2).sum())
    return 6 * weights * float(lengths.sum()) + attention


def measure(name: str, overrides: Sequence[str]) -> Epoch:
    """Train the variant twice, for each number of EPOCHS."""
    config = config_of(1, overrides)
    task = build_task(config, torch.device("cpu"))
    lengths = torch.as_tensor(tokenize_training_texts(config, task)[1].lengths)
    dtype = torch.bfloat16 if CUDA and name != REFERENCE else torch.float32
    floor = epoch_flops(task.classifier, lengths) / matrix_rate(dtype)
    if name in COMPILED:
        VARIANTS[name](1, overrides)
    seconds = []
    for epochs in EPOCHS:
        started = time.perf_counter()
        VARIANTS[name](epochs, overrides)
        if CUDA:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return Epoch(int(lengths.sum()), *seconds, floor)


def measure_in_process(name: str, overrides: Sequence[str]) -> Epoch:
    """Like `measure`, in a separate process."""
    command = [sys.executable, __file__, "--measure", name, *overrides]
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # the Trainer would use all GPUs
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": first} if CUDA else {})
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return Epoch(**json.loads(finished.stdout.splitlines()[-1]))


def table(turns: dict[str, list[Epoch]]) -> Iterator[str]:
    """One row per variant."""
    count = len(turns[REFERENCE])
    heads = ("tokens/s", "of the Trainer's", "seconds of an epoch", "its floor", "share", "seconds before and after")
    yield f"| median of {count} (least to most) | {' | '.join(heads)} |\n|---|---|---|---|---|---|---|\n"
    for name, epochs in turns.items():
        rates = [epoch.rate for epoch in epochs]
        ratios = [epoch.rate / base.rate for epoch, base in zip(epochs, turns[REFERENCE], strict=True)]
        seconds, floor, overhead = (
            statistics.median(getattr(epoch, field) for epoch in epochs) for field in ("seconds", "floor", "overhead")
        )
        yield (
            f"| {name} | {statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f}) "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"| {seconds:.2f} | {floor:.2f} | {floor / seconds:.0%} | {overhead:.1f} |\n"
        )


def main(count: int, pattern: str, overrides: Sequence[str]) -> None:
    """See the module's docstring."""
    print(f"{describe()} {' '.join(overrides)}".rstrip() + "\n")
    names = [name for name in VARIANTS if name == REFERENCE or pattern in name]
    turns: dict[str, list[Epoch]] = {name: [] for name in names}
    for _ in range(count):
        for name in names:
            turns[name].append(measure_in_process(name, overrides))
    print("".join(table(turns)), end="")


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == ["--measure"]:
        print(json.dumps(asdict(measure(words[1], words[2:]))))
    else:
        numbers = [word for word in words if word.isdigit()]
        parts = [word for word in words if not word.isdigit() and "=" not in word]
        main(int((numbers or ["5"])[0]), (parts or [""])[0], [word for word in words if "=" in word])
