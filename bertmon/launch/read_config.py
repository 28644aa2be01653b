"""Converts Hydra's composed config to a RunConfig, the only form that training code sees. Explains unknown keys."""

import difflib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from bertmon.config import RENAMED_KEYS, RunConfig
from bertmon.errors import InputError
from bertmon.launch.hydra_setup import DATA_SCHEMAS

_SYNONYMS = {
    "accumulate_grad_batches": "train.accumulate",
    "adam_beta1": "optimizer.beta1",
    "adam_beta2": "optimizer.beta2",
    "adam_epsilon": "optimizer.eps",
    "bs": "train.batch_size",
    "correct_bias": "optimizer.bias_correction",
    "early_stopping_patience": "train.patience",
    "eval_steps": "train.eval_every",
    "gradient_accumulation_steps": "train.accumulate",
    "learning_rate": "optimizer.lr",
    "logging_steps": "train.log_every",
    "lr_scheduler_type": "schedule.decay",
    "max_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "model_name_or_path": "model.name",
    "n_layers": "model.num_hidden_layers",
    "num_epochs": "train.epochs",
    "num_layers": "model.num_hidden_layers",
    "num_train_epochs": "train.epochs",
    "per_device_eval_batch_size": "train.eval_batch_size",
    "per_device_train_batch_size": "train.batch_size",
    "train_batch_size": "train.batch_size",
    "warmup": "schedule.warmup_frac",
    "warmup_ratio": "schedule.warmup_frac",
}
"""Names of keys in other programs, by their last part."""


def read_config(composed: DictConfig) -> RunConfig:
    """The composed config as a plain, checked RunConfig.

    Raises InputError for a key that does not exist, a required key that is missing, and a value out of range.
    """
    settings = composed.copy()
    with read_write(settings), open_dict(settings):
        settings.pop("hydra", None)
    for key in _unknown_keys(settings):
        raise InputError(explain_unknown_key(key))
    for key in sorted(OmegaConf.missing_keys(settings)):
        raise InputError(f"{key}: expected a value, got none; give {key}=...")
    try:
        config = OmegaConf.to_object(settings)
    except OmegaConfBaseException as error:  # an interpolation that cannot be resolved
        raise InputError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    assert isinstance(config, RunConfig)
    return config


def _unknown_keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Dotted keys that the node's dataclass lacks; Hydra accepts them as `+key=value`."""
    schema = OmegaConf.get_type(node)
    if not is_dataclass(schema):
        return
    known = {f.name for f in fields(schema)}
    for key in map(str, node):
        if key not in known:
            yield prefix + key
        elif not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
            child = node[key]
            if isinstance(child, DictConfig):
                yield from _unknown_keys(child, f"{prefix}{key}.")


def explain_unknown_key(key: str) -> str:
    """The error message for a key that does not exist, or not with the chosen data."""
    if key in RENAMED_KEYS:
        return f"{key} was renamed to {RENAMED_KEYS[key]}."
    last = key.rpartition(".")[2]
    if choices := [f"data={name}" for name, schema in DATA_SCHEMAS.items() if key in _keys_of(schema, "data.")]:
        return f"{key}: not available with the chosen data; it requires {' or '.join(choices)}."
    every, parent = _all_keys(), key.rpartition(".")[0]
    if parent in every:
        return f"{key}: no such key; give the whole value, {parent}=..."
    siblings = [full for full in every if full.startswith(f"{parent}.")] or every
    by_last_part = {full.rpartition(".")[2]: full for full in reversed(siblings)}
    close = difflib.get_close_matches(last, by_last_part, n=1, cutoff=0.6)
    elsewhere = [full for full in every if full.rpartition(".")[2] == last]
    if guess := _SYNONYMS.get(last) or next(iter(elsewhere), by_last_part[close[0]] if close else None):
        return f"{key}: no such key; did you mean {guess}?"
    return f"{key}: no such key; the keys are {', '.join(siblings if parent else (f.name for f in fields(RunConfig)))}."


def _all_keys() -> list[str]:
    """All dotted keys, including those of every data schema."""
    data = [key for schema in DATA_SCHEMAS.values() for key in _keys_of(schema, "data.")]
    return list(dict.fromkeys([*_keys_of(RunConfig), *data]))


def _keys_of(schema: Any, prefix: str = "") -> Iterator[str]:
    for name, kind in get_type_hints(schema).items():
        if is_dataclass(kind):
            yield from _keys_of(kind, f"{prefix}{name}.")
        else:
            yield prefix + name
