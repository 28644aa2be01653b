"""What bertmon registers with Hydra: the schema, the experiment `auto`, resolvers, presets of launchers and sweepers.

Nothing happens at import: the command line and the Python API call `register`. Workers of launchers get it with the
state of Hydra that their launcher sends them.
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
"""The presets of conf/hydra/presets, with the extra of bertmon that installs their plugin."""


def register() -> None:
    """Tell Hydra everything that conf/ builds on. May be called again."""
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


def fix_moment(moment: str) -> None:
    """Name the folders of this launch by `moment`, whatever the time is: several processes have to agree."""

    def at_moment(resume: str | None, _: str, name: str | None = None) -> str:
        return sweep_dir(resume, moment, name)

    OmegaConf.register_new_resolver("bertmon.sweep_dir", at_moment, replace=True)


def auto_experiment() -> str:
    """What experiment=auto stands for on this machine."""
    return "article" if _has_cuda() else "quickstart"


def _has_cuda() -> bool:
    """As torch.cuda.is_available(), which is asked only on a machine with a driver: torch takes seconds to load."""
    driver = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(driver)
    except OSError:
        if not os.path.exists("/dev/kfd"):  # AMD's, which torch calls CUDA too
            return False
    import torch

    return torch.cuda.is_available()


def _store_presets(store: ConfigStore) -> None:
    """Replace the plugins' own configs of launchers and sweepers by bertmon's presets.

    A preset is laid over the plugin's config, whose types stay; one that has a defaults list of its own replaces it. It
    cannot be a file in conf/hydra/launcher: Hydra does not take a file and a stored config of one name.
    """
    Plugins.instance()  # finds the plugins, which store their configs then
    folder = resources.files("bertmon.conf") / "hydra" / "presets"
    for path in PLUGIN_EXTRAS:
        group, _, name = path.rpartition("/")
        preset = OmegaConf.create((folder / group / f"{name}.yaml").read_text("utf-8"))
        assert isinstance(preset, DictConfig)
        if "defaults" not in preset and (schema := _stored(store, f"hydra/{path}")) is not None:
            preset = OmegaConf.merge(schema, preset)
        store.store(group=f"hydra/{group}", name=name, node=preset, provider="bertmon")


def _stored(store: ConfigStore, path: str) -> Any:
    """The config at that path; None if its plugin is not installed."""
    try:
        return store.load(f"{path}.yaml").node
    except ConfigLoadError:
        return None


def run_name(mode: Any, overrides: Sequence[str], excluded: Collection[str], name: str | None, experiment: str) -> str:
    """Resolver bertmon.run_name: a run's folder in its launch, above that of its seed.

    In a sweep what tells its setting from the others; elsewhere the user's own name, or that of the experiment.
    excluded: keys that are the same in all runs.
    """
    default = name or experiment
    if "MULTIRUN" not in str(mode):
        return default
    return setting_dir_name(overrides, excluded, default)


def sweep_dir(resume: str | None, moment: str, name: str | None = None) -> str:
    """Resolver bertmon.sweep_dir: the launch's folder, that of an earlier launch if it is resumed."""
    return resume or f"multirun/{moment}" + (f"_{name}" if name else "")


def n_gpus() -> int:
    """Resolver bertmon.n_gpus: those of this machine."""
    import torch

    return torch.cuda.device_count()


def gpus_per_run() -> int:
    """Resolver bertmon.gpus_per_run: one on a machine that has any."""
    return min(n_gpus(), 1)


def default_n_jobs() -> int:
    """Resolver bertmon.n_jobs: runs at a time, as many as this machine has GPUs, or cores if it has none."""
    import joblib

    return n_gpus() or int(joblib.cpu_count(only_physical_cores=True))
