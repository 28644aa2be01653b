"""Overhead of watching in other training programs: complete runs, in turns, on the same small BERT.

OMP_NUM_THREADS=1 python benchmarks/integrations_overhead.py [--steps 600] [--turns 5] [--device cpu]

Prints a table after each turn: for each program the median wall time and CPU time, and both as ratios to the same
program without watching in the same turn. CPU time includes the processes that draw figures and write W&B's files; it
is more reliable than wall time on a shared machine. Runs are timed including startup and shutdown; each program has a
warm-up run that is not counted. wandb.watch (offline) and Lightning's own gradient norms are included for comparison.
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import environment
import psutil
import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from bertmon.integrations.own_loop import Watch
from bertmon.integrations.transformers_trainer import WatchCallback

BATCH, LENGTH, CLASSES = 16, 64, 4
Program = Callable[[Path, int, str], None]


class Cost(NamedTuple):
    """The time of one run, in seconds."""

    wall: float
    cpu: float  # of all processes


def build_model() -> BertForSequenceClassification:
    """A BERT with six layers of width 128."""
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=8000,
            hidden_size=128,
            num_hidden_layers=6,
            num_attention_heads=2,
            intermediate_size=512,
            max_position_embeddings=LENGTH,
            num_labels=CLASSES,
        )
    )


def random_rows(steps: int) -> list[dict[str, torch.Tensor]]:
    """Random texts for `steps` steps."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 8000, (steps * BATCH, LENGTH), generator=generator)
    mask = torch.ones(LENGTH, dtype=torch.long)
    return [
        {"input_ids": row, "attention_mask": mask, "labels": torch.tensor(number % CLASSES)}
        for number, row in enumerate(ids)
    ]


def labels_of(rows: list[dict[str, torch.Tensor]]) -> list[int]:
    return [int(row["labels"]) for row in rows]


def plain_loop(watching: str) -> Program:
    """watching: none, bertmon or wandb."""

    def run(folder: Path, steps: int, device: str) -> None:
        rows, model = random_rows(steps), build_model().to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        watch = None
        if watching == "bertmon":
            watch = Watch(model, optimizer, folder / "watched", total_steps=steps, labels=labels_of(rows))
        wandb_run = _wandb_watch(model, folder) if watching == "wandb" else None
        model.train()
        with watch or nullcontext():
            for step, batch in enumerate(DataLoader(rows, batch_size=BATCH)):
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                loss = model(**batch).loss
                loss.backward()
                with watch.step(loss, batch) if watch else nullcontext():
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                optimizer.zero_grad()
                if wandb_run and step % 30 == 0:
                    wandb_run.log({"loss": loss.item()}, step=step)
        if wandb_run:
            wandb_run.finish()

    return run


def _wandb_watch(model: torch.nn.Module, folder: Path):
    import wandb

    run = wandb.init(project="overhead", mode="offline", dir=str(folder))
    run.watch(model, log="all", log_freq=30)
    return run


def trainer(watching: str) -> Program:
    def run(folder: Path, steps: int, device: str) -> None:
        rows = random_rows(steps)
        callback = WatchCallback(folder / "watched", labels=labels_of(rows))
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-4,
            report_to="none",
            save_strategy="no",
            logging_steps=30,
            disable_tqdm=True,
            use_cpu=device == "cpu",
        )
        callbacks = [callback] if watching == "bertmon" else []
        Trainer(model=build_model(), args=arguments, train_dataset=rows, callbacks=callbacks).train()

    return run


def lightning(watching: str) -> Program:
    """watching: none, bertmon or norms (Lightning's own grad_norm, every 30 steps)."""
    import lightning.pytorch as pl
    from lightning.pytorch.utilities import grad_norm

    from bertmon.integrations.lightning import WatchCallback as LightningCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = build_model()

        def training_step(self, batch, index):
            return self.model(**batch).loss

        def on_before_optimizer_step(self, optimizer) -> None:
            if watching == "norms" and self.global_step % 30 == 0:
                self.log_dict(grad_norm(self.model, norm_type=2))

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-4, fused=False)

    def run(folder: Path, steps: int, device: str) -> None:
        rows = random_rows(steps)
        callbacks = [LightningCallback(folder / "watched", labels=labels_of(rows))] if watching == "bertmon" else []
        pl.Trainer(
            accelerator="cpu" if device == "cpu" else "gpu",
            devices=1,
            max_steps=steps,
            gradient_clip_val=1.0,
            logger=pl.loggers.CSVLogger(folder),
            log_every_n_steps=30,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
        ).fit(Module(), DataLoader(rows, batch_size=BATCH))

    return run


PROGRAMS: dict[str, tuple[str, Callable[[], Program]]] = {
    "plain loop": ("plain loop", lambda: plain_loop("none")),
    "plain loop, Watch": ("plain loop", lambda: plain_loop("bertmon")),
    'plain loop, wandb.watch(log="all", log_freq=30)': ("plain loop", lambda: plain_loop("wandb")),
    "Trainer": ("Trainer", lambda: trainer("none")),
    "Trainer, WatchCallback": ("Trainer", lambda: trainer("bertmon")),
    "Lightning": ("Lightning", lambda: lightning("none")),
    "Lightning, WatchCallback": ("Lightning", lambda: lightning("bertmon")),
    "Lightning, its grad_norm every 30 steps": ("Lightning", lambda: lightning("norms")),
}
"""Each with the program that it is compared with, and a function that builds it."""


def measure(names: list[str], steps: int, turns: int, device: str) -> dict[str, list[Cost]]:
    """The cost of each turn, by program; a turn runs all programs one after another."""
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    for turn in range(turns + 1):
        for name in names:
            program = PROGRAMS[name][1]()
            with tempfile.TemporaryDirectory() as folder:
                begin = Cost(time.perf_counter(), cpu_seconds())
                program(Path(folder), steps if turn else min(steps, 31), device)
                if device != "cpu":
                    torch.cuda.synchronize()
                if turn:
                    costs[name].append(Cost(time.perf_counter() - begin.wall, cpu_seconds() - begin.cpu))
        if turn:
            print(f"\nAfter turn {turn} of {turns}:\n\n{table(costs, steps)}", flush=True)
    return costs


def cpu_seconds() -> float:
    """CPU time of this process and all its descendants, including those that have ended."""
    current = psutil.Process()
    return sum(sum(process.cpu_times()[:4]) for process in [current, *current.children(recursive=True)])


def table(costs: dict[str, list[Cost]], steps: int) -> str:
    lines = [
        "| program | wall s | CPU s | CPU ms a step | wall, of the same without watching | CPU, of the same |",
        "|---|---|---|---|---|---|",
    ]
    for name, own in costs.items():
        pairs = list(zip(own, costs[PROGRAMS[name][0]], strict=True))
        wall, cpu = statistics.median(run.wall for run in own), statistics.median(run.cpu for run in own)
        ratios = ([run.wall / other.wall for run, other in pairs], [run.cpu / other.cpu for run, other in pairs])
        cells = " | ".join(f"{statistics.median(each):.3f} ({min(each):.3f} to {max(each):.3f})" for each in ratios)
        lines.append(f"| {name} | {wall:.2f} | {cpu:.2f} | {1000 * cpu / steps:.1f} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    warnings.simplefilter("ignore")  # Lightning's
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformers", "lightning", "wandb"))
    print(f"{environment.describe()}, {versions}; {options.steps} steps of {BATCH} x {LENGTH} tokens")
    measure(list(PROGRAMS), options.steps, options.turns, options.device)
