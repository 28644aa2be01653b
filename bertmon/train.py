"""fit() and evaluate(): the loop. Knows when things happen, never how.

Step s, counted from 0, is the update from the weights after s updates to those after s + 1. loss/train and
learning_rate of step s stand at s; an evaluation stands at the number of updates that its weights have had.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from bertmon import schedule
from bertmon.batches import Batch, Batches
from bertmon.config import RunConfig
from bertmon.monitor.watch import Watch
from bertmon.step import forward_backward, logits

log = logging.getLogger(__name__)

Record = Callable[[int, Mapping[str, float]], None]
"""Takes scalars by tag, with their step."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics on the test split, in eval mode, of the weights after `step` updates."""

    step: int
    loss: float  # mean cross-entropy
    accuracy: float  # in [0, 1]


@dataclass(slots=True)
class Outcome:
    """What training has come to so far."""

    status: str = "ok"  # or "diverged": a loss, of training or test, became infinite or nan, and training ended there
    steps: int = 0  # updates done
    evaluations: list[Evaluation] = field(default_factory=list)
    train_seconds: float = 0.0  # without the evaluations
    eval_seconds: float = 0.0


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Batches,
    test: Batches,
    config: RunConfig,
    *,
    watch: Watch | None,
    record: Record,
    outcome: Outcome,
    name: str,
) -> None:
    """Train for config.train.epochs, telling `outcome` as it goes; `name` heads the progress bar.

    Leaves the model in train mode.
    """
    total_steps = config.train.epochs * len(train)
    running = _RunningLoss(next(model.parameters()).device)
    started = time.perf_counter()

    with _progress(total_steps, name) as bar, logging_redirect_tqdm([logging.getLogger()]):
        for step, batch in enumerate(_all_epochs(train, config)):
            lr = config.optimizer.lr * schedule.factor(
                step,
                shape=config.schedule.shape.value,
                warmup_frac=config.schedule.warmup_frac,
                total_steps=total_steps,
            )
            for group in optimizer.param_groups:
                group["lr"] = lr
            running.add(forward_backward(model, batch, config.train.precision))
            with watch.update(step, lr) if watch else nullcontext():
                if config.train.clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), config.train.clip)
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            outcome.steps = step + 1
            ends = outcome.steps == total_steps
            if ends or step % config.train.log_every == 0:
                loss = running.take()
                record(step, {"loss/train": loss, "learning_rate": lr})
                bar.set_postfix(_shown(loss, lr, outcome), refresh=False)
                if not math.isfinite(loss):
                    outcome.status, ends = "diverged", True
            bar.update()

            if ends or _evaluation_due(outcome.steps, len(train), config.train.eval_every):
                paused = time.perf_counter()
                evaluation = evaluate(model, test, config, step=outcome.steps)
                outcome.evaluations.append(evaluation)
                outcome.eval_seconds += time.perf_counter() - paused
                record(outcome.steps, {"loss/test": evaluation.loss, "accuracy/test": evaluation.accuracy})
                log.info(
                    f"step {outcome.steps} of {total_steps}: "
                    f"loss/test {evaluation.loss:.4f}, accuracy/test {evaluation.accuracy:.1%}"
                )
                if not math.isfinite(evaluation.loss):
                    outcome.status, ends = "diverged", True
            outcome.train_seconds = time.perf_counter() - started - outcome.eval_seconds
            if ends:
                break
    if outcome.status == "diverged":
        log.error(f"step {step}: the loss is not finite any more, training ended here")


def _all_epochs(train: Batches, config: RunConfig) -> Iterator[Batch]:
    for epoch in range(config.train.epochs):
        yield from train.shuffled(config.seed, epoch)


def _evaluation_due(steps: int, steps_per_epoch: int, every: int | None) -> bool:
    return steps % steps_per_epoch == 0 or (every is not None and steps % every == 0)


@torch.no_grad()
def evaluate(model: nn.Module, test: Batches, config: RunConfig, *, step: int) -> Evaluation:
    """Mean loss and accuracy over all texts of `test`; the model is in eval mode meanwhile and in train mode after."""
    model.eval()
    loss = torch.zeros((), device=next(model.parameters()).device)
    correct = torch.zeros_like(loss)
    count = 0
    for batch in tqdm(test.by_length(), total=len(test), desc="evaluating", leave=False, disable=None, position=1):
        scores = logits(model, batch, config.train.precision)
        loss += nn.functional.cross_entropy(scores, batch.labels, reduction="sum")
        correct += (scores.argmax(dim=1) == batch.labels).sum()
        count += len(batch.labels)
    model.train()
    return Evaluation(step, loss.item() / count, correct.item() / count)


class _RunningLoss:
    """Mean of the losses since it was last taken, summed on the device so that a step does not wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._sum = torch.zeros((), device=device)
        self._count = 0

    def add(self, loss: Tensor) -> None:
        self._sum += loss
        self._count += 1

    def take(self) -> float:
        mean = self._sum.item() / self._count  # waits for the device
        self._sum.zero_()
        self._count = 0
        return mean


def _progress(total: int, name: str) -> AbstractContextManager["tqdm[None]"]:
    """A bar on a terminal, nothing elsewhere."""
    bar: AbstractContextManager[tqdm[None]] = tqdm(
        total=total, desc=name, unit="step", disable=None, dynamic_ncols=True
    )
    return bar


def _shown(loss: float, lr: float, outcome: Outcome) -> dict[str, str]:
    shown = {"loss": f"{loss:.3f}", "lr": f"{lr:.1e}"}
    if outcome.evaluations:
        shown["accuracy"] = f"{outcome.evaluations[-1].accuracy:.1%}"
    return shown
