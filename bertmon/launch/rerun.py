"""bertmon rerun RUN: the arguments that repeat a run from the config that Hydra has saved in its folder."""

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bertmon.errors import InputError
from bertmon.launch.run_names import quote_override
from bertmon.sanitize import sanitize_line

_GROUPS = ("data", "model", "optimizer", "schedule", "train", "monitor")


def rerun_argv(run_dir: Path) -> list[str]:
    """Overrides for the run's choices of conf groups and for every key of its config. Raises InputError."""
    config, hydra = _load(run_dir / ".hydra" / "config.yaml"), _load(run_dir / ".hydra" / "hydra.yaml")
    choices = OmegaConf.select(hydra, "hydra.runtime.choices") or {}
    preset = f"{config.get('experiment')}.yaml"
    known = (resources.files("bertmon.conf") / "experiment" / preset).is_file()  # else a user's own
    arguments = [f"experiment={config.experiment if known else 'custom'}"]
    arguments += [f"{group}={choices[group]}" for group in _GROUPS if group in choices]
    keys = (key for key in _leaves(OmegaConf.to_container(config)) if key[0] not in ("experiment", "resume"))
    return [*arguments, *(f"{key}={_as_override(value)}" for key, value in keys)]


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
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _as_override(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_as_override, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, int | float) else quote_override(value)
