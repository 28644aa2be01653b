"""Composes all runs of a launch before any of them starts. Handles Hydra's sweeps and overrides."""

import copy
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from bertmon.config import FilesConfig, HfConfig, RunConfig
from bertmon.errors import InputError, require
from bertmon.launch import hydra_setup
from bertmon.launch.read_config import read_config
from bertmon.launch.run_names import NEVER_IN_NAME, quote_override

_MAX_RUNS = 10_000  # per sweep; composing one takes a tenth of a second


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A composed run that has not started."""

    config: DictConfig  # including the hydra node
    run_dir: Path | None  # None: the sweeper chooses the values, and thus the folder, during the sweep


@dataclass(frozen=True, slots=True)
class PlannedLaunch:
    """The runs of a launch, and overrides to add to all of them."""

    runs: Sequence[PlannedRun]
    swept: Sequence[str] = ()  # keys that differ between the runs
    task_overrides: Sequence[str] = ()  # to add to every run, for bertmon's keys
    hydra_overrides: Sequence[str] = ()  # and for Hydra's keys


def load_config(overrides: Sequence[str] = (), *, config_dir: Path | None = None) -> RunConfig:
    """The validated config of one run, composed as on the command line. Raises InputError and Hydra's errors."""
    hydra_setup.register()
    with initialize_config_module("bertmon.conf", version_base="1.3", job_name="run"):
        return read_config(compose("config", [*overrides, *search_path(config_dir)]))


def reads_own_texts(data: str, config_dir: Path | str | None) -> bool:
    """Whether a data preset, bertmon's or the user's in config_dir, reads files or Hugging Face datasets."""
    if data in ("files", "hf") or config_dir is None or not (Path(config_dir) / "data" / f"{data}.yaml").is_file():
        return data in ("files", "hf")
    try:
        with initialize_config_module("bertmon.conf", version_base="1.3", job_name="run"):
            composed = compose("config", [f"data={data}", "experiment=custom", *search_path(config_dir)])
    except (HydraException, OmegaConfBaseException):
        return False  # the launch reports the error
    return OmegaConf.get_type(composed, "data") in (FilesConfig, HfConfig)


def search_path(config_dir: Path | str | None) -> list[str]:
    """The override that adds a folder of user presets, as --config-dir does; empty if config_dir is None."""
    if config_dir is None:
        return []
    require(Path(config_dir).is_dir(), "config_dir", config_dir, "an existing folder")
    return [f"hydra.searchpath=[{quote_override(f'file://{Path(config_dir).absolute()}')}]"]


def uses_basic_plugins(config: DictConfig) -> bool:
    """Whether launcher and sweeper are Hydra's basic ones, which start each run once, one after another."""
    choices = config.hydra.runtime.choices
    return bool(choices["hydra/launcher"] == "basic" and choices["hydra/sweeper"] == "basic")


def experiment_choice(config: DictConfig) -> str:
    """The experiment, or the swept experiments, that the launch names; "auto" if this machine chooses it."""
    if config.hydra.mode == RunMode.MULTIRUN:
        for override in _sweep_overrides(config, GlobalHydra.instance().config_loader()):
            if override.key_or_group == "experiment" and override.is_sweep_override():
                return str(override.input_line).partition("=")[2]
    return str(config.hydra.runtime.choices.get("experiment") or config.experiment)  # no choice: ~experiment


def compose_runs(config: DictConfig) -> PlannedLaunch:
    """Compose every run of a launch. config: the launch's config, composed by Hydra.

    The runs of a sweeper that searches are not known in advance: instead, composes the fewest runs that cover every
    value and both bounds of every interval. Raises InputError and Hydra's errors.
    """
    if config.hydra.mode != RunMode.MULTIRUN:
        return PlannedLaunch([PlannedRun(config, Path(config.hydra.run.dir))])
    sweep_dir = Path(config.hydra.sweep.dir)  # resolve it here: all copies of `config` get the same timestamp
    loader = GlobalHydra.instance().config_loader()
    overrides = _sweep_overrides(config, loader)
    swept = [override.key_or_group for override in overrides if override.is_sweep_override()]
    fixed = {override.key_or_group for override in overrides} | set(NEVER_IN_NAME)
    excluded = {*config.hydra.job.config.override_dirname.exclude_keys, *fixed.difference(swept)}
    # Hydra's setting for keys to leave out of folder names
    names = ",".join(map(quote_override, sorted(excluded)))
    hydra_overrides = [f"hydra.job.config.override_dirname.exclude_keys=[{names}]"]
    task_overrides = []
    if experiment_choice(config) == "auto":  # workers on other machines must not choose again
        task_overrides.append(f"experiment={config.experiment}")

    launch_config = with_overrides(copy.deepcopy(config), (), hydra_overrides)
    runs = []
    searching = config.hydra.runtime.choices["hydra/sweeper"] != "basic"
    points = _covering_points(overrides) if searching else _combinations(overrides)
    for number, point in enumerate(points):
        run = loader.load_sweep_config(launch_config, list(point))
        with open_dict(run):
            run.hydra.job.num, run.hydra.job.id = number, str(number)
        runs.append(PlannedRun(run, None if searching else sweep_dir / str(run.hydra.sweep.subdir)))
    return PlannedLaunch(runs, swept, task_overrides, hydra_overrides)


def with_overrides(config: DictConfig, task: Iterable[str], hydra: Iterable[str]) -> DictConfig:
    """Add overrides to every run composed from the launch's config. Modifies `config` in place and returns it."""
    with read_write(config), open_dict(config):
        config.hydra.overrides.task.extend(task)
        config.hydra.overrides.hydra.extend(hydra)
    return config


def _sweep_overrides(config: DictConfig, loader: ConfigLoader) -> list[Override]:
    """The overrides of the sweep, including those in its sweeper's config; the last one for each key."""
    sweeper, task_overrides = config.hydra.sweeper, config.hydra.overrides.task
    texts = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    if (seeds := sweeper.get("seeds")) is not None:
        distinct = OmegaConf.is_list(seeds) and 0 < len(set(seeds)) == len(seeds)
        require(distinct, "hydra.sweeper.seeds", seeds, "a list of different seeds")
        if any(text.lstrip("+").startswith("seed=") for text in (*texts, *task_overrides)):
            raise InputError("seed: expected none with hydra.sweeper.seeds, which gives the seeds of every trial.")
        texts.append(f"seed={','.join(map(str, seeds))}")
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([*texts, *task_overrides])
    return list({override.key_or_group: override for override in parsed}.values())


def count_runs(config: DictConfig) -> int:
    """The number of runs of a sweep with Hydra's basic sweeper; a glob, not yet expanded, counts as one run."""
    if config.hydra.mode != RunMode.MULTIRUN or config.hydra.runtime.choices["hydra/sweeper"] != "basic":
        return 1
    return math.prod(map(_n_values, _sweep_overrides(config, GlobalHydra.instance().config_loader())))


def _n_values(override: Override) -> int:
    value = override.value()
    if isinstance(value, RangeSweep) and value.start is not None and value.stop is not None:
        return max(math.ceil((value.stop - value.start) / value.step), 0)
    return len(value.list) if isinstance(value, ChoiceSweep) else 1


def _combinations(overrides: Sequence[Override]) -> Iterable[tuple[str, ...]]:
    """All combinations of values, the last key varying fastest, as in Hydra's basic sweeper."""
    for override in overrides:
        if override.is_sweep_override() and not override.is_discrete_sweep():
            key = override.key_or_group
            raise InputError(
                f"{key}: expected values or a range, got an interval, which only hydra/sweeper=optuna takes."
            )
    if (count := math.prod(map(_n_values, overrides))) > _MAX_RUNS:
        raise InputError(f"expected a sweep of at most {_MAX_RUNS} runs, got {count}.")
    return itertools.product(*map(_settings, overrides))


def _covering_points(overrides: Sequence[Override]) -> Iterable[tuple[str, ...]]:
    """The fewest points that cover every value of every key."""
    values = list(map(_settings, overrides))
    for number in range(max(map(len, values), default=0)):
        yield tuple(each[min(number, len(each) - 1)] for each in values)


def _settings(override: Override) -> list[str]:
    """One override string per value; for an interval, one per bound."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        texts = [str(value.start), str(value.end)]
    elif override.is_sweep_override():
        texts = list(override.sweep_string_iterator())
    else:
        texts = [override.get_value_element_as_str()]
    return [f"{override.get_key_element()}={text}" for text in texts]
