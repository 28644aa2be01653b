"""BERT-like sequence classifiers: pretrained or freshly initialized, and short labels for their weights.

Handles transformers' models and their parameter names; tokenizers are in data.tokenize.
Shapes: B texts, T tokens, C classes.
"""

import inspect
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from bertmon.config import Init, ModelConfig
from bertmon.errors import InputError, first_line, require, storage_errors
from bertmon.hub import local_files_only
from bertmon.parameter_names import EMBEDDINGS, encoder_layer, parameter_depths
from bertmon.storage import atomic_folder

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


class NamedWeight(NamedTuple):
    """A watched parameter."""

    parameter: nn.Parameter
    kind: str  # "embedding", "linear", "norm", "bias" or "other"
    depth: int | None  # index of its encoder layer, counted from the input; None outside the encoder


def build_model(
    config: ModelConfig, *, label_names: Sequence[str], vocab_size: int, pad_id: int, max_length: int
) -> nn.Module:
    """The classifier on the CPU, in train mode; new weights are drawn from torch's global random state.

    Its forward takes input_ids [B, T] and attention_mask [B, T] and returns an object with .logits [B, C].
    Raises InputError if the named model cannot be loaded or does not fit the data.
    """
    from transformers import AutoModelForSequenceClassification

    model_config = build_model_config(
        config, label_names=label_names, vocab_size=vocab_size, pad_id=pad_id, max_length=max_length
    )
    if config.init is Init.random:
        model = AutoModelForSequenceClassification.from_config(model_config, dtype=torch.float32)
    else:
        model = _load_pretrained(str(config.name), model_config)
    classifier: nn.Module = model.train()
    _require_positions(classifier, max_length)
    if config.frozen_layers is not None:
        _freeze_lowest(classifier, config.frozen_layers)
    return classifier


def check_model(
    config: ModelConfig, *, label_names: Sequence[str], vocab_size: int, pad_id: int, max_length: int
) -> nn.Module:
    """The model that `build_model` would return, without weights (on the meta device).

    Raises InputError for anything that would make `build_model` fail.
    """
    from transformers import AutoModelForSequenceClassification

    model_config = build_model_config(
        config, label_names=label_names, vocab_size=vocab_size, pad_id=pad_id, max_length=max_length
    )
    family = config.name or model_config.model_type
    try:
        with torch.device("meta"):
            model: nn.Module = AutoModelForSequenceClassification.from_config(model_config, dtype=torch.float32)
    except Exception as error:  # the family's own code can raise anything
        raise InputError(f"model: cannot build {family}: {first_line(error)}") from None
    n_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if config.frozen_layers is not None:
        _freeze_lowest(model, config.frozen_layers)
    memory = _memory_bytes()
    if memory is not None and n_bytes > memory:
        raise InputError(
            f"model: cannot build {family}: its weights take {n_bytes / 1e9:,.0f} GB, "
            f"and this machine has {memory / 1e9:,.0f} GB of memory."
        )
    _require_positions(model, max_length)
    if config.init is Init.pretrained and os.path.isdir(str(config.name)):
        _check_weights(Path(str(config.name)))
    return model


def _freeze_lowest(model: nn.Module, layers: int) -> None:
    """Freeze the embeddings and the lowest `layers` encoder layers.

    Raises InputError if the model has fewer layers, or a decoder, whose layers are numbered as well.
    """
    family: Any = model.config
    if family.is_encoder_decoder:
        raise InputError(
            f"model.frozen_layers: expected null for {family.model_type}, which has a decoder, got {layers}."
        )
    depths = parameter_depths(model)
    count = len({depth for depth in depths.values() if depth not in (None, EMBEDDINGS)})
    require(
        layers <= count, "model.frozen_layers", layers, f"at most the {count} encoder layers with weights of their own"
    )
    for name, parameter in model.named_parameters():
        depth = depths[name]
        if depth is not None and depth < layers:
            parameter.requires_grad = False


def build_model_config(
    config: ModelConfig, *, label_names: Sequence[str], vocab_size: int, pad_id: int, max_length: int
) -> "PretrainedConfig":
    """The transformers config of the model that `build_model` builds. Raises InputError if it does not fit the data."""
    from transformers import AutoModelForSequenceClassification

    architecture: dict[str, Any] = dict(config.architecture())
    labels = {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: i for i, name in enumerate(label_names)},
        "problem_type": "single_label_classification",  # whatever the checkpoint has: pipeline() chooses by it
    }
    if config.name is None:
        model_config = _config_of_family(
            config.model_type or "bert", vocab_size=vocab_size, pad_token_id=pad_id, **architecture, **labels
        )
    else:
        model_config = _config_of_checkpoint(config.name, architecture, labels)
    if type(model_config) not in AutoModelForSequenceClassification._model_mapping:
        key, value = ("model.name", config.name) if config.name else ("model.model_type", config.model_type)
        raise InputError(f"{key}: expected a model that transformers has a sequence classifier for, got {value}.")
    known_keys = {*type(model_config)().to_dict(), *model_config.attribute_map}
    for key, value in architecture.items():
        if key not in known_keys:  # transformers would accept and ignore it
            raise InputError(
                f"model.{key}: expected no value, because {model_config.model_type} has no such key, got {value}."
            )
    if vocab_size > model_config.vocab_size:
        remedy = "; remove model.tokenizer" if config.tokenizer else f": that of {config.name} has tokens without one"
        raise InputError(
            f"model.tokenizer: expected at most {model_config.vocab_size} entries, the embeddings of "
            f"model.name={config.name}, got {vocab_size}{remedy}."
        )
    return model_config


def _config_of_family(family: str, **keys: Any) -> "PretrainedConfig":
    from transformers import CONFIG_MAPPING, AutoConfig

    if family not in CONFIG_MAPPING:
        raise InputError(
            "model.model_type: expected a model family of transformers, such as bert or roberta-prelayernorm, "
            f"got {family}."
        )
    try:
        model_config: PretrainedConfig = AutoConfig.for_model(family, **keys)
    except Exception as error:  # the family's own code can raise anything
        raise InputError(f"model: cannot build {family}: {first_line(error)}") from None
    return model_config


def _config_of_checkpoint(name: str, architecture: dict[str, Any], labels: dict[str, Any]) -> "PretrainedConfig":
    from transformers import AutoConfig

    local = local_files_only("model.name", name)
    try:
        model_config: PretrainedConfig = AutoConfig.from_pretrained(
            name, trust_remote_code=False, local_files_only=local, **architecture, **labels
        )
    except Exception as error:  # transformers can raise anything for a third-party file
        raise InputError(_load_error(name, error)) from None
    return model_config


def max_positions(model: nn.Module) -> int:
    """The length in tokens of the longest text that the model can read; sys.maxsize without a limit, as in XLNet."""
    limit = getattr(model.config, "max_position_embeddings", None) or -1
    limits = [limit if limit > 0 else sys.maxsize]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)  # RoBERTa's positions start after it
    return min(limits)


def _require_positions(model: nn.Module, max_length: int) -> None:
    positions = max_positions(model)
    require(max_length <= positions, "data.max_length", max_length, f"at most the model's {positions} positions")


def _memory_bytes() -> int | None:
    """Physical memory of this machine; None if Python cannot determine it, as on Windows."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _check_weights(folder: Path) -> None:
    """Raise InputError unless the folder has weights in readable files."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(
            f"model.name: expected a folder with model.safetensors, got {folder}; model.init=random needs no weights."
        )
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise InputError(f"model.name: could not read {folder}/{file.name}: {error}.") from None


def _load_pretrained(name: str, model_config: "PretrainedConfig") -> nn.Module:
    """Pretrained weights in float32, under a new head unless the checkpoint's is for the same labels in the same order.

    Raises InputError if encoder weights are missing.
    """
    from transformers import AutoModelForSequenceClassification

    try:
        with quiet_transformers():  # a new head is intended; other missing weights raise below
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                name,
                config=model_config,
                dtype=torch.float32,  # even for a bfloat16 checkpoint: small updates would be rounded away
                local_files_only=local_files_only("model.name", name),
                use_safetensors=True,  # never a third-party pickle
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # of a head for another number of classes; others raise below
                output_loading_info=True,
            )
    except Exception as error:
        raise InputError(_load_error(name, error)) from None
    incomplete = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    for key in sorted(incomplete):
        if key.startswith(f"{model.base_model_prefix}.") and ".pooler." not in key:
            raise InputError(f"model.name: the weights of {name} lack {key} or have it with a different shape.")
    classifier: nn.Module = model
    weights = classifier.state_dict()
    head = [key for key in weights if not key.startswith(f"{model.base_model_prefix}.")]
    has_loaded_head = len(head) < len(weights) and not incomplete.issuperset(head)
    if has_loaded_head and _checkpoint_labels(name) != [*(model_config.id2label or {}).values()]:
        _initialize(classifier, head)
    return classifier


def _checkpoint_labels(name: str) -> list[str]:
    """The label names of the checkpoint's own head."""
    from transformers import AutoConfig

    local = local_files_only("model.name", name)
    stored: Any = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=local)
    return [str(label) for label in stored.id2label.values()]


def _initialize(model: Any, names: Sequence[str]) -> None:
    """Draw these parameters again, as for a model without a checkpoint."""
    owners = dict.fromkeys(name.rpartition(".")[0] for name in names)
    for module in map(model.get_submodule, owners):
        for parameter in module.parameters(recurse=False):
            vars(parameter).pop("_is_hf_initialized", None)  # transformers 5 skips parameters that have been loaded
        model._init_weights(module)


def has_token_types(model: nn.Module) -> bool:
    """Whether the model tells the two texts of a pair apart by token_type_ids."""
    has_argument = "token_type_ids" in inspect.signature(model.forward).parameters
    return has_argument and getattr(model.config, "type_vocab_size", 0) >= 2  # RoBERTa has one type for all tokens


def missing_features(model: nn.Module) -> list[str]:
    """Features of bertmon that do not work with this model, one sentence each."""
    family = getattr(model.config, "model_type", type(model).__name__)
    depths = {weight.depth for weight in named_weights(model).values()} - {None}
    missing = []
    if len(depths) < 2:
        if family == "albert":
            why = "shares one set of weights among its layers"
        elif all(parameter.requires_grad for parameter in model.parameters()):
            why = "has fewer than two encoder layers"
        else:
            why = "has fewer than two encoder layers that train"
        missing.append(f"depth_ratio: {family} {why}, so there are no gradients of single layers to compare")
    return missing


class SavableTokenizer(Protocol):
    """The part of data.tokenize.TextTokenizer that `save_model` uses."""

    def to_transformers(self, max_length: int) -> "PreTrainedTokenizerBase": ...


def save_model(model: Any, tokenizer: SavableTokenizer, folder: Path, max_length: int) -> None:
    """Save the classifier and its tokenizer to `folder`, for from_pretrained and pipeline of transformers.

    Weights are in model.safetensors; the tokenizer's model_max_length is the length used in training. The folder is
    written atomically and replaces an existing one. Raises StorageError.
    """
    saved_tokenizer = tokenizer.to_transformers(max_length)
    if not has_token_types(model):  # pipeline passes everything that the tokenizer returns to the model
        names = [name for name in saved_tokenizer.model_input_names if name != "token_type_ids"]
        saved_tokenizer.model_input_names = names
    with storage_errors(folder), atomic_folder(folder) as temporary, quiet_transformers():
        try:
            model.save_pretrained(temporary)
        except SafetensorError as error:  # raised for a full disk
            raise OSError(str(error)) from None
        saved_tokenizer.save_pretrained(temporary)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and warnings in the body."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


_PEFT = r"^base_model\.model\.|(?<=\.lora_[AB])\.\w+(?=\.|$)|\.modules_to_save\.\w+(?=\.)|\.base_layer(?=\.)"
"""Parts that peft adds to the parameter names of a model and its adapters."""


def named_weights(model: nn.Module, *, biases: bool = False, frozen: bool = False) -> dict[str, NamedWeight]:
    """The model's trainable weights, optionally with biases and frozen ones, by short label, from input to output.

    `bert.encoder.layer.0.attention.self.query.weight` has the label `enc.l.0.attention.query`, and its LoRA adapters
    have `enc.l.0.attention.query.lora_A` and `enc.l.0.attention.query.lora_B`. All matrices count as weights, whatever
    their names, and so do the scales of normalization layers.
    """
    parameters = dict(model.named_parameters())
    labels = {name: _label(name, model) for name in parameters}
    uses = Counter(labels.values())  # several adapters of one matrix share a label: they keep their full names
    weights = {}
    for name, parameter in parameters.items():
        owner, _, role = name.rpartition(".")
        is_weight = role == "weight" or (parameter.ndim > 1 and role != "bias")
        if not (parameter.requires_grad or frozen) or not (is_weight or biases):
            continue
        label = labels[name] if uses[labels[name]] == 1 else name
        kind = "bias" if role == "bias" else _kind(model.get_submodule(owner), parameter)
        weights[label] = NamedWeight(parameter, kind, encoder_layer(name))
    return weights


def _label(name: str, model: nn.Module) -> str:
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    label = re.sub(_PEFT, "", name).removeprefix(prefix).removesuffix(".weight")
    return re.sub(r"\bencoder\.layers?\.", "enc.l.", label).replace(".self.", ".")


def _kind(module: nn.Module, parameter: nn.Parameter) -> str:
    if isinstance(module, nn.Embedding):
        return "embedding"
    if "norm" in type(module).__name__.lower():
        return "norm"
    return "linear" if parameter.ndim == 2 and min(parameter.shape) > 1 else "other"


def _load_error(name: str, error: Exception) -> str:
    return (
        f"model.name={name}: could not load a model ({first_line(error)}).\n"
        "Set the name of a model on the hub (the first use needs a network), or a local folder with config.json and, "
        "for model.init=pretrained, model.safetensors."
    )
