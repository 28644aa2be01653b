"""One run, from its config to its result: the place to start reading the code."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from bertmon import distributed
from bertmon.config import Init, OnBehind, RunConfig, SaveModel, require_same_run, run_identity
from bertmon.data import Corpus
from bertmon.errors import InputError, require, storage_errors
from bertmon.model import missing_features, save_model
from bertmon.monitor.behind import find_behind
from bertmon.monitor.history import HISTORY_FILE, History, RunPlan
from bertmon.monitor.monitor import Monitor
from bertmon.monitor.plan_check import MAX_STUDIED_LAYERS, MAX_STUDIED_WIDTH, check_plan
from bertmon.monitor.tensorboard import RunWriter
from bertmon.notation import format_percent
from bertmon.result import MODEL_DIR, RESULT_FILE, DataSummary, RunResult, recording
from bertmon.storage import atomic_write, remove_temporaries
from bertmon.training.checkpoint import (
    CHECKPOINT_FILE,
    Checkpoint,
    CheckpointMetadata,
    CorruptCheckpointError,
    save_checkpoint,
)
from bertmon.training.state import TrainState
from bertmon.training.step import resolve_device
from bertmon.training.sweep_runs import SweepRuns
from bertmon.training.task import Task, build_monitor, build_task, seed_dropout
from bertmon.training.trainer import FindBehind, Trainer

log = logging.getLogger(__name__)


def run_training(
    config: RunConfig, run_dir: Path, *, name: str, overrides: Mapping[str, str] | None = None
) -> RunResult:
    """Train and monitor one model; all its output is in `run_dir`.

    name: for the progress bar and log lines. overrides: those that distinguish this run from others of its sweep.
    TensorBoard's HPARAMS table has a column for each of them, or without any for each main setting, and for the seed.
    With config.resume, a run that has ended is skipped, and an interrupted one resumes from its checkpoint. Of several
    processes, only rank 0 writes. Raises InputError, and any exception of training.
    """
    if config.resume and (ended := _ended_before(run_dir, name)):
        return ended
    with _writable_dir(run_dir) as home, recording(home, resume=config.resume is not None) as result:
        result.experiment, result.seed, result.config = config.experiment, config.seed, asdict(config)
        result.metric = config.train.metric.value
        result.overrides = {key: _config_value(config, key, given) for key, given in (overrides or {}).items()}
        checkpoint = _find_checkpoint(run_dir, config)
        with RunWriter(
            home,
            draw=config.monitor.figures and home is run_dir,
            truncate_to=_event_positions(checkpoint, config),
        ) as writer:
            task = build_task(config, resolve_device(config.device))
            _describe(result, task)
            state, monitor = _start_or_resume(checkpoint, task, config, home, writer, name, result)
            del checkpoint  # its tensors take as much memory as the model and its optimizer
            trainer = _Hooks(config, task, state, monitor, writer, home, result, name).trainer()
            try:
                trainer.fit()
            finally:
                _fill(result, state, monitor, task)
                with storage_errors(home / HISTORY_FILE):
                    atomic_write(home / HISTORY_FILE, monitor.history.to_bytes())
            result.status = state.status
            writer.hparams(*_hparams(result, monitor.history.plan))
        log.info(_last_line(name, result))
    _clean_up(run_dir)  # after the result records that the run has ended
    return result


def _ended_before(run_dir: Path, name: str) -> RunResult | None:
    """The result of a run that has already ended and is not trained again; None for others."""
    ended = RunResult.read_ended(run_dir)
    if ended and ended.final:
        _clean_up(run_dir)
        accuracy = format_percent(ended.final.accuracy)
        log.info(f"{name}: already finished ({ended.status}, accuracy/test {accuracy}), skipped")
    return ended


def _clean_up(run_dir: Path) -> None:
    """Delete the checkpoint of a run that has ended, and what processes left that were killed while writing a file."""
    if distributed.rank() == 0:
        (run_dir / CHECKPOINT_FILE).unlink(missing_ok=True)
        for name in (CHECKPOINT_FILE, MODEL_DIR, RESULT_FILE, HISTORY_FILE):
            remove_temporaries(run_dir / name)


def _event_positions(checkpoint: Checkpoint | None, config: RunConfig) -> Mapping[str, Any] | None:
    """Positions to truncate TensorBoard's event files to. Empty for a run that resumes without a checkpoint: it starts
    over. None for a new run: event files in its folder belong to other runs."""
    if checkpoint is not None:
        return checkpoint.metadata.event_files
    return None if config.resume is None else {}


@contextmanager
def _writable_dir(run_dir: Path) -> Iterator[Path]:
    """The run's folder on rank 0, a temporary folder on the other ranks."""
    if distributed.rank() == 0:
        yield run_dir
    else:
        with TemporaryDirectory() as folder:
            yield Path(folder)


def _find_checkpoint(run_dir: Path, config: RunConfig) -> Checkpoint | None:
    """The checkpoint to resume from, if there is one. Rank 0 renames and reports a corrupt one."""
    if config.resume is None:
        return None
    path = run_dir / CHECKPOINT_FILE
    checkpoint = None
    if distributed.rank() == 0:
        try:
            checkpoint = Checkpoint(path)
        except FileNotFoundError:
            pass
        except CorruptCheckpointError as error:
            set_aside = path.with_suffix(".corrupt")
            path.replace(set_aside)
            log.warning(f"{error} Renamed it to {set_aside.name}; the run starts over.")
    if not distributed.broadcast(checkpoint is not None):
        return None
    checkpoint = checkpoint or Checkpoint(path)
    require_same_run(run_identity(asdict(config)), checkpoint.metadata.identity, run_dir)
    return checkpoint


def _start_or_resume(
    checkpoint: Checkpoint | None,
    task: Task,
    config: RunConfig,
    home: Path,
    writer: RunWriter,
    name: str,
    result: RunResult,
) -> tuple[TrainState, Monitor]:
    """A new state and monitor, or those of the checkpoint, whose weights and random states are restored."""
    sizes = f"{len(task.corpus.train)} texts to train on, {len(task.corpus.test)} to test on"
    summary = f"{name}: {sizes}, {_size(task.classifier)} on {result.device['type']}"
    if checkpoint is None:
        writer.text("config", OmegaConf.to_yaml(OmegaConf.structured(config)))
        log.info(summary)
        _log_first_lines(config, task)
        seed_dropout(config.seed, 0)
        return TrainState(), build_monitor(config, task, History(task.plan), writer, name=name)
    assert result.data is not None
    if checkpoint.metadata.fingerprint != result.data.fingerprint:
        raise InputError(
            f"{home}: the training data has changed since this run started. Restore it, or start a new run."
        )
    state = checkpoint.metadata.state
    result.previous_seconds = state.train_seconds + state.eval_seconds
    if (home / MODEL_DIR).is_dir():  # saved before the interruption; it may remain the best
        result.model_dir = MODEL_DIR
    log.info(f"{summary}; resuming at step {state.steps} of {len(task.plan)}")
    monitor = build_monitor(config, task, History.from_bytes(checkpoint.history), writer, name=name)
    monitor.load_state_dict(checkpoint.metadata.monitor)
    checkpoint.restore(task.classifier, task.optimizer)
    seed_dropout(config.seed, state.steps)
    return state, monitor


def _size(classifier: nn.Module) -> str:
    total = sum(parameter.numel() for parameter in classifier.parameters())
    frozen = sum(parameter.numel() for parameter in classifier.parameters() if not parameter.requires_grad)
    return f"{total / 1e6:.1f} M parameters" + (f", {frozen / 1e6:.1f} M of them frozen," if frozen else "")


def _log_first_lines(config: RunConfig, task: Task) -> None:
    """Log a description of the data, features missing with this model, and notes on the plan before the first step."""
    lines = list(task.description.lines)
    if config.monitor.enabled:
        adam, studied = config.optimizer, config.model.init is Init.random and _is_like_studied_models(task.classifier)
        lines += missing_features(task.classifier)
        lines += check_plan(task.plan, beta2=adam.beta2, weight_decay=adam.weight_decay, studied=studied)
    for line in lines:
        log.info(line, extra={"once": True})  # once on a sweep's console, but in each run.log
    for warning in task.description.warnings:
        log.warning(warning, extra={"once": True})


def _is_like_studied_models(classifier: nn.Module) -> bool:
    shape: Any = classifier.config
    layers, width = (getattr(shape, name, math.inf) for name in ("num_hidden_layers", "hidden_size"))
    return bool(shape.model_type == "bert" and layers <= MAX_STUDIED_LAYERS and width <= MAX_STUDIED_WIDTH)


def require_one_process(config: RunConfig) -> None:
    """Raise InputError if several processes would need to agree that the run is behind."""
    supported = distributed.world_size() == 1 or config.monitor.on_behind is not OnBehind.stop
    require(supported, "monitor.on_behind", config.monitor.on_behind, "ignore in several processes")


@dataclass(frozen=True, slots=True)
class _Hooks:
    """Hooks of the trainer: they write a checkpoint or the model, or compare the run with its sweep."""

    config: RunConfig
    task: Task
    state: TrainState
    monitor: Monitor
    writer: RunWriter
    home: Path
    result: RunResult
    name: str

    def trainer(self) -> Trainer:
        """The trainer, with the hooks that the config enables."""
        train = self.config.train
        checkpoints = train.checkpoint_every is not None or train.checkpoint_minutes is not None
        return Trainer(
            self.task,
            self.config,
            self.monitor,
            self.state,
            log_scalars=self.writer.scalars,
            save_checkpoint=self.save_checkpoint if checkpoints else None,
            save_model=self.save_model if train.save_model is not SaveModel.none else None,
            find_behind=self.find_behind() if self.config.monitor.on_behind is OnBehind.stop else None,
            name=self.name,
        )

    def find_behind(self) -> FindBehind:
        """A function that compares the run with the others of its sweep."""
        require_one_process(self.config)
        assert self.result.data is not None
        others = SweepRuns(self.home, self.result.data.fingerprint)
        return lambda history, diagnosis: find_behind(history, diagnosis, others.best_loss_reduction())

    def save_checkpoint(self) -> None:
        """Write a checkpoint. A failure is only logged, since training can continue without one."""
        if distributed.rank():
            return
        assert self.result.data is not None
        identity, fingerprint = run_identity(asdict(self.config)), self.result.data.fingerprint
        events, monitor = self.writer.positions(), self.monitor.state_dict()
        metadata = CheckpointMetadata(identity, fingerprint, self.state, monitor, events)
        path, history = self.home / CHECKPOINT_FILE, self.monitor.history.to_bytes()
        try:
            save_checkpoint(path, self.task.classifier, self.task.optimizer, metadata, history)
        except OSError as error:
            step = f"{self.name}: step {self.state.steps}"
            log.error(f"{step}: could not write {path} ({error}); the previous checkpoint is kept")

    def save_model(self) -> None:
        """Write the model. Raises StorageError."""
        if distributed.rank() == 0:
            save_model(self.task.classifier, self.task.tokenizer, self.home / MODEL_DIR, self.config.data.max_length)
        self.result.model_dir = MODEL_DIR


def _describe(result: RunResult, task: Task) -> None:
    """Record in `result` what is known before the first step."""
    device = task.device
    result.processes = distributed.world_size()
    result.parameters = sum(parameter.numel() for parameter in task.classifier.parameters())
    result.total_steps = len(task.plan)
    result.data = _data_summary(task.corpus)
    result.warnings = task.description.warnings
    result.device = {"type": device.type}
    if device.type == "cuda":
        result.device |= {
            "name": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "tf32": torch.get_float32_matmul_precision() != "highest",
        }
        torch.cuda.reset_peak_memory_stats(device)


def _data_summary(corpus: Corpus) -> DataSummary:
    return DataSummary(
        fingerprint=corpus.fingerprint(),
        train_texts=len(corpus.train),
        test_texts=len(corpus.test),
        label_names=corpus.label_names,
        majority_share=corpus.majority_share(),
        validation_texts=len(corpus.validation) if corpus.validation else 0,
    )


def _fill(result: RunResult, state: TrainState, monitor: Monitor, task: Task) -> None:
    """Record in `result` the progress of training so far."""
    result.steps, result.diagnosis = state.steps, monitor.diagnosis
    result.evaluations, result.validations = state.evaluations, state.validations
    result.timings = {f"{part}_seconds": getattr(state, f"{part}_seconds") for part in ("train", "eval", "compile")}
    if task.device.type == "cuda":
        result.device["max_memory_bytes"] = torch.cuda.max_memory_allocated(task.device)


def _hparams(result: RunResult, plan: RunPlan) -> tuple[dict[str, Any], dict[str, float], dict[str, float]]:
    """Columns of TensorBoard's HPARAMS table, its metrics that are also logged as scalars, and its other metrics."""
    assert result.final is not None
    columns: dict[str, Any] = {**(result.overrides or _main_settings(result)), "seed": result.seed}
    if result.diagnosis:
        columns |= {"verdict": result.diagnosis.verdict, "verdict_step": result.diagnosis.since_step}
    logged = {"accuracy/test": result.final.accuracy, "loss/test": result.final.loss}
    unlogged = {"peak_effective_lr": float(plan.effective_lr.max()), "did_not_learn": float(bool(result.did_not_learn))}
    return columns, logged, unlogged


def _main_settings(result: RunResult) -> dict[str, Any]:
    """Settings to compare a run by if it has no overrides: the most common ones and other non-default ones."""
    values, defaults = run_identity(result.config or {}), run_identity(asdict(RunConfig()))
    chosen = [key for key in values if key.startswith(("optimizer.", "schedule.")) and values[key] != defaults[key]]
    return {key: values[key] for key in dict.fromkeys([*_MAIN_SETTINGS, *chosen]) if values[key] is not None}


_MAIN_SETTINGS = (
    "model.name",
    "model.num_hidden_layers",
    "model.hidden_size",
    "data.max_length",
    "train.batch_size",
    "train.epochs",
    "optimizer.lr",
    "schedule.warmup_frac",
)


def _last_line(name: str, result: RunResult) -> str:
    """The outcome of the run, for the log."""
    assert result.final is not None
    assert result.data is not None
    outcome = [str(result.status)]
    if result.diagnosis:
        verdict, since = result.diagnosis.verdict, f"since step {result.diagnosis.since_step}"
        outcome.append(f"({since})" if str(verdict) == str(result.status) else f"({verdict} {since})")
    line = (
        f"{name}: {' '.join(outcome)}, accuracy/test {format_percent(result.final.accuracy)} "
        f"(majority class: {format_percent(result.data.majority_share)}), "
        f"{result.timings['train_seconds']:.0f} s of training"
    )
    return f"{line}, {result.saved_steps} of {result.total_steps} steps saved" if result.saved_steps else line


def _config_value(config: RunConfig, key: str, given: str) -> object:
    """The value at a dotted key; `given` for a config group, such as `model`, or an item of a list or mapping."""
    value: object = config
    for name in key.split("."):
        if not (is_dataclass(value) and hasattr(value, name)):
            return given  # also for a user-defined config group
        value = getattr(value, name)
    return given if is_dataclass(value) else value
