"""Before the first run and after the last: the choice of experiment, the check of every combination, folder names.

Knows Hydra: its callbacks, its sweeps, its overrides. A mistake in any run of a sweep is told here, before any run.
"""

import atexit
import re
import shlex
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from bertmon import data, model, step, tokens
from bertmon.cache import digest
from bertmon.config import InputError, RunConfig, from_hydra

_LONGEST_NAME = 120  # characters; file systems allow 255 bytes


def register() -> None:
    """Tell Hydra which experiment `auto` is on this machine, and how a run's folder is named."""
    import torch

    chosen = "article" if torch.cuda.is_available() else "quickstart"
    ConfigStore.instance().store(
        group="experiment", name="auto", node={"defaults": [chosen, "_self_"]}, package="_global_"
    )
    OmegaConf.register_new_resolver("bertmon.cell", cell_name, replace=True)


def differing(overrides: Sequence[str], swept: Sequence[str] | None) -> dict[str, str]:
    """Those of the run's overrides ("key=value" each) that tell it from the others, the seed left out.

    swept: keys that differ between runs. None, for a single run: all that were given but the experiment.
    """
    given = dict(override.lstrip("+~").split("=", 1) for override in overrides if "=" in override)
    keys = given.keys() - {"experiment"} if swept is None else set(swept)
    return {key: value for key, value in given.items() if key in keys - {"seed"}}


def cell_name(overrides: Sequence[str], swept: Sequence[str] | None, experiment: str) -> str:
    """What tells this run from the others but for its seed, as one folder name: `warmup_frac=0.1`.

    Keys go without their group where that is clear. Where nothing differs it is the experiment's name.
    """
    shown = differing(overrides, swept)
    short = {key: key.rpartition(".")[2] for key in shown}
    unclear = {name for name, count in Counter(short.values()).items() if count > 1}
    names = [f"{key if short[key] in unclear else short[key]}={value}" for key, value in shown.items()]
    full = ",".join(names) or experiment
    safe = re.sub(r"[^\w.=,+\-]", "-", full)[:_LONGEST_NAME].strip(".") or experiment
    return safe if safe == full else f"{safe}-{digest(full)[:6]}"


class Door(Callback):
    """Hydra calls it before anything runs. What is wrong is said in one message, and the program ends."""

    def __init__(self, swept: Sequence[str] | None = None) -> None:
        del swept  # kept in the config for cell_name

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._open(config, lambda: [config], Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._open(config, lambda: list(_combinations(config)), Path(config.hydra.sweep.dir))

    def _open(self, config: DictConfig, runs: Callable[[], list[DictConfig]], folder: Path) -> None:
        try:
            print(_choice_of_experiment(config), flush=True)
            composed = runs()
            _check_folders(composed)
            check([from_hydra(run) for run in composed])
        except (InputError, HydraException) as error:
            cause = f"\n{error.__cause__}" if error.__cause__ else ""
            sys.exit(f"{error}{cause}")
        except Exception:  # Hydra would turn a callback's exception into a warning and go on
            traceback.print_exc()
            sys.exit(1)
        command = ["tensorboard", "--logdir", str(folder), "--samples_per_plugin", "images=100"]
        atexit.register(print, f"To see it: {shlex.join(command)}", flush=True)


def check(configs: Sequence[RunConfig]) -> None:
    """Raise InputError for whatever can be found wrong without training: devices, files, categories, vocabularies.

    What is read and tokenized on the way stays in the cache for the runs.
    """
    for device in dict.fromkeys(config.device for config in configs):
        step.pick_device(device)
    seen: list[object] = []
    for config in configs:
        task = (config.data, config.model)
        if task not in seen:
            seen.append(task)
            cache = Path(config.cache).expanduser()
            corpus = data.load(config.data, cache)
            vocabulary = tokens.load_vocabulary(config.model, corpus.train.texts, cache)
            model.architecture(
                config.model,
                label_names=corpus.label_names,
                vocab_size=vocabulary.size,
                pad_id=vocabulary.pad_id,
                max_length=config.data.max_length,
            )


def _combinations(config: DictConfig) -> Iterator[DictConfig]:
    """Every run of the sweep, composed. Notes in `config` what is swept and which experiment `auto` was."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    loader = GlobalHydra.instance().config_loader()
    given = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    given += config.hydra.overrides.task
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(given)
    swept = [override.get_key_element() for override in parsed if override.is_sweep_override()]
    with read_write(config), open_dict(config):
        config.hydra.overrides.hydra.append(f"hydra.callbacks.bertmon.swept=[{','.join(swept)}]")
        if config.hydra.runtime.choices.get("experiment") == "auto":  # workers on other machines must not choose anew
            config.hydra.overrides.task.append(f"experiment={config.experiment}")
    if not all(override.is_discrete_sweep() for override in parsed if override.is_sweep_override()):
        yield config  # a sweeper with ranges of its own: only what all runs share can be checked
        return
    for overrides in BasicSweeper.split_arguments(parsed, None)[0]:
        yield loader.load_sweep_config(config, overrides)


def _check_folders(runs: Sequence[DictConfig]) -> None:
    folders: dict[str, Sequence[str]] = {}
    for run in runs:
        folder, overrides = str(run.hydra.sweep.subdir), list(run.hydra.overrides.task)
        if folder in folders:
            raise InputError(f"Two runs of the sweep are the same: {' '.join(overrides)} comes twice.")
        folders[folder] = overrides


def _choice_of_experiment(config: DictConfig) -> str:
    """The program's first line: which experiment, why, and how to choose another."""
    choice = str(config.hydra.runtime.choices.get("experiment"))
    options = GlobalHydra.instance().config_loader().get_group_options("experiment")
    others = " or ".join(f"experiment={name}" for name in options if name not in ("auto", config.experiment))
    if choice == "auto":
        why = "a CUDA device was found" if config.experiment == "article" else "no CUDA device was found"
        return f"experiment={config.experiment}, since {why}; choose another with {others}"
    return f"experiment={config.experiment}, as asked for; others are {others}"
