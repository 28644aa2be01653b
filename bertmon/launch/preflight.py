"""Before the first run and after the last: the choice of experiment, the check of every run, the last words.

Knows Hydra: its callbacks, plugins and messages. A mistake in any run of a sweep is told here, before any run.
"""

import atexit
import logging
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from bertmon import board, data, distributed, model, sanitize
from bertmon.compare import report, summary
from bertmon.config import MAX_INT, RunConfig, from_hydra
from bertmon.data import tokenize
from bertmon.errors import InputError, require
from bertmon.launch import compose, run_dirs, workers
from bertmon.training import step

_GROUPS = ("experiment", "data", "model", "optimizer", "schedule", "monitor")
_EXTRAS = {
    "launcher/joblib": "joblib",
    "launcher/ray": "ray",
    "launcher/submitit_local": "slurm",
    "launcher/submitit_slurm": "slurm",
    "sweeper/optuna": "optuna",
}
"""What conf/hydra has beside a plugin's own config of the same name, and the extra that installs the plugin."""
_SEARCH = "hydra_plugins.bertmon.Search"  # Hydra takes sweepers from this package alone
_OPTUNA = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
_REMOTE_LAUNCHERS = (
    "submitit_slurm",
    "ray",
    "ray_aws",
)  # launchers whose runs may see other devices than this machine has


def register_with_hydra() -> None:
    """Tell Hydra which experiment `auto` is on this machine, and what conf/ asks for by a resolver."""
    import torch

    chosen = "article" if torch.cuda.is_available() else "quickstart"
    store = ConfigStore.instance()
    store.store(group="experiment", name="auto", node={"defaults": [chosen, "_self_"]}, package="_global_")
    _set_plugins_configs_aside(store)
    OmegaConf.register_new_resolver("bertmon.run_name", run_dirs.setting_dir_name, replace=True)
    OmegaConf.register_new_resolver("bertmon.sweep_dir", lambda resume, now: resume or f"multirun/{now}", replace=True)
    OmegaConf.register_new_resolver("bertmon.n_gpus", torch.cuda.device_count, replace=True)
    OmegaConf.register_new_resolver("bertmon.gpus_per_run", lambda: min(torch.cuda.device_count(), 1), replace=True)
    OmegaConf.register_new_resolver("bertmon.n_jobs", default_n_jobs, replace=True)


def _set_plugins_configs_aside(store: ConfigStore) -> None:
    """Move the launchers' own configs to hydra/launcher/schema, where conf/hydra/launcher builds on them.

    Hydra does not take a file and a plugin's config of one name.
    """
    Plugins.instance()  # they are stored as the plugins are found
    for path in _EXTRAS:
        group, _, name = path.rpartition("/")
        folder: dict[str, Any] = store.repo["hydra"][group]
        if stored := folder.pop(f"{name}.yaml", None):
            store.store(group=f"hydra/{group}/schema", name=name, node=stored.node)


def default_n_jobs() -> int:
    """Runs at a time on this machine: as many as it has GPUs, or cores where it has none."""
    import joblib
    import torch

    return torch.cuda.device_count() or int(joblib.cpu_count(only_physical_cores=True))


def sync_ranks() -> None:
    """Of several processes: one moment names the folder of all, and the first one alone speaks and writes."""
    if distributed.world_size() == 1:
        return
    now = distributed.broadcast(time.strftime("%Y-%m-%d_%H-%M-%S"))
    OmegaConf.register_new_resolver("bertmon.sweep_dir", lambda resume, _: resume or f"multirun/{now}", replace=True)
    if distributed.rank():
        logging.disable()
        os.environ["TQDM_DISABLE"] = "1"
        sys.argv += [f"hydra/{kind}_logging=disabled" for kind in ("job", "hydra")] + ["hydra.output_subdir=null"]


def check_argv(arguments: Sequence[str]) -> None:
    """Raise InputError for a group whose choice is no name, where Hydra's own code ends in an assertion, and for bytes
    that are no text, which no result.json can hold.
    """
    for argument in arguments:
        if re.search("[\ud800-\udfff]", argument):
            raise InputError(f"{sanitize.sanitize_line(argument)} is not possible: give UTF-8.")
        key, _, value = argument.partition("=")
        if key in _GROUPS and re.search(r"(^|,)(null|true|false|[-+]?[0-9.][0-9.e+-]*)(,|$)", value, re.IGNORECASE):
            raise InputError(f"{argument} is not possible: give the name of a file in conf/{key}.")


def format_error(error: BaseException) -> str:
    """What went wrong with the command line, for a terminal."""
    cause = f"\n{error.__cause__}" if error.__cause__ else ""
    if isinstance(error, HydraException | OmegaConfBaseException):
        told = [each for each in f"{error}{cause}".split("\n") if not re.match(r" +(reference|object)_type=", each)]
        return sanitize.sanitize("\n".join(told))
    words = sanitize.sanitize_line(shlex.join(sys.argv[1:]), 1000)
    root = error.__cause__ or error
    why = f"{type(root).__name__}: {root}".removesuffix(": ")
    return sanitize.sanitize(f"No run can be made of {words} ({why}). HYDRA_FULL_ERROR=1 shows where.")


class PreflightCheck(Callback):
    """Hydra calls it before anything runs. What is wrong is said in one message, and the program ends."""

    def __init__(self, swept: Sequence[str] | None = None) -> None:
        del swept  # kept in the config for cell_name

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._check_all_runs(config, compose.single_run)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._check_all_runs(config, compose.compose_runs)

    def _check_all_runs(self, config: DictConfig, listed: Callable[[DictConfig], Iterator[compose.PlannedRun]]) -> None:
        if distributed.rank():
            list(listed(config))  # it notes in `config` what is swept
            try:
                distributed.broadcast(None)  # nothing may be made before the first process has checked everything
            except RuntimeError:
                sys.exit(1)  # it has told why
            return
        sanitize.sanitize_logs()
        try:
            print(_experiment_banner(config), flush=True)
            _require_plugins(config)
            runs = list(listed(config))
            if not runs:
                raise InputError("The sweep has no run: a glob finds nothing.")
            settings = [from_hydra(run) for _, run in runs]
            run_dirs.check_run_dirs(runs)
            check_configs(settings, devices=config.hydra.runtime.choices["hydra/launcher"] not in _REMOTE_LAUNCHERS)
            start = run_dirs.sweep_dir(config)
            run_dirs.create_sweep_dir(start, runs)
            distributed.broadcast(None)
        except (InputError, HydraException, OmegaConfBaseException) as error:
            sys.exit(format_error(error))
        except Exception:  # Hydra would turn a callback's exception into a warning and go on
            traceback.print_exc()
            sys.exit(1)
        if (
            _may_restart_runs(config) and not config.resume
        ):  # a run that is started once more goes on, as is its launch's
            with read_write(config), open_dict(config):
                config.hydra.overrides.task.append(f"resume={run_dirs.quote_override(start)}")
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # Ray would leave out lines that differ in numbers alone
        if config.hydra.runtime.choices["hydra/launcher"] == "joblib":
            workers.drain_pool_on_signal(start)
        atexit.register(_print_summary, start)


def _require_plugins(config: DictConfig) -> None:
    """Raise InputError unless the launcher and the sweeper that were chosen are installed, and can start anything."""
    installed = Plugins.instance().class_name_to_class
    if _OPTUNA in installed and config.hydra.sweeper._target_ == _SEARCH:
        from bertmon.launch.optuna_seeds import SeededOptunaSweeper  # takes half a second

        installed[_SEARCH] = SeededOptunaSweeper
    for group in ("launcher", "sweeper"):
        choice = config.hydra.runtime.choices[f"hydra/{group}"]
        extra = _EXTRAS.get(f"{group}/{choice}")
        if extra and config.hydra[group]._target_ not in installed:
            raise InputError(f"hydra/{group}={choice} is not installed: pip install 'bertmon[{extra}]' brings it.")
    for key in ("launcher.n_jobs", "sweeper.n_jobs", "sweeper.n_trials"):
        number = OmegaConf.select(config.hydra, key, default=1)
        everything = number == -1 and key == "launcher.n_jobs"  # joblib's word for all cores
        whole = isinstance(number, int) and number >= 1
        require(whole or everything, f"hydra.{key}", number, "a whole number of at least 1")


@contextmanager
def launcher_context(job: HydraConf, name: str) -> Iterator[None]:
    """Around a run: what its launcher asks for. job: Hydra's part of its config."""
    choice = job.runtime.choices["hydra/launcher"]
    with ExitStack() as stack:
        if job.mode == RunMode.MULTIRUN and choice != "basic":
            stack.enter_context(workers.parallel_run(name))
        if job.mode == RunMode.MULTIRUN and choice == "joblib":
            stack.enter_context(workers.joblib_worker())
        yield


def _may_restart_runs(config: DictConfig) -> bool:
    """Whether a run may be started more than once: by a launcher with workers, or by a sweeper that asks again."""
    targets = (str(config.hydra.launcher._target_), str(config.hydra.sweeper._target_))
    return config.hydra.mode == RunMode.MULTIRUN and not all(map(str.endswith, targets, compose.BASIC))


def _print_summary(start: Path) -> None:
    """The last words: the sweep's answer, and how to see more of it."""
    try:
        read = report.write_report([start], start)
        print(f"\n{summary.console_summary(read)}\nReport: {start / report.HTML_FILE}", flush=True)
    except Exception as error:  # the runs are what they are, and the way to them is told below
        print(f"The report could not be written ({type(error).__name__}: {error}).", file=sys.stderr)
    print(f"To see it: {shlex.join(board.tensorboard_argv(start))}", flush=True)


def check_configs(configs: Sequence[RunConfig], *, devices: bool = True) -> None:
    """Raise InputError for whatever can be found wrong without training: devices, files, categories, models.

    What is read and trained on the way, corpora and vocabularies, stays in the cache for the runs.
    devices: whether the runs see those of this machine.
    """
    for device in dict.fromkeys(config.device for config in configs) if devices else ():
        step.resolve_device(device)
    seen: list[object] = []
    for config in configs:
        task = (config.data, config.model, config.cache_dir)
        if task not in seen:
            seen.append(task)
            corpus = data.load_corpus(config.data, config.cache_path())
            steps = config.train.epochs * -(-len(corpus.train) // config.train.batch_size)
            require(
                steps <= MAX_INT, "train.epochs", config.train.epochs, f"so few that there are at most {MAX_INT} steps"
            )
            vocabulary = tokenize.load_tokenizer(config.model, corpus.train.texts, config.cache_path())
            model.check_model(
                config.model,
                label_names=corpus.label_names,
                vocab_size=vocabulary.size,
                pad_id=vocabulary.pad_id,
                max_length=config.data.max_length,
            )


def _experiment_banner(config: DictConfig) -> str:
    """The program's first line: which experiment, why, and how to choose another."""
    choice = str(config.hydra.runtime.choices.get("experiment"))
    options = GlobalHydra.instance().config_loader().get_group_options("experiment")
    others = " or ".join(f"experiment={name}" for name in options if name not in ("auto", config.experiment))
    if choice == "auto":
        why = "a CUDA device was found" if config.experiment == "article" else "no CUDA device was found"
        return f"experiment={config.experiment}, since {why}; choose another with {others}"
    return f"experiment={config.experiment}, as asked for; others are {others}"
