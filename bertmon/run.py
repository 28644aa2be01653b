"""The run function: the only assembler. `python -m bertmon.run` and the console script `bertmon` start here."""

import functools
import logging
import math
import os
import random
import shlex
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf

from bertmon import config, data, distributed, model, optimizer, sanitize
from bertmon import result as result_file
from bertmon.compare import report, results, summary
from bertmon.config import RunConfig
from bertmon.data import LazyTexts, batches, tokenize
from bertmon.launch import preflight, run_dirs
from bertmon.monitor.diagnosis import Diagnosis
from bertmon.monitor.history import HISTORY_FILE, History
from bertmon.monitor.monitor import Monitor, subsample
from bertmon.monitor.tensorboard import RunWriter
from bertmon.storage import atomic_write
from bertmon.training import checkpoint, step, trainer
from bertmon.training.checkpoint import Checkpoint

log = logging.getLogger(__name__)

config.register()
preflight.register_with_hydra()


def run_training(settings: RunConfig, folder: Path, *, name: str, differs: Mapping[str, str] | None = None) -> float:
    """Train and watch one model; everything it leaves lies in `folder`. Returns what it is worth to a sweeper: the last
    test accuracy, in [0, 1]; of a run that was stopped or diverged at most what guessing gives.

    name: heads the progress bar and the log's lines. differs: the overrides that tell this run from its sweep's others;
    they and the seed are the columns of TensorBoard's HPARAMS table.
    With settings.resume a run that has ended there is left as it is, and one that was broken off goes on. Of several
    processes the first one alone writes.
    """
    if settings.resume and (ended := result_file.read_finished(folder)):
        accuracy = float(ended["metrics"]["final"]["accuracy"])
        log.info(f"{name}: has ended before ({ended['status']}, accuracy/test {accuracy:.1%}), left as it is")
        return _worth(str(ended["status"]), accuracy, float(ended["data"]["majority"]))
    with ExitStack() as stack:
        home = folder if distributed.rank() == 0 else Path(stack.enter_context(TemporaryDirectory()))
        result = stack.enter_context(result_file.recording(home, again=settings.resume is not None))
        columns = {key: _setting(settings, key, given) for key, given in (differs or {}).items()}
        result |= {"experiment": settings.experiment, "seed": settings.seed, "differs": columns}
        result["settings"] = asdict(settings)
        kept = _kept(folder, settings) if home is folder else None
        if distributed.broadcast(kept is not None):
            kept = kept or Checkpoint(folder / checkpoint.CHECKPOINT_FILE)
        rewind = kept.about["events"] if kept else {}
        draw = settings.monitor.figures and home is folder
        writer = stack.enter_context(RunWriter(home, draw=draw, rewind=rewind))
        return _run(settings, home, name, result, writer, kept)


def _run(
    settings: RunConfig, folder: Path, name: str, result: dict[str, Any], writer: RunWriter, kept: Checkpoint | None
) -> float:
    """As `run`, telling `result` and `writer` as it goes, from the checkpoint that was kept if there is one."""
    device = step.resolve_device(settings.device)
    step.set_determinism(settings.train.deterministic)
    corpus, parts = build_task(settings, device)
    history = History(trainer.plan_run(settings, len(parts.train), corpus.train.label_entropy()))
    outcome = trainer.TrainState()
    result |= {"device": str(device), "processes": distributed.world_size(), "data": _described(corpus)}
    result["parameters"] = sum(parameter.numel() for parameter in parts.classifier.parameters())
    if kept:
        if kept.about["fingerprint"] != corpus.fingerprint():
            raise errors.InputError(f"{folder}: the texts or labels are not those that this run was begun with.")
        history = History.from_bytes(kept.blob("history"))
        outcome = trainer.TrainState.from_dict(kept.about["outcome"])
        result["seconds_before"] = outcome.train_seconds + outcome.eval_seconds
    else:
        writer.text("config", OmegaConf.to_yaml(OmegaConf.structured(settings)))
    log.info(
        f"{name}: {len(corpus.train)} texts to train on, {len(corpus.test)} to test on, "
        f"{result['parameters'] / 1e6:.1f} M parameters on {device}"
        + (f"; goes on at step {outcome.steps} of {len(history.plan)}" if kept else "")
    )
    observer = _observer(settings, parts.classifier, history, writer)
    if kept:
        if observer:
            observer.diagnosis = Diagnosis.from_dict(kept.about["diagnosis"])
        kept.restore(parts.classifier, parts.optimizer)
    if distributed.rank():  # dropout of its own
        torch.manual_seed(settings.seed + 1_000_003 * distributed.rank() + outcome.steps)

    def keep() -> None:
        if distributed.rank():
            return
        about = {
            "settings": config.run_identity(asdict(settings)),
            "fingerprint": corpus.fingerprint(),
            "outcome": asdict(outcome),
            "diagnosis": asdict(observer.diagnosis) if observer else None,
            "events": writer.positions(),
        }
        path = folder / checkpoint.CHECKPOINT_FILE
        try:
            checkpoint.save(path, parts.classifier, parts.optimizer, about, history=history.to_bytes())
        except OSError as error:  # training is worth more than the chance to go on with it
            log.error(f"step {outcome.steps}: {path} could not be written, the last one stands: {error}")

    keeps = settings.train.checkpoint_every is not None or settings.train.checkpoint_minutes is not None
    try:
        trainer.fit(
            parts,
            settings,
            history,
            observer=observer,
            record=writer.scalars,
            outcome=outcome,
            name=name,
            keep=keep if keeps else None,
        )
    finally:
        result |= _summarized(outcome) | {"steps_planned": len(history.plan)} | _judged(observer)
        with errors.storage_errors(folder / HISTORY_FILE):
            atomic_write(folder / HISTORY_FILE, history.to_bytes())

    final = outcome.evaluations[-1]
    columns = {**result["differs"], "seed": settings.seed}
    if observer:
        told = observer.diagnosis
        columns |= {"verdict": told.verdict, "verdict_step": told.since_step, "findings": told.findings_text()}
    writer.hparams(columns, {"accuracy/test": final.accuracy, "loss/test": final.loss})
    result["status"] = outcome.status
    (folder / checkpoint.CHECKPOINT_FILE).unlink(missing_ok=True)
    verdict = f" ({observer.diagnosis.verdict} since step {observer.diagnosis.since_step})" if observer else ""
    verdict = verdict.replace(f"({outcome.status} since", "(since")
    saved = len(history.plan) - outcome.steps if outcome.status == "stopped" else 0
    log.info(
        f"{name}: {outcome.status}{verdict}, accuracy/test {final.accuracy:.1%} "
        f"(the most frequent class alone: {corpus.majority_share():.1%}), {outcome.train_seconds:.0f} s of training"
        + (f", {saved} of {len(history.plan)} steps saved" if saved else "")
    )
    return _worth(outcome.status, final.accuracy, corpus.majority_share())


def _worth(status: str, accuracy: float, majority: float) -> float:
    return accuracy if status == "ok" else min(accuracy, majority)


def _kept(folder: Path, settings: RunConfig) -> Checkpoint | None:
    """The checkpoint that a run goes on from; None where there is none. A damaged one is told, and set aside."""
    if settings.resume is None:
        return None
    path = folder / checkpoint.CHECKPOINT_FILE
    try:
        kept = Checkpoint(path)
    except FileNotFoundError:
        return None
    except checkpoint.CorruptCheckpointError as error:
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        log.warning(f"{error} It is now {aside.name}, and the run begins anew.")
        return None
    config.require_same_run(config.run_identity(asdict(settings)), kept.about["settings"], folder)
    return kept


def build_task(settings: RunConfig, device: torch.device) -> tuple[data.Corpus, trainer.Task]:
    """Texts to batches, and the model that fits them, from the run's seed. Raises InputError."""
    seed_everything(settings.seed)
    cache = settings.cache_path()
    corpus = data.load_corpus(settings.data, cache)
    vocabulary = tokenize.load_tokenizer(settings.model, corpus.train.texts, cache)
    classifier = model.build_model(
        settings.model,
        label_names=corpus.label_names,
        vocab_size=vocabulary.size,
        pad_id=vocabulary.pad_id,
        max_length=settings.data.max_length,
    ).to(device)

    def batched(split: data.Split, batch_size: int, *, streams: bool) -> batches.BatchLoader:
        return batches.BatchLoader(
            tokenize.tokenize_lazily(vocabulary, split.texts.take, settings.data.max_length)
            if streams and isinstance(split.texts, LazyTexts)
            else tokenize.tokenize(vocabulary, split.texts, settings.data.max_length, cache),
            split.labels,
            batch_size=batch_size,
            bucket_lengths=batches.bucket_lengths(settings.data.max_length, settings.data.bucket_lengths),
            pad_id=vocabulary.pad_id,
            device=device,
        )

    return corpus, trainer.Task(
        classifier=classifier,
        optimizer=optimizer.build_optimizer(settings.optimizer, classifier.parameters()),
        train=batched(corpus.train, settings.train.batch_size, streams=True),
        test=batched(corpus.test, settings.train.eval_batch_size, streams=False),  # it needs all lengths beforehand
    )


def _summarized(outcome: trainer.TrainState) -> dict[str, object]:
    evaluations = [asdict(evaluation) for evaluation in outcome.evaluations]
    told = [
        evaluation for evaluation in evaluations if math.isfinite(evaluation["loss"])
    ]  # else there is no best class
    best = max(told, key=lambda evaluation: evaluation["accuracy"], default=None)
    return {
        "steps": outcome.steps,
        "metrics": {"final": evaluations[-1], "best": best} if evaluations else {},
        "evaluations": evaluations,
        "timings": {f"{part}_seconds": getattr(outcome, f"{part}_seconds") for part in ("train", "eval", "compile")},
    }


def _judged(observer: Monitor | None) -> dict[str, object]:
    """The verdict for result.json; null for a run that was not watched."""
    if observer is None:
        return dict.fromkeys(("verdict", "verdict_step", "findings", "cause", "advice"))
    told = asdict(observer.diagnosis)
    return {"verdict": told.pop("verdict"), "verdict_step": told.pop("step"), **told}


def _described(corpus: data.Corpus) -> dict[str, object]:
    return {
        "fingerprint": corpus.fingerprint(),
        "train_texts": len(corpus.train),
        "test_texts": len(corpus.test),
        "label_names": list(corpus.label_names),
        "majority": corpus.majority_share(),
    }


def seed_everything(seed: int) -> None:
    """Python's, numpy's and torch's global random states, on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _observer(settings: RunConfig, classifier: torch.nn.Module, history: History, writer: RunWriter) -> Monitor | None:
    if not settings.monitor.enabled:
        return None
    layers = model.named_weights(classifier, biases=settings.monitor.include_biases)
    kept = subsample(list(layers), settings.monitor.skip_prob)
    return Monitor({label: layers[label] for label in kept}, history, settings.monitor, writer)


def _setting(settings: RunConfig, key: str, given: str) -> object:
    """The value at a dotted key; for a whole group, such as `model`, the name of the choice that was given."""
    value: object = functools.reduce(getattr, key.split("."), settings)
    return given if is_dataclass(value) else value


@hydra.main(version_base="1.3", config_path="pkg://bertmon.conf", config_name="config")
def _task(composed: DictConfig) -> float:
    sanitize.sanitize_logs()
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    settings = config.from_hydra(composed)
    name, start = str(job.sweep.subdir), run_dirs.sweep_dir_of(folder, str(job.sweep.subdir))
    differs = run_dirs.swept_overrides(job.overrides.task, job.callbacks["bertmon"]["swept"])
    if distributed.rank() == 0:
        _say_progress(start, 0 if OmegaConf.is_missing(job.job, "num") else job.job.num)
    try:
        with preflight.launcher_context(job, name):
            return run_training(settings, folder, name=name, differs=differs)
    except errors.StorageError as error:
        kept, again = folder / checkpoint.CHECKPOINT_FILE, shlex.join(["python", "-m", "bertmon", "resume", str(start)])
        stands = f" {kept} stands." if kept.exists() else ""
        sys.exit(f"{error}{stands} When it can be written again, go on: {again}")
    except errors.InputError:
        raise
    except Exception as error:  # its traceback is on the console and in run.log already
        raise CompactHydraException(f"{folder} failed: {sanitize.sanitize_line(error)}") from None
    finally:
        ended = isinstance(sys.exc_info()[1], KeyboardInterrupt | SystemExit)  # the launch writes the last one
        if not ended and distributed.rank() == 0:
            report.refresh_report(start)


def _say_progress(start: Path, number: int) -> None:
    """One line on how far the sweep is when its run of that number begins. What goes wrong with it harms no run."""
    if number % (1 + len(result_file.read_sweep_file(start).get("runs", [])) // 500):
        return  # it takes a look at all runs: of a large sweep, only some of them do that
    try:
        if progress := summary.progress_line(results.read_sweep([start])):
            log.info(progress)
    except Exception:
        log.exception(f"{start}: no word on the progress of the sweep")


def _terminate(number: int, frame: object) -> None:
    raise result_file.Terminated(128 + number)


def main() -> None:
    """The command line."""
    for each in (signal.SIGTERM, signal.SIGUSR1):  # SIGUSR1: what batch scripts ask Slurm for before the time is over
        signal.signal(each, _terminate)
    distributed.init()
    preflight.sync_ranks()
    # Hydra's parser takes no override behind a flag that has others before it: flags first, the order kept.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda a: not a.startswith("-") and ("=" in a or a[:1] in ("~", "+")))
    shown = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what it would print, tracebacks and control characters alike
    try:
        preflight.check_argv(sys.argv[1:])
        _task()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if shown:
            raise
        print(preflight.format_error(error), file=sys.stderr)
        sys.exit(1)
    finally:
        if shown is None:
            del os.environ["HYDRA_FULL_ERROR"]


if __name__ == "__main__":
    from bertmon.run import main as imported  # a worker finds the functions of this module by its name alone

    imported()
