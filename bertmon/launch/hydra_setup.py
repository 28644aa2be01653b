"""Registers the schema, the experiment `auto`, resolvers, and launcher and sweeper presets with Hydra.

Importing this module has no side effects: the command line and the Python API call `register`. Launchers send Hydra's
state, including these registrations, to their workers.
"""

import ctypes
import os
import sys
from collections.abc import Collection, Sequence
from importlib import resources
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError
from omegaconf import DictConfig, OmegaConf

from bertmon.config import DocstringsConfig, FilesConfig, HfConfig, NewsgroupsConfig, RunConfig
from bertmon.launch.run_names import setting_dir_name

DATA_SCHEMAS = {
    "docstrings": DocstringsConfig,
    "files": FilesConfig,
    "hf": HfConfig,
    "newsgroups": NewsgroupsConfig,
}

PLUGIN_EXTRAS = {
    "launcher/joblib": "joblib",
    "launcher/ray": "ray",
    "launcher/submitit_local": "slurm",
    "launcher/submitit_slurm": "slurm",
    "sweeper/optuna": "optuna",
}
"""Presets in conf/hydra/presets, and the bertmon extra that installs the plugin of each."""


def register() -> None:
    """Register everything that conf/ refers to. Can be called repeatedly."""
    store = ConfigStore.instance()
    store.store(name="schema", node=RunConfig)
    for name, schema in DATA_SCHEMAS.items():
        store.store(group="data/schema", name=name, node=schema)
    auto = {"defaults": [auto_experiment(), "_self_"]}
    store.store(group="experiment", name="auto", node=auto, package="_global_")
    _store_presets(store)
    OmegaConf.register_new_resolver("bertmon.run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("bertmon.sweep_dir", sweep_dir, replace=True)
    OmegaConf.register_new_resolver("bertmon.n_gpus", n_gpus, replace=True)
    OmegaConf.register_new_resolver("bertmon.gpus_per_run", gpus_per_run, replace=True)
    OmegaConf.register_new_resolver("bertmon.n_jobs", default_n_jobs, replace=True)


def fix_timestamp(timestamp: str) -> None:
    """Use `timestamp` in the folder names of this launch instead of the current time, so that all processes agree."""

    def sweep_dir_at_timestamp(resume: str | None, _: str, name: str | None = None) -> str:
        return sweep_dir(resume, timestamp, name)

    OmegaConf.register_new_resolver("bertmon.sweep_dir", sweep_dir_at_timestamp, replace=True)


def auto_experiment() -> str:
    """The experiment that experiment=auto selects on this machine."""
    return "article" if _has_cuda() else "quickstart"


def _has_cuda() -> bool:
    """The result of torch.cuda.is_available(); imports torch, which takes seconds, only if a driver is installed."""
    driver = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(driver)
    except OSError:
        if not os.path.exists("/dev/kfd"):  # AMD's driver: torch calls its devices CUDA, too
            return False
    import torch

    return torch.cuda.is_available()


def _store_presets(store: ConfigStore) -> None:
    """Replace the plugins' launcher and sweeper configs with bertmon's presets.

    A preset is merged into the plugin's config, whose types are preserved; a preset with a defaults list replaces it.
    It cannot be a file in conf/hydra/launcher: Hydra rejects a file and a stored config of the same name.
    """
    Plugins.instance()  # discovers the plugins, which then store their configs
    folder = resources.files("bertmon.conf") / "hydra" / "presets"
    for path in PLUGIN_EXTRAS:
        group, _, name = path.rpartition("/")
        preset = OmegaConf.create((folder / group / f"{name}.yaml").read_text("utf-8"))
        assert isinstance(preset, DictConfig)
        if "defaults" not in preset and (schema := _plugin_config(store, f"hydra/{path}")) is not None:
            preset = OmegaConf.merge(schema, preset)
        store.store(group=f"hydra/{group}", name=name, node=preset, provider="bertmon")


def _plugin_config(store: ConfigStore, path: str) -> Any:
    """The plugin's config at `path`; None if the plugin is not installed."""
    try:
        return store.load(f"{path}.yaml").node
    except ConfigLoadError:
        return None


def run_name(mode: Any, overrides: Sequence[str], excluded: Collection[str], name: str | None, experiment: str) -> str:
    """Resolver bertmon.run_name: a run's folder within the launch's folder; the seed's folder is inside it.

    In a sweep, the overrides that distinguish its setting; otherwise the user's name for the run, or the experiment.
    excluded: keys that are the same in all runs.
    """
    default = name or experiment
    if "MULTIRUN" not in str(mode):
        return default
    return setting_dir_name(overrides, excluded, default)


def sweep_dir(resume: str | None, timestamp: str, name: str | None = None) -> str:
    """Resolver bertmon.sweep_dir: the launch's folder, or the earlier launch's folder when resuming."""
    return resume or f"multirun/{timestamp}" + (f"_{name}" if name else "")


def n_gpus() -> int:
    """Resolver bertmon.n_gpus: the number of GPUs of this machine."""
    import torch

    return torch.cuda.device_count()


def gpus_per_run() -> int:
    """Resolver bertmon.gpus_per_run: 1 if this machine has a GPU, else 0."""
    return min(n_gpus(), 1)


def default_n_jobs() -> int:
    """Resolver bertmon.n_jobs: the number of parallel runs, one per GPU of this machine or, without GPUs, per core."""
    import joblib

    return n_gpus() or int(joblib.cpu_count(only_physical_cores=True))
