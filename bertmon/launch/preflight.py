"""Checks before the first run of a launch starts: every run's config, folders, data, model and device.

Hydra calls PreflightCheck before it starts anything. An error in any run of a sweep is reported as one message, before
anything is written.
"""

import dataclasses
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from bertmon import data, distributed, model
from bertmon.config import MAX_INT, Decay, RunConfig
from bertmon.data import tokenize
from bertmon.errors import InputError, require
from bertmon.launch import compose, final_summary, run_dirs, workers
from bertmon.launch.command_line import format_error
from bertmon.launch.hydra_setup import PLUGIN_EXTRAS
from bertmon.launch.log_file import NoRepeatedLines
from bertmon.launch.read_config import read_config
from bertmon.launch.run_names import quote_override
from bertmon.optimizer import lr_scales
from bertmon.sanitize import sanitize_logs, wrap_for
from bertmon.schedule import warmup_steps
from bertmon.training.class_weights import class_weights
from bertmon.training.plan import lr_factors, warmup_frac
from bertmon.training.run_training import require_one_process
from bertmon.training.step import require_compiler, resolve_device

_REMOTE_LAUNCHERS = ("submitit_slurm", "ray", "ray_aws")
"""Launchers whose runs can have other devices than this machine."""

_LONG_CHECK = 100  # runs; checking one takes a twelfth of a second


class PreflightCheck(Callback):
    """Hydra's callback: check the launch, create its folder, and exit with one message if anything is wrong."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._check(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._check(config)

    def _check(self, config: DictConfig) -> None:
        if distributed.rank():
            launch = compose.compose_runs(config)
            try:
                distributed.broadcast(None)  # create nothing before rank 0 has checked everything
            except RuntimeError:
                sys.exit(1)  # rank 0 has printed the error
            compose.with_overrides(config, launch.task_overrides, launch.hydra_overrides)
            return
        sanitize_logs()
        try:
            sweep_dir = start_launch(config, sys.argv[1:])
            distributed.broadcast(None)
        except (InputError, HydraException, OmegaConfBaseException) as error:
            sys.exit(format_error(error))
        except Exception:  # Hydra would turn a callback's exception into a warning and continue
            traceback.print_exc()
            sys.exit(1)
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # Ray would leave out lines that differ only in numbers
        if config.hydra.runtime.choices["hydra/launcher"] == "joblib":
            workers.drain_pool_on_signal(sweep_dir)
        final_summary.register(sweep_dir)


def start_launch(config: DictConfig, command: Sequence[str]) -> Path:
    """Check every run of a launch, create its folder and add the runs' overrides to `config`. Returns the folder.

    command: the launch's command-line arguments, for sweep.json.
    Raises InputError, HydraException and OmegaConfBaseException, before anything is written.
    """
    NoRepeatedLines.seen.clear()
    print(wrap_for(sys.stdout, _experiment_line(config)), flush=True)
    _check_plugins(config)
    if (count := compose.count_runs(config)) >= _LONG_CHECK:
        print(f"checking {count} runs before the first one starts, about {count / 12:.0f} s", flush=True)
    launch = compose.compose_runs(config)
    if not launch.runs:
        raise InputError("The sweep is empty: the glob matches no config.")
    if "name" in launch.swept:
        raise InputError("name: expected one name for the whole sweep, got several.")
    configs = [read_config(run.config) for run in launch.runs]
    sweep_dir = run_dirs.sweep_dir_of_launch(config)
    run_dirs.check_run_dirs(launch.runs, sweep_dir)
    devices = config.hydra.runtime.choices["hydra/launcher"] not in _REMOTE_LAUNCHERS
    corpora = check_configs(configs, devices=devices)
    for run, corpus in zip(launch.runs, corpora, strict=True):
        if run.run_dir and run.config.resume:
            run_dirs.check_same_data(run.run_dir, corpus.fingerprint())
    if launch.runs[0].run_dir is None and config.resume:
        run_dirs.check_same_search(sweep_dir, configs[0], launch.swept, corpora[0].fingerprint())
    if compose.experiment_choice(config) == "auto":  # a machine that resumes it must not choose again, either
        command = [*command, f"experiment={config.experiment}"]
    run_dirs.create_sweep_dir(sweep_dir, launch.runs, command)
    task_overrides = list(launch.task_overrides)
    if _can_restart_runs(config) and not config.resume:  # a run that is started again resumes
        task_overrides.append(f"resume={quote_override(sweep_dir)}")
    compose.with_overrides(config, task_overrides, launch.hydra_overrides)
    return sweep_dir


def check_configs(configs: Sequence[RunConfig], *, devices: bool = True) -> list[data.Corpus]:
    """Raise InputError for errors that can be detected without training: in devices, files, categories, models.

    Returns the corpus of each config. The corpora and vocabularies built here stay in the cache for the runs.
    devices: whether the runs use this machine's devices; only then are the devices checked.
    """
    for device, compiles in (
        dict.fromkeys((config.device, config.train.compile) for config in configs) if devices else ()
    ):
        resolved = resolve_device(device)
        if compiles:
            require_compiler(resolved.type)
    checked: list[tuple[object, data.Corpus, nn.Module]] = []
    corpora = []
    seen: set[str] = set()
    for config in configs:
        require_one_process(config)
        task = (config.data, config.model, config.cache_dir)
        earlier = next(((corpus, classifier) for other, corpus, classifier in checked if other == task), None)
        corpus, classifier = earlier or _check_task(config)
        if earlier is None:
            checked.append((task, corpus, classifier))
        lr_scales(config.optimizer, classifier)
        class_weights(config.train.class_weights, corpus.train.labels, corpus.label_names)
        _check_plan(config, len(corpus.train), seen)
        corpora.append(corpus)
    return corpora


def _check_plan(config: RunConfig, texts: int, seen: set[str]) -> None:
    """Raise InputError for a schedule that does not fit the run's steps, or for too many steps.

    Prints a note if two runs are identical because their warm-ups round to the same number of steps. seen: keys of
    earlier configs and schedules, updated in place.
    """
    total_steps = config.train.epochs * -(-texts // (config.train.batch_size * config.train.accumulate))
    if total_steps > MAX_INT:
        epochs = config.train.epochs
        raise InputError(f"train.epochs: expected at most {MAX_INT} steps, got {total_steps} in {epochs} epochs.")
    built_in = config.schedule.decay in (Decay.linear, Decay.cosine, Decay.constant)
    if not (built_in and config.schedule.function is None) and (key := f"{config.schedule} {total_steps}") not in seen:
        lr_factors(config.schedule, total_steps)
        seen.add(key)
    steps = warmup_steps(warmup_frac(config.schedule, total_steps), total_steps)
    normalized = dataclasses.replace(
        config, schedule=dataclasses.replace(config.schedule, warmup_frac=0.0, warmup_steps=steps)
    )
    if (key := repr(normalized)) in seen:
        count, frac = config.schedule.warmup_steps, config.schedule.warmup_frac
        name = f"schedule.warmup_frac={frac:g}" if count is None else f"schedule.warmup_steps={count}"
        print(f"{name} rounds to {steps} of {total_steps} steps, as another warm-up does: these runs are identical")
    seen.add(key)


def _check_task(config: RunConfig) -> tuple[data.Corpus, nn.Module]:
    """The corpus, and the model without weights."""
    corpus = data.load_corpus(config.data, config.cache_path())
    vocabulary = tokenize.load_tokenizer(config.model, corpus.train.texts, config.cache_path())
    classifier = model.check_model(
        config.model,
        label_names=corpus.label_names,
        vocab_size=vocabulary.size,
        pad_id=vocabulary.pad_id,
        max_length=config.data.max_length,
    )
    return corpus, classifier


def _check_plugins(config: DictConfig) -> None:
    """Raise InputError unless the chosen launcher and sweeper are installed and set to start at least one run."""
    plugins = [*Plugins.instance().discover(Launcher), *Plugins.instance().discover(Sweeper)]
    installed = {f"{plugin.__module__}.{plugin.__name__}" for plugin in plugins}
    for group in ("launcher", "sweeper"):
        choice = config.hydra.runtime.choices[f"hydra/{group}"]
        extra = PLUGIN_EXTRAS.get(f"{group}/{choice}")
        if extra and config.hydra[group]._target_ not in installed:
            raise InputError(f"hydra/{group}={choice} is not installed: pip install 'bertmon[{extra}]' installs it.")
    for key in ("launcher.n_jobs", "sweeper.n_jobs", "sweeper.n_trials"):
        number = OmegaConf.select(config.hydra, key, default=1)
        all_cores = number == -1 and key == "launcher.n_jobs"  # joblib's notation
        valid = isinstance(number, int) and number >= 1
        require(valid or all_cores, f"hydra.{key}", number, "an integer of at least 1")


def _can_restart_runs(config: DictConfig) -> bool:
    """Whether a run can be started more than once: by a launcher with workers, or by a sweeper that repeats trials."""
    return config.hydra.mode == RunMode.MULTIRUN and not compose.uses_basic_plugins(config)


def _experiment_line(config: DictConfig) -> str:
    """The launch's first line: the experiment, the reason for it, and how to choose another."""
    choice = compose.experiment_choice(config)
    options = GlobalHydra.instance().config_loader().get_group_options("experiment")
    excluded = ("auto", "custom", config.experiment, *choice.split(","))
    others = " or ".join(f"experiment={name}" for name in options if name not in excluded)
    if choice == "auto":
        why = "a CUDA device was found" if config.experiment == "article" else "no CUDA device was found"
        return f"experiment={config.experiment}, because {why}; choose another with {others}"
    if str(config.hydra.runtime.choices.get("data")) in ("files", "hf") and choice in ("finetune", "custom"):
        return f"experiment={choice}, for data of your own; choose another with {others}"
    return f"experiment={choice}, as requested; others are {others}"
