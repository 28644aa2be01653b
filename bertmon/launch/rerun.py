"""`bertmon rerun RUN`: the arguments that repeat a run from the config that Hydra saved in its folder."""

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bertmon.errors import InputError
from bertmon.launch.command_line import CONFIG_GROUPS
from bertmon.launch.run_names import quote_override
from bertmon.sanitize import sanitize_line

_NESTED = (*CONFIG_GROUPS, "monitor.thresholds")
_DATA_KEYS = {"packages": "docstrings", "categories": "newsgroups", "train": "files", "name": "hf"}
"""Keys that occur in only one data schema, and the data preset of that schema."""


def rerun_argv(run_dir: Path) -> list[str]:
    """Overrides for the run's config group choices and for every key of its config. Raises InputError.

    The user's own presets are not needed: the overrides set each of their keys.
    """
    config, hydra = _load(run_dir / ".hydra" / "config.yaml"), _load(run_dir / ".hydra" / "hydra.yaml")
    choices = OmegaConf.select(hydra, "hydra.runtime.choices") or {}
    experiment = config.get("experiment")
    arguments = [f"experiment={experiment if _is_preset('experiment', experiment) else 'custom'}"]
    arguments += [f"{group}={choices[group]}" for group in CONFIG_GROUPS if _is_preset(group, choices.get(group))]
    if not _is_preset("data", choices.get("data")):
        arguments += [f"data={name}" for key, name in _DATA_KEYS.items() if key in (config.get("data") or {})]
    keys = (key for key in _leaves(OmegaConf.to_container(config)) if key[0] not in ("experiment", "resume"))
    return [*arguments, *(_override(key, value, run_dir) for key, value in keys)]


def _is_preset(group: str, name: Any) -> bool:
    """Whether bertmon itself has a preset of that name."""
    return (resources.files("bertmon.conf") / group / f"{name}.yaml").is_file()


def _load(path: Path) -> DictConfig:
    try:
        config = OmegaConf.load(path)
    except (OSError, ValueError, OmegaConfBaseException) as error:
        reason = getattr(error, "strerror", None) or "not YAML"
        raise InputError(
            f"{sanitize_line(path)}: expected the config of a run, could not read it ({reason})."
        ) from None
    if not isinstance(config, DictConfig):
        raise InputError(f"{sanitize_line(path)}: expected the config of a run, got a list.")
    return config


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if f"{prefix}{key}" in _NESTED:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _override(key: str, value: Any, run_dir: Path) -> str:
    """The override key=value. Raises InputError for a mapping that Hydra's grammar cannot express."""
    override = f"{key}={_as_override(value)}"
    if isinstance(value, dict):
        try:
            round_trips = OverridesParser.create().parse_override(override).value() == value
        except HydraException:
            round_trips = False
        if not round_trips:
            where = sanitize_line(run_dir)
            raise InputError(f"{where}: {key} has names that no override can express; give it in a preset of your own.")
    return override


def _as_override(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_as_override, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{_escape_key(str(key))}:{_as_override(each)}' for key, each in value.items())}}}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, int | float) else quote_override(value)


def _escape_key(key: str) -> str:
    """Escape the key of a mapping for Hydra's grammar, which does not allow quotes there."""
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", key)
