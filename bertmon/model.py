"""BERT-like sequence classifiers: pretrained or freshly initialised, and the short labels of their layers.

Knows transformers' models and their parameter names. Leaves vocabularies to tokens.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from bertmon.config import Init, ModelConfig
from bertmon.errors import InputError
from bertmon.hub import local_files_only
from bertmon.sanitize import sanitize_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class NamedWeight(NamedTuple):
    """A watched parameter."""

    parameter: nn.Parameter
    kind: str  # "embedding", "linear", "norm" or "other"; a bias has "bias"
    depth: int | None  # number of the encoder layer that it belongs to, from the input; None outside of them


def build_model(
    config: ModelConfig, *, label_names: Sequence[str], vocab_size: int, pad_id: int, max_length: int
) -> nn.Module:
    """The classifier on the CPU, in train mode; fresh weights come from torch's global random state.

    Its forward takes input_ids [B, T] and attention_mask [B, T] and returns an object with .logits [B, C].
    Raises InputError where the named model cannot be loaded or does not fit the data.
    """
    from transformers import AutoModelForSequenceClassification

    planned = build_model_config(
        config, label_names=label_names, vocab_size=vocab_size, pad_id=pad_id, max_length=max_length
    )
    if config.init is Init.random:
        model = AutoModelForSequenceClassification.from_config(planned)
    else:
        model = _load(str(config.name), planned)
    trained: nn.Module = model.train()
    return trained


def check_model(
    config: ModelConfig, *, label_names: Sequence[str], vocab_size: int, pad_id: int, max_length: int
) -> None:
    """Raise InputError for what would make `build` fail or not fit the data, at the cost of no weights."""
    from transformers import AutoModelForSequenceClassification

    planned = build_model_config(
        config, label_names=label_names, vocab_size=vocab_size, pad_id=pad_id, max_length=max_length
    )
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(planned)
    except Exception as error:  # whatever the family's own code makes of the keys
        raise InputError(f"model: {config.name or planned.model_type} cannot be built so: {_reason(error)}") from None
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if weights > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        raise InputError(
            f"model: {config.name or planned.model_type} cannot be built so: its weights take {weights / 1e9:,.0f} GB, "
            f"and this machine has {memory / 1e9:,.0f} GB of memory."
        )
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            positions = module.num_embeddings - module.padding_idx - 1  # RoBERTa counts from behind the padding
            if max_length > positions:
                raise InputError(
                    f"data.max_length={max_length} is not possible: the model knows {positions} positions."
                )
    if config.init is Init.pretrained and os.path.isdir(str(config.name)):
        _check_weights(Path(str(config.name)))


def build_model_config(
    config: ModelConfig, *, label_names: Sequence[str], vocab_size: int, pad_id: int, max_length: int
) -> "PretrainedConfig":
    """The transformers config of the model that `build` makes. Raises InputError where it does not fit the data."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    wanted: dict[str, Any] = dict(config.architecture())
    labels = {"id2label": dict(enumerate(label_names)), "label2id": {name: i for i, name in enumerate(label_names)}}
    if config.name is None:
        family = config.model_type or "bert"
        try:
            planned = AutoConfig.for_model(family, vocab_size=vocab_size, pad_token_id=pad_id, **wanted, **labels)
        except ValueError:
            raise InputError(
                f"model.model_type={family} is not possible: give the name of a family that transformers has, "
                "such as bert or roberta-prelayernorm."
            ) from None
    else:
        local = local_files_only("model.name", config.name)
        try:
            planned = AutoConfig.from_pretrained(
                config.name, trust_remote_code=False, local_files_only=local, **wanted, **labels
            )
        except Exception as error:  # whatever transformers makes of what somebody else has written
            raise InputError(_unloadable(config.name, error)) from None
    if type(planned) not in AutoModelForSequenceClassification._model_mapping:
        raise InputError(f"{config.name or config.model_type} is no sequence classifier that transformers knows.")
    known = {*type(planned)().to_dict(), *planned.attribute_map}
    for key in wanted:
        if key not in known:  # transformers would take it, and do nothing with it
            raise InputError(f"model.{key} is not possible: {planned.model_type} has no such key, leave it out.")
    if vocab_size > planned.vocab_size:
        raise InputError(
            f"model.tokenizer has {vocab_size} entries and model.name={config.name} has embeddings for "
            f"{planned.vocab_size}: leave model.tokenizer out."
        )
    positions = getattr(planned, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise InputError(f"data.max_length={max_length} is not possible: the model knows {positions} positions.")
    return planned


def _check_weights(folder: Path) -> None:
    """Raise InputError unless the folder has weights whose file opens."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(
            f"model.name={folder}: there are no weights (model.safetensors); model.init=random needs none."
        )
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise InputError(f"model.name={folder}: {file.name} cannot be read ({error}).") from None


def _load(name: str, planned: "PretrainedConfig") -> nn.Module:
    """Pretrained weights with a fresh classifier on top; raises InputError where the encoder's are not complete."""
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that the classifier is fresh is what we want; other gaps raise below
    logging.disable_progress_bar()
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            name,
            config=planned,
            dtype=torch.float32,
            local_files_only=local_files_only("model.name", name),
            use_safetensors=True,  # never a pickle from somewhere else
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # of a classifier for another number of classes; others raise below
            output_loading_info=True,
        )
    except Exception as error:
        raise InputError(_unloadable(name, error)) from None
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
    gaps = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    for key in sorted(gaps):
        if key.startswith(f"{model.base_model_prefix}.") and ".pooler." not in key:
            raise InputError(f"model.name={name} is not possible: its weights lack {key}, or have it in another shape.")
    loaded: nn.Module = model
    return loaded


def named_weights(model: nn.Module, *, biases: bool = False) -> dict[str, NamedWeight]:
    """The model's trainable weights, and on request its biases, by short label, from input to output.

    `bert.encoder.layer.0.attention.self.query.weight` has the label `enc.l.0.attention.query`.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    found = {}
    for name, parameter in model.named_parameters():
        owner, _, role = name.rpartition(".")
        if not parameter.requires_grad or (role != "weight" and not biases):
            continue
        label = name.removeprefix(prefix).removesuffix(".weight")
        label = re.sub(r"\bencoder\.layers?\.", "enc.l.", label).replace(".self.", ".")
        kind = "bias" if role == "bias" else _kind(model.get_submodule(owner))
        number = re.search(r"\blayers?\.(\d+)\.", name)
        found[label] = NamedWeight(parameter, kind, int(number[1]) if number else None)
    return found


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.Linear):
        return "linear"
    return "norm" if "norm" in type(module).__name__.lower() else "other"


def _reason(error: Exception) -> str:
    """Its first line: libraries add advice of their own, or where in their source it was."""
    return sanitize_line(str(error).strip().split("\n")[0] or type(error).__name__)


def _unloadable(name: str, error: Exception) -> str:
    return (
        f"model.name={sanitize_line(name)}: no model can be loaded ({_reason(error)}).\n"
        "Give the name of a model on the hub (needs a network the first time), or a local folder with config.json and, "
        "for init=pretrained, model.safetensors."
    )
