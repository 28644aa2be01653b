"""fit() and evaluate(): the loop. Knows when things happen, never how.

Step s, counted from 0, is the update from the weights after s updates to those after s + 1. What is recorded of step s
stands at s; an evaluation stands at the number of updates that its weights have had.
"""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from bertmon import distributed, optimizer, schedule
from bertmon.config import OnDoomed, RunConfig
from bertmon.data.batches import Batch, BatchLoader
from bertmon.monitor.diagnosis import divergence
from bertmon.monitor.history import History, RunPlan
from bertmon.monitor.monitor import Monitor, PendingScalars
from bertmon.result import Terminated
from bertmon.training.step import GuardedUpdate, LogitProbe, compute_logits, forward_backward, maybe_compile

log = logging.getLogger(__name__)

LogScalars = Callable[[int, Mapping[str, float]], None]
"""Takes scalars by tag, with their step."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a run is made of, ready to train."""

    classifier: nn.Module
    optimizer: torch.optim.Optimizer
    train: BatchLoader
    test: BatchLoader


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Metrics on the test split, in eval mode, of the weights after `step` updates."""

    step: int
    loss: float  # mean cross-entropy
    accuracy: float  # in [0, 1]


@dataclass(slots=True)
class TrainState:
    """What training has come to so far."""

    status: str = "ok"  # or "diverged": a loss or gradient became infinite or nan; or "stopped": the run was doomed
    steps: int = 0  # updates done
    evaluations: list[EvalResult] = field(default_factory=list)
    train_seconds: float = 0.0  # without the evaluations
    eval_seconds: float = 0.0
    compile_seconds: float = 0.0  # of the training: passes of a shape that had not come before, with train.compile
    logged_steps: int = 0  # those whose scalars have been recorded
    next_probe_step: int = 0  # step from which on the spread of the logits may be measured again

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> "TrainState":
        """What dataclasses.asdict made."""
        return cls(**{**told, "evaluations": [EvalResult(**each) for each in told["evaluations"]]})


def plan_run(config: RunConfig, steps_per_epoch: int, chance_loss: float) -> RunPlan:
    """What every step will use, and what the loss is to be measured against."""
    total_steps = config.train.epochs * steps_per_epoch
    factors = [
        schedule.lr_factor(
            step, shape=config.schedule.decay.value, warmup_frac=config.schedule.warmup_frac, total_steps=total_steps
        )
        for step in range(total_steps)
    ]
    lr = config.optimizer.lr * np.array(factors)
    corrections = [optimizer.bias_correction_gain(config.optimizer, step) for step in range(total_steps)]
    return RunPlan(
        lr=lr,
        effective_lr=lr * np.array(corrections),
        chance_loss=chance_loss,
        warmup_frac=config.schedule.warmup_frac,
        bias_correction=config.optimizer.bias_correction,
    )


def fit(
    parts: Task,
    config: RunConfig,
    history: History,
    *,
    observer: Monitor | None,
    record: LogScalars,
    outcome: TrainState,
    name: str,
    keep: Callable[[], None] | None = None,
) -> None:
    """Train for config.train.epochs, telling `history` and `outcome` as it goes; `name` heads the progress bar.

    Goes on where history and outcome stand. keep: writes a checkpoint; called between two steps, when one is due and
    when SIGINT or SIGTERM has come. That signal ends training then, by the exception that it would have raised.
    Leaves the model in train mode.
    """
    model, plan = parts.classifier, history.plan
    replica = distributed.wrap_ddp(maybe_compile(model, config.train.compile))
    shapes: set[torch.Size] = set()  # that have been compiled
    updater = GuardedUpdate(model, parts.optimizer, config.train.max_grad_norm)
    probe = LogitProbe(model, config.train.precision, outcome.next_probe_step)
    numbers, first = PendingScalars(), len(history.losses)
    started = time.perf_counter() - outcome.train_seconds - outcome.eval_seconds
    kept = time.monotonic()

    with (
        _progress(len(plan), first, name) as bar,
        logging_redirect_tqdm([logging.getLogger()]),
        deferred_signals(keep is not None) as signals,
    ):
        for step, batch in enumerate(_all_epochs(parts.train, config, first), first):
            watched = observer is not None and observer.due(step)
            begun = time.perf_counter()
            loss, scores = forward_backward(replica, batch, config.train.precision)
            if config.train.compile and batch.input_ids.shape not in shapes:
                shapes.add(batch.input_ids.shape)
                outcome.compile_seconds += time.perf_counter() - begun
            if observer and watched:
                observer.set_logit_std(probe.logit_std(step, batch, scores))
            with observer.update(step) if observer and watched else nullcontext():
                norm = updater.update(loss, float(plan.lr[step]))
            numbers.add(loss, norm)
            bar.update()

            ends = step + 1 == len(plan)
            logged = ends or step % config.train.log_every == 0
            evaluated = (step + 1) % len(parts.train) == 0 or _every(step + 1, config.train.eval_every)
            noted = logged or evaluated or watched or _every(step + 1, config.train.checkpoint_every)
            asked = bool(signals) or (keep is not None and _checkpoint_overdue(kept, config))
            if not noted and (not asked or distributed.world_size() > 1):
                continue

            finite = numbers.flush_to(history)  # waits for the device
            done = len(history.losses)
            outcome.steps = done if finite else done - 1
            if observer and (watched or not finite):
                observer.flush()
            if not finite:
                outcome.status = "diverged"
                if observer is None:
                    log.error(f"step {done - 1}: the loss or the gradient is not finite any more, training ends here")
            elif (
                observer
                and observer.diagnosis.verdict.doomed
                and config.monitor.on_doomed is OnDoomed.stop
                and not ends
            ):
                outcome.status = "stopped"
            ends = ends or outcome.status != "ok"
            if ends or logged:
                points = history.mean_since(outcome.logged_steps, config.train.max_grad_norm)
                record(done - 1, points)
                outcome.logged_steps = done
                bar.set_postfix(_progress_postfix(points, outcome), refresh=False)
            if ends or evaluated:
                paused = time.perf_counter()
                evaluation = evaluate(model, parts.test, config, step=outcome.steps)
                outcome.evaluations.append(evaluation)
                outcome.eval_seconds += time.perf_counter() - paused
                record(outcome.steps, {"loss/test": evaluation.loss, "accuracy/test": evaluation.accuracy})
                log.info(
                    f"step {outcome.steps} of {len(plan)}: "
                    f"loss/test {evaluation.loss:.4f}, accuracy/test {evaluation.accuracy:.1%}"
                )
                if finite and not math.isfinite(evaluation.loss):
                    outcome.status, ends = "diverged", True
                    if observer:
                        observer.set_diagnosis(divergence(plan, "loss/test", evaluation.loss, outcome.steps))
            outcome.train_seconds = time.perf_counter() - started - outcome.eval_seconds
            if ends:
                break
            due = _every(step + 1, config.train.checkpoint_every) or _checkpoint_overdue(kept, config)
            due, ending = distributed.broadcast((due, bool(signals)))  # processes have clocks and signals of their own
            if keep and (due or ending):
                outcome.next_probe_step = probe.next_step
                keep()
                kept = time.monotonic()
            if ending:
                raise signals[0] if signals else Terminated(128 + signal.SIGTERM)


def _all_epochs(train: BatchLoader, config: RunConfig, first: int) -> Iterator[Batch]:
    """The batches of all steps from the `first` on."""
    begun, batch = divmod(first, len(train))
    for epoch in range(begun, config.train.epochs):
        yield from train.epoch_batches(config.seed, epoch, batch if epoch == begun else 0)


def _every(steps: int, every: int | None) -> bool:
    return every is not None and steps % every == 0


def _checkpoint_overdue(kept: float, config: RunConfig) -> bool:
    minutes = config.train.checkpoint_minutes
    return minutes is not None and time.monotonic() - kept >= 60 * minutes


@contextmanager
def deferred_signals(wanted: bool) -> Iterator[list[BaseException]]:
    """Inside, the first SIGINT or SIGTERM waits in the list that is yielded, as its exception; a second one acts.

    So do SIGUSR1 and SIGUSR2 where they have a handler; theirs comes first: whoever has set it wants to go on later.
    Only the main thread can have that; in others, and unless `wanted`, signals do what they did before.
    """
    came: list[BaseException] = []
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield came
        return
    again = tuple(number for number in (signal.SIGUSR1, signal.SIGUSR2) if callable(signal.getsignal(number)))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, *again)}

    def note(number: int, frame: object) -> None:
        if not came:
            log.info("ending after this step, with a checkpoint; once more ends at once")
        came.insert(
            0 if number in again else len(came),
            KeyboardInterrupt() if number == signal.SIGINT else Terminated(128 + number),
        )
        signal.signal(number, before[signal.Signals(number)])  # Slurm and joblib send two different ones

    for number in before:
        signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@torch.no_grad()
def evaluate(model: nn.Module, test: BatchLoader, config: RunConfig, *, step: int) -> EvalResult:
    """Mean loss and accuracy over all texts of `test`; the model is in eval mode meanwhile and in train mode after."""
    model.eval()
    loss = torch.zeros((), device=next(model.parameters()).device)
    correct = torch.zeros_like(loss)
    count = 0
    for batch in tqdm(
        test.sorted_by_length(), total=len(test), desc="evaluating", leave=False, disable=_no_bar(), position=1
    ):
        own = distributed.local_count(batch.global_size)
        scores, labels = compute_logits(model, batch, config.train.precision)[:own], batch.labels[:own]
        loss += nn.functional.cross_entropy(scores, labels, reduction="sum")
        correct += (scores.argmax(dim=1) == labels).sum()
        count += batch.global_size
    model.train()
    return EvalResult(
        step, distributed.all_reduce_sum(loss).item() / count, distributed.all_reduce_sum(correct).item() / count
    )


def _progress(total: int, done: int, name: str) -> AbstractContextManager["tqdm[None]"]:
    """A bar on a terminal, nothing elsewhere."""
    bar: AbstractContextManager[tqdm[None]] = tqdm(
        total=total, initial=done, desc=name, unit="step", disable=_no_bar(), dynamic_ncols=True
    )
    return bar


def _no_bar() -> bool | None:
    """None leaves it to tqdm: a bar on a terminal alone. Its own $TQDM_DISABLE has no say beside that."""
    return True if "TQDM_DISABLE" in os.environ else None


def _progress_postfix(points: Mapping[str, float], outcome: TrainState) -> dict[str, str]:
    shown = {"loss": f"{points['loss/train']:.3f}", "lr": f"{points['learning_rate']:.1e}"}
    if outcome.evaluations:
        shown["accuracy"] = f"{outcome.evaluations[-1].accuracy:.1%}"
    return shown
