"""The schema of a run: one dataclass per conf group, with each key's meaning, unit and range under its field.

A value out of range raises InputError when the dataclass is created. The modules that use a file, package or device
check that it exists; bertmon.launch composes and reads configs.
"""

import functools
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from bertmon.errors import InputError, require
from bertmon.sanitize import has_control_characters, sanitize_line

MAX_INT = 10_000_000
"""Limit of every integer except seeds; beyond it, libraries overflow or run out of memory."""

RENAMED_KEYS = {
    "cache": "cache_dir",
    "data.home": "data.data_home",
    "data.pad_lengths": "data.bucket_lengths",
    "monitor.biases": "monitor.include_biases",
    "monitor.rules.depth_profile": "monitor.thresholds.min_depth_ratio",
    "monitor.rules.growth": "monitor.thresholds.max_logit_std_growth",
    "monitor.rules.learned": "monitor.thresholds.learned_loss_ratio",
    "monitor.rules.logit_spread": "monitor.thresholds.min_logit_std",
    "monitor.rules.patience": "monitor.thresholds.min_lr_used",
    "monitor.rules.slow": "monitor.thresholds.slow_after",
    "monitor.rules.spread_at_end": "monitor.thresholds.min_final_logit_std",
    "monitor.rules.update_per_lr": "monitor.thresholds.min_update_per_lr",
    "schedule.shape": "schedule.decay",
    "train.clip": "train.max_grad_norm",
}
"""Keys of version 0.1 and their current names."""

RENAMED_CHOICES = {"model=bert_narrow": "model=bert_small_8l", "model=hub": "model=pretrained"}
"""Config group choices of version 0.1 and their current names."""


def _require_int(key: str, value: object, minimum: int = 1, maximum: int = MAX_INT) -> None:
    ok = isinstance(value, int) and minimum <= value <= maximum
    require(ok, key, value, f"an integer of at least {minimum} and at most {maximum}")


class Device(StrEnum):
    auto = "auto"
    cuda = "cuda"
    cpu = "cpu"
    mps = "mps"


class Precision(StrEnum):
    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"


class Init(StrEnum):
    random = "random"
    pretrained = "pretrained"


class Decay(StrEnum):
    linear = "linear"
    cosine = "cosine"
    constant = "constant"
    inverse_sqrt = "inverse_sqrt"
    polynomial = "polynomial"
    cosine_with_restarts = "cosine_with_restarts"
    cosine_with_min_lr = "cosine_with_min_lr"
    warmup_stable_decay = "warmup_stable_decay"


class Metric(StrEnum):
    accuracy = "accuracy"
    f1_macro = "f1_macro"
    mcc = "mcc"


class SaveModel(StrEnum):
    none = "none"
    last = "last"
    best = "best"


class Keep(StrEnum):
    best = "best"
    all = "all"


class OnBehind(StrEnum):
    ignore = "ignore"
    stop = "stop"


class OnDoomed(StrEnum):
    warn = "warn"
    stop = "stop"


class PostPart(StrEnum):
    headers = "headers"
    footers = "footers"
    quotes = "quotes"


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Keys shared by all sources of texts."""

    max_length: int = 256
    """Maximum number of tokens per text, including [CLS] and [SEP]; longer texts are truncated. At least 8."""
    bucket_lengths: list[int] | None = None
    """Lengths in tokens that batches are padded to, in ascending order, ending with max_length. Each batch is padded to
    the first length that fits its longest text. null: quarters of max_length, rounded up to multiples of 8."""
    validation_frac: float | None = None
    """Fraction of the training texts to hold out for validation, stratified by class, in [0, 1). null: 0.1 if
    data.train (data=hf: data.train_split) is the only part given, else 0, which means no validation part."""
    split_seed: int = 0
    """Seed of the splits that bertmon makes; separate from `seed`, so that runs with different seeds have the same
    texts in each part. From 0 to 2**32 - 1."""

    def __post_init__(self) -> None:
        _require_int("data.max_length", self.max_length, minimum=8)
        fraction = self.validation_frac
        require(
            fraction is None or 0 <= fraction < 1, "data.validation_frac", fraction, "at least 0 and below 1, or null"
        )
        _require_int("data.split_seed", self.split_seed, minimum=0, maximum=2**32 - 1)
        if self.bucket_lengths is not None:
            lengths = list(self.bucket_lengths)
            require(
                all(isinstance(length, int) for length in lengths)  # OmegaConf accepts nested lists
                and lengths == sorted(set(lengths))
                and lengths[:1] > [0]
                and lengths[-1] == self.max_length,
                "data.bucket_lengths",
                lengths,
                f"ascending integers above 0 that end with data.max_length={self.max_length}",
            )


@dataclass(kw_only=True, slots=True)
class NewsgroupsConfig(DataConfig):
    """20 newsgroups, with the training and test parts (split by date) of scikit-learn's fetch_20newsgroups."""

    categories: list[str] = field(
        default_factory=lambda: ["alt.atheism", "comp.graphics", "sci.space", "talk.religion.misc"]
    )
    """Newsgroups to classify, at least two of the twenty. The four defaults are those of the article."""
    remove: list[PostPart] = field(default_factory=list)
    """Parts of each post to remove: headers, footers, quotes. The article keeps them all."""
    data_home: str | None = None
    """Folder of scikit-learn's cache of the data. null: $SCIKIT_LEARN_DATA or ~/scikit_learn_data."""

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        _require_distinct("data.categories", self.categories)


@dataclass(kw_only=True, slots=True)
class DocstringsConfig(DataConfig):
    """Docstrings of installed packages, labeled by package. Needs no network."""

    packages: list[str] = field(default_factory=lambda: ["numpy", "sklearn", "matplotlib", "torch"])
    """Import names of installed packages, at least two. Their sources are read; nothing is imported."""
    train_per_package: int = 900
    """Training texts taken from each package. At least 1."""
    test_per_package: int = 100
    """Test texts taken from each package. At least 1."""

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        _require_distinct("data.packages", self.packages)
        for name in ("train_per_package", "test_per_package"):
            _require_int(f"data.{name}", getattr(self, name))


DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
"""Delimiters by names that need no quoting on the command line."""


@dataclass(kw_only=True, slots=True)
class FilesConfig(DataConfig):
    """Your own texts in files: .csv, .tsv, .jsonl, .json (an array) or .parquet; all except .parquet can be gzipped."""

    train: str = MISSING
    """File with the training texts: .csv or .tsv with a header line, .jsonl with one object per line, .json with an
    array of objects, or .parquet."""
    test: str | None = None
    """File with the test texts, in the same formats. null: data.test_frac of the training file."""
    validation: str | None = None
    """File with validation texts, to select epochs and settings. null: data.validation_frac of the training file."""
    test_frac: float = 0.2
    """Fraction of the training file to hold out for testing if data.test is null, stratified by class. Above 0 and
    below 1."""
    text_column: str = "text"
    """Column, or JSON key, that holds the text."""
    text_pair_column: str | None = None
    """Column that holds the second text of a pair, as in entailment or paraphrase tasks. null: single texts."""
    label_column: str = "label"
    """Column, or JSON key, that holds the label: a string, an integer, true or false."""
    delimiter: str | None = None
    """Column separator of .csv and .tsv: comma, semicolon, tab, pipe, or another character. null: a tab for .tsv; for
    .csv a comma, or the semicolon or tab in a header without commas."""
    encoding: str | None = None
    """Encoding of the files, by its name in Python, such as cp1252. null: from the byte order mark, else UTF-8."""
    quoted: bool | None = None
    """Whether fields may be enclosed in double quotes. null: true for .csv; false for .tsv, where a quote is part of
    the text, as in GLUE's files."""
    skip_empty: bool = False
    """true: skip rows whose text or label is empty. false: raise an error."""

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        _require_columns(self.text_column, self.text_pair_column, self.label_column)
        require(self.test is None or self.test != "", "data.test", "", "a file, or null")
        require(self.validation is None or self.validation != "", "data.validation", "", "a file, or null")
        require(0 < self.test_frac < 1, "data.test_frac", self.test_frac, "a number above 0 and below 1")
        if self.validation is not None:
            conflict = "null or 0 with data.validation"
            require(not self.validation_frac, "data.validation_frac", self.validation_frac, conflict)
        require_table_format(self.delimiter, self.encoding, prefix="data.")

    def validation_share(self) -> float:
        """`validation_frac`, with its default resolved."""
        return _validation_share(self.validation_frac, alone=self.test is None and self.validation is None)


@dataclass(kw_only=True, slots=True)
class HfConfig(DataConfig):
    """A data set on the Hugging Face hub, or a folder written by datasets.save_to_disk. Needs bertmon[datasets]."""

    name: str = MISSING
    """Name of the data set on the hub, or a local folder."""
    subset: str | None = None
    """Configuration of the data set, such as rte of glue. null: its only one."""
    train_split: str = "train"
    """Split with the training texts."""
    test_split: str | None = "test"
    """Split with the test texts. null: data.test_frac of the training split."""
    validation_split: str | None = None
    """Split with validation texts, to select epochs and settings. null: data.validation_frac of the training split."""
    test_frac: float = 0.2
    """Fraction of the training split to hold out for testing if data.test_split is null, stratified by class. Above 0
    and below 1."""
    text_column: str = "text"
    """Column that holds the text."""
    text_pair_column: str | None = None
    """Column that holds the second text of a pair. null: single texts."""
    label_column: str = "label"
    """Column that holds the label: class labels, strings, integers or booleans."""
    skip_empty: bool = False
    """true: skip rows whose text or label is empty. false: raise an error."""

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        _require_columns(self.text_column, self.text_pair_column, self.label_column)
        require(0 < self.test_frac < 1, "data.test_frac", self.test_frac, "a number above 0 and below 1")
        if self.validation_split is not None:
            conflict = "null or 0 with data.validation_split"
            require(not self.validation_frac, "data.validation_frac", self.validation_frac, conflict)

    def validation_share(self) -> float:
        """`validation_frac`, with its default resolved."""
        return _validation_share(self.validation_frac, alone=self.test_split is None and self.validation_split is None)


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """A BERT-like sequence classifier. Architecture keys have the names used in transformers configs."""

    init: Init = Init.random
    """Initialization of the weights: random, or pretrained (the weights of `name`)."""
    name: str | None = None
    """Hub name or local folder of the architecture, the tokenizer and, with init=pretrained, the weights. null: the
    keys below define the architecture."""
    tokenizer: str | None = None
    """Hub name or local folder of the tokenizer. null: the tokenizer of `name`; if that is null too, a WordPiece
    vocabulary trained on the training texts."""
    vocab_size: int | None = None
    """Size of a vocabulary trained on the texts (smaller if they yield fewer entries). At least 100; null: 8,000."""
    model_type: str | None = None
    """Architecture family by its transformers name, such as roberta-prelayernorm, if `name` is null. null: bert."""
    num_hidden_layers: int | None = None
    """Number of encoder layers. null, here and in the architecture keys below: the value of `name`, or the family's
    default."""
    hidden_size: int | None = None
    """Size of the hidden states, a multiple of num_attention_heads."""
    num_attention_heads: int | None = None
    """Number of attention heads per layer."""
    intermediate_size: int | None = None
    """Hidden size of the feed-forward network."""
    max_position_embeddings: int | None = None
    """Maximum number of positions, at least data.max_length."""
    hidden_dropout_prob: float | None = None
    """Dropout probability of embeddings, feed-forward and attention outputs, in [0, 1)."""
    attention_probs_dropout_prob: float | None = None
    """Dropout probability of attention weights, in [0, 1)."""
    frozen_layers: int | None = None
    """Number of encoder layers to freeze, from the lowest up, together with the embeddings: 0 freezes only the
    embeddings. null: nothing is frozen."""

    def __post_init__(self) -> None:
        for key in ("name", "tokenizer", "model_type"):
            require(getattr(self, key) != "", f"model.{key}", "''", "a name, or null")
        self.name, self.tokenizer = (each and os.path.expanduser(each) for each in (self.name, self.tokenizer))
        if self.vocab_size is not None:
            _require_int("model.vocab_size", self.vocab_size, minimum=100, maximum=1_000_000)
            own = not (self.tokenizer or self.name)
            require(own, "model.vocab_size", self.vocab_size, "null with model.tokenizer or model.name")
        if self.name is not None:
            require(self.model_type is None, "model.model_type", self.model_type, "null with model.name")
        for key, value in self.architecture():
            if key.endswith("_prob"):
                require(0 <= value < 1, f"model.{key}", value, "a number of at least 0 and below 1")
            else:
                _require_int(f"model.{key}", value, maximum=1000 if key == "num_hidden_layers" else MAX_INT)
        if self.frozen_layers is not None:
            _require_int("model.frozen_layers", self.frozen_layers, minimum=0, maximum=1000)
        if self.hidden_size and self.num_attention_heads:
            require(
                self.hidden_size % self.num_attention_heads == 0,
                "model.hidden_size",
                self.hidden_size,
                f"a multiple of model.num_attention_heads={self.num_attention_heads}",
            )
        if self.init is Init.pretrained:
            expected = "the hub name or local folder of the pretrained weights"
            require(self.name is not None, "model.name", "null", expected)
            for key, value in self.architecture():
                expected = "null with model.init=pretrained, whose weights fix the architecture"
                require(key.endswith("_prob"), f"model.{key}", value, expected)

    def architecture(self) -> Iterator[tuple[str, Any]]:
        """The architecture keys that are not null, with their values."""
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in _ARCHITECTURE and value is not None:
                yield f.name, value


_ARCHITECTURE = {
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
}


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), with or without bias correction."""

    lr: float = 1e-3
    """Peak learning rate; the schedule scales it. Above 0."""
    bias_correction: bool = True
    """false: the moments are not corrected for their initialization at zero, as in the original BERT code. Early steps
    are then larger, by a factor of (1 - beta1^t) / sqrt(1 - beta2^t) at the t-th step."""
    beta1: float = 0.9
    """Decay rate of the running mean of gradients, in [0, 1)."""
    beta2: float = 0.999
    """Decay rate of the running mean of squared gradients, in [0, 1)."""
    eps: float = 1e-6
    """Added to the denominator. Above 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; biases and LayerNorm weights have none. At least 0."""
    layer_decay: float = 1.0
    """Layer-wise learning rate decay, from each encoder layer to the one below it: with L layers, the head has the full
    rate, layer d (counted from 0 at the input) the fraction layer_decay^(L - d) of it, the embeddings
    layer_decay^(L + 1). In (0, 1]; 1: the same rate everywhere."""
    head_lr: float | None = None
    """Peak learning rate of the classification head. Above 0; null: the value of lr."""

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, "optimizer.lr", self.lr, "a finite number above 0")
        expected = "a finite number of at least 1.2e-38, the smallest normal one in float32"
        require(2.0**-126 <= self.eps < math.inf, "optimizer.eps", self.eps, expected)
        for key in ("beta1", "beta2"):
            value = getattr(self, key)
            require(0 <= value < 1, f"optimizer.{key}", value, "a number of at least 0 and below 1")
            if not self.bias_correction:  # without it, Adam starts at step 2**24, where beta**step must vanish
                require(value <= 0.999997, f"optimizer.{key}", value, "at most 0.999997 without bias correction")
        decay = self.weight_decay
        require(0 <= decay < math.inf, "optimizer.weight_decay", decay, "a finite number of at least 0")
        require(0 < self.layer_decay <= 1, "optimizer.layer_decay", self.layer_decay, "a number in (0, 1]")
        if self.head_lr is not None:
            require(0 < self.head_lr < math.inf, "optimizer.head_lr", self.head_lr, "a finite number above 0 or null")


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    """The learning rate schedule."""

    decay: Decay = Decay.linear
    """Shape after the warm-up: linear (down to 0), cosine (down to 0) or constant; or one of transformers' schedules:
    inverse_sqrt, polynomial, cosine_with_restarts, cosine_with_min_lr, warmup_stable_decay."""
    warmup_frac: float = 0.1
    """Fraction of all steps over which the learning rate rises to its peak, in [0, 1]. It rises linearly, from 0 (with
    decay=warmup_stable_decay from end_factor)."""
    warmup_steps: int | None = None
    """Length of the warm-up in steps, instead of warmup_frac. At least 0, and limited to the steps of the run; null:
    warmup_frac applies."""
    power: float | None = None
    """Exponent of decay=polynomial. Above 0."""
    end_factor: float | None = None
    """Final fraction of the peak rate for decay=polynomial, cosine_with_min_lr or warmup_stable_decay, in [0, 1)."""
    cycles: int | None = None
    """Number of cosine cycles of decay=cosine_with_restarts. At least 1."""
    timescale: int | None = None
    """Time scale of decay=inverse_sqrt in steps. At least 1; null: the number of warm-up
    steps, or 10,000 without a warm-up."""
    decay_frac: float | None = None
    """Fraction of all steps, at the end of the run, over which decay=warmup_stable_decay falls, in (0, 1]."""
    function: str | None = None
    """Your own schedule, as an importable module.function: it is called with (step, warmup_steps, total_steps) and
    returns the factor of the peak rate at that step. Replaces decay."""

    def __post_init__(self) -> None:
        require(0 <= self.warmup_frac <= 1, "schedule.warmup_frac", self.warmup_frac, "a number from 0 to 1")
        if self.warmup_steps is not None:
            _require_int("schedule.warmup_steps", self.warmup_steps, minimum=0)
        for key, (required, decays) in _SCHEDULE_PARAMETERS.items():
            value = getattr(self, key)
            if value is not None and self.decay not in decays:
                raise InputError(f"schedule.{key}: expected null with decay={self.decay}, got {value}.")
            if value is None and required and self.decay in decays:
                raise InputError(f"schedule.{key}: expected a number with decay={self.decay}, got null.")
        for key in ("cycles", "timescale"):
            if (count := getattr(self, key)) is not None:
                _require_int(f"schedule.{key}", count)
        if self.power is not None:
            require(0 < self.power < math.inf, "schedule.power", self.power, "a finite number above 0")
        if self.end_factor is not None:
            require(0 <= self.end_factor < 1, "schedule.end_factor", self.end_factor, "a number in [0, 1)")
        if self.decay_frac is not None:
            require(0 < self.decay_frac <= 1, "schedule.decay_frac", self.decay_frac, "a number in (0, 1]")


_SCHEDULE_PARAMETERS = {
    "power": (True, (Decay.polynomial,)),
    "end_factor": (True, (Decay.polynomial, Decay.cosine_with_min_lr, Decay.warmup_stable_decay)),
    "cycles": (True, (Decay.cosine_with_restarts,)),
    "timescale": (False, (Decay.inverse_sqrt,)),
    "decay_frac": (True, (Decay.warmup_stable_decay,)),
}
"""Keys that apply to some decays only: whether they are required, and those decays."""


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """Length, batches, evaluation, checkpoints and precision of training."""

    epochs: int = 3
    """Passes over the training texts. At least 1."""
    batch_size: int = 16
    """Texts per batch, over all processes. At least 1; the last batch of an epoch can be smaller."""
    accumulate: int = 1
    """Batches per step, whose gradients are accumulated; the step's loss is the mean over all their texts. At least
    1."""
    class_weights: Any = None
    """Weights of the classes in the loss: balanced (inversely proportional to their number of training texts, as in
    scikit-learn's compute_class_weight), a list of numbers above 0 in the order of the classes, or a mapping from label
    names to numbers, in which classes that are not listed have weight 1. null: equal weights."""
    eval_batch_size: int = 64
    """Texts per batch in evaluations. At least 1; does not affect the metrics."""
    eval_every: int | None = None
    """Steps between evaluations. At least 1; null: equal parts of an epoch, such that a run has ten evaluations or a
    few more. Every run is also evaluated before its first step and at the end of each epoch; with a number above the
    run's steps, only then. Their cost: docs/cost.md."""
    metric: Metric = Metric.accuracy
    """Metric that selects the best evaluation and the best setting, and is a sweeper's objective: accuracy, f1_macro
    (mean F1 over the classes) or mcc (Matthews correlation coefficient). Computed on the validation split if there is
    one, else on the test split."""
    patience: int | None = None
    """Early stopping: number of consecutive evaluations (see eval_every) without an improvement of the metric after
    which training stops. At least 1; null: never."""
    save_model: SaveModel = SaveModel.none
    """Save the model in the run's folder with transformers' save_pretrained: none, last (at the end) or best (at each
    evaluation that improves the metric; not before the first step)."""
    keep: Keep = Keep.best
    """Saved models to keep at the end of a sweep: best (those of the best setting) or all."""
    log_every: int = 10
    """Steps between logged points of loss/train, the learning rates, grad_norm and clipped. At least 1."""
    max_grad_norm: float | None = 1.0
    """Maximum global L2 norm of the gradients; larger ones are clipped to it. Above 0; null: no clipping."""
    checkpoint_every: int | None = None
    """Steps between checkpoints. At least 1; null: only checkpoint_minutes applies."""
    checkpoint_minutes: float | None = 10.0
    """Minutes between checkpoints, written at the end of a step. Above 0; null: only checkpoint_every applies. An
    interrupted run also writes one, unless both are null; a run deletes its checkpoint when it ends."""
    precision: Precision = Precision.fp32
    """fp32: IEEE float32, regardless of TF32 settings in the environment. tf32: the same with TF32 matrix products,
    faster on NVIDIA GPUs since Ampere. bf16: matrix products autocast to bfloat16. Weights and optimizer state are
    always float32."""
    compile: bool = False
    """true: torch.compile the training pass, once per batch shape. Results differ by rounding. Meant for GPUs: on the
    CPU it needs a C++ compiler and gains nothing (docs/LOG.md)."""
    deterministic: bool = False
    """true: use only deterministic kernels, which are slower on CUDA; an operation without one raises an error. Not
    needed on the CPU."""

    def __post_init__(self) -> None:
        _require_class_weights(self.class_weights)
        if isinstance(self.class_weights, Mapping):
            self.class_weights = {str(label): weight for label, weight in self.class_weights.items()}
        for key in (
            "epochs",
            "batch_size",
            "accumulate",
            "eval_batch_size",
            "eval_every",
            "patience",
            "log_every",
            "checkpoint_every",
        ):
            if (value := getattr(self, key)) is not None:
                _require_int(f"train.{key}", value)
        for key in ("max_grad_norm", "checkpoint_minutes"):
            number = getattr(self, key)
            require(number is None or 0 < number < math.inf, f"train.{key}", number, "a finite number above 0, or null")


@dataclass(kw_only=True, slots=True)
class VerdictThresholds:
    """Thresholds of the verdicts. Their source is bertmon's own study of labeled runs: docs/verdicts.md."""

    min_logit_std: float = 3e-5
    """Below this standard deviation of the logits over the texts of a batch (logit_std), the model ignores its input.
    Untrained models of width 64 and 128 have 5e-5 to 1e-3, models that learn about 1, collapsed ones mostly 1e-6 or
    less. Above 0."""
    min_depth_ratio: float = 3e-2
    """Below this ratio of the mean |gradient| of the first encoder layer to that of the last (depth_ratio), gradients
    vanish towards the input. In runs that learn, all but one snapshot in a hundred have 0.1 to 10; collapsed runs have
    less than 1e-2. Above 0."""
    min_logit_std_ratio: float = 3e-2
    """Below this share of its value at step 0, while gradients have vanished (vanished_depth_ratio), logit_std means
    that the model ignores its input, whatever its width. In (0, 1)."""
    vanished_depth_ratio: float = 1.5e-2
    """Below this depth_ratio, gradients have clearly vanished: a BERT-base on a plateau that ended had 0.02 to 0.05,
    three that collapsed 0.009 to 0.016, most collapsed runs of a pretrained MiniLM 0.005 or less. Above 0."""
    shrunk_logit_std_ratio: float = 0.1
    """Below this share of its value at step 0, logit_std has shrunk, and its trend up to then predicts nothing about
    the remaining steps (max_logit_std_growth is assumed instead): BERT-base runs on plateaus that ended had 0.02 to
    0.09, runs with too small a learning rate 0.3 or more. In (0, 1)."""
    min_update_per_lr: float = 1e-2
    """Below this size of Adam's step, in units of the effective learning rate, the weights have stopped moving. Runs
    that learn have 0.05 to 1. Above 0."""
    learned_loss_ratio: float = 0.95
    """Below this fraction of the entropy of the labels, the smoothed training loss counts as learned. In (0, 1)."""
    min_final_logit_std: float = 3e-3
    """If the predicted logit_std at the last step is below this, a run is called not learning; log(logit_std) is
    extrapolated linearly over the cumulative effective learning rate. Above 0."""
    min_lr_used: float = 0.3
    """Share of the run's cumulative effective learning rate that must be used before the slope of that line is trusted.
    In (0, 1)."""
    max_logit_std_growth: float = 600.0
    """Slope that is assumed until then, that of the fastest run of width 64: log(logit_std) per unit of learning rate.
    Above 0."""
    max_loss_ratio: float = 10.0
    """Above this multiple of the entropy of the labels, after slow_after of the steps, a run will not learn: no
    labeled run came near it. Above 1."""
    slow_after: float = 0.3
    """Share of all steps after which a run that has not learned yet is called slow. In (0, 1)."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in _SHARES:
                require(0 < value < 1, f"monitor.thresholds.{f.name}", value, "a number between 0 and 1")
            elif f.name == "max_loss_ratio":
                require(1 < value < math.inf, f"monitor.thresholds.{f.name}", value, "a finite number above 1")
            else:
                require(0 < value < math.inf, f"monitor.thresholds.{f.name}", value, "a finite number above 0")


_SHARES = ("learned_loss_ratio", "min_logit_std_ratio", "min_lr_used", "shrunk_logit_std_ratio", "slow_after")


@dataclass(kw_only=True, slots=True)
class MonitorConfig:
    """What is monitored, how often, and what happens to doomed runs."""

    enabled: bool = True
    """false: measure neither gradients nor updates (loss and accuracy are measured anyway)."""
    every: int = 30
    """Steps between measurements, starting at step 0. At least 1."""
    figures: bool = True
    """Draw gradient_depth, gradient_flow and update_ratio at each measurement."""
    include_biases: bool = False
    """Monitor biases as well as weights."""
    skip_prob: float = 0.0
    """Fraction of weights to leave out, in [0, 1): chosen at random, but the same in every run, and never the first or
    the last one. Verdicts use the monitored weights only."""
    on_doomed: OnDoomed = OnDoomed.warn
    """Action for a run whose verdict is collapsed or not learning: warn (the run continues) or stop (after a last
    evaluation, with status "stopped"; the verdict can then no longer be withdrawn). A run that diverged always ends."""
    on_behind: OnBehind = OnBehind.ignore
    """Action for a run that learns, but even at twice its pace cannot catch up with the best of its sweep's ended runs:
    ignore, or stop (status "stopped"; in one process only). Evaluated in docs/verdicts.md."""
    thresholds: VerdictThresholds = field(default_factory=VerdictThresholds)

    def __post_init__(self) -> None:
        _require_int("monitor.every", self.every)
        compared = self.on_behind is OnBehind.stop
        require(self.enabled or not compared, "monitor.on_behind", self.on_behind, "ignore with monitor.enabled=false")
        require(0 <= self.skip_prob < 1, "monitor.skip_prob", self.skip_prob, "a number of at least 0 and below 1")


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """One run."""

    experiment: str = "custom"
    """Name of the preset in conf/experiment that the run is based on; each preset sets it. custom: none."""
    name: str | None = None
    """Name of the run or sweep, for folders and TensorBoard. null: the name of the experiment. At most 100 characters,
    without / and control characters."""
    seed: int = 0
    """Seed of the initial weights, the order of the texts and dropout. From 0 to 2**32 - 1."""
    device: Device = Device.auto
    """cuda, cpu, mps, or auto: cuda if available, else mps if available, else cpu."""
    cache_dir: str | None = None
    """Folder for cached corpora, vocabularies and tokens, shared by runs. Safe to delete.
    null: $XDG_CACHE_HOME/bertmon, or ~/.cache/bertmon."""
    resume: str | None = None
    """Folder of an earlier launch of the same command, such as multirun/2026-11-23_07-17-49: its finished runs are
    skipped, interrupted ones resume from their checkpoints, the others start."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "seed", self.seed, "an integer from 0 to 4294967295")
        require(self.cache_dir != "", "cache_dir", "''", "a folder, or null")
        require(self.resume != "", "resume", "''", "the folder of an earlier launch, or null")
        valid = self.name is None or _is_file_name(self.name)
        require(valid, "name", self.name, "1 to 100 characters without / and control characters, or null")
        positions = self.model.max_position_embeddings
        if positions is not None:
            require(
                self.data.max_length <= positions,
                "data.max_length",
                self.data.max_length,
                f"at most model.max_position_embeddings={positions}",
            )

    def cache_path(self) -> Path:
        """Absolute path of the cache folder."""
        named = self.cache_dir or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "bertmon")
        folder = os.path.expanduser(named)
        require(not folder.startswith("~"), "cache_dir", named, "a folder of an existing user")
        return Path(folder).absolute()


_NON_IDENTITY_KEYS = (
    "cache_dir",
    "device",
    "experiment",
    "name",
    "resume",
    "train.checkpoint_every",
    "train.checkpoint_minutes",
)


def run_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that identify a run, by dotted key, with JSON values.

    config: a RunConfig as a dict, of this version or of version 0.1. Every comparison of the settings of two runs
    (resuming, grouping in a report) uses this.
    """
    flat = json.loads(json.dumps(dict(_flattened(config))))
    renamed = {RENAMED_KEYS.get(key, key): value for key, value in flat.items()}
    return {key: value for key, value in renamed.items() if key not in _NON_IDENTITY_KEYS}


def default_identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """The default settings for the data source of `values`, as an identity; keys without a default are left out."""
    names = {key.removeprefix("data.") for key in values if key.startswith("data.")}
    schemas = (DataConfig, DocstringsConfig, NewsgroupsConfig, FilesConfig, HfConfig)
    fitting = (schema for schema in schemas if names <= {each.name for each in fields(schema)})
    return dict(_defaults(next(fitting, DataConfig)))


@functools.cache
def _defaults(schema: type[DataConfig]) -> Mapping[str, Any]:
    specs = ((each.name, each.default, each.default_factory) for each in fields(schema))
    data = {name: factory() if callable(factory) else default for name, default, factory in specs}
    data_defaults = {f"data.{name}": value for name, value in data.items() if value != MISSING}
    return run_identity(asdict(RunConfig()) | data_defaults)


def _flattened(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def require_same_run(current: Mapping[str, Any], stored: Mapping[str, Any], folder: Path) -> None:
    """Raise InputError with the differences (up to 20) unless two identities are equal.

    current: the identity of the run that would resume. stored: that of the run in `folder`. A key that an earlier
    version of bertmon did not have takes its default.
    """
    stored = {**default_identity(current), **stored}
    keys = [key for key in {**stored, **current} if stored.get(key) != current.get(key)]
    if keys:
        differences = (
            f"{sanitize_line(key)} was {sanitize_line(stored.get(key))}, now {sanitize_line(current.get(key))}"
            for key in keys[:20]
        )
        raise InputError(
            f"{folder}: cannot resume with different settings: {'; '.join(differences)}. "
            "Give the earlier values on the command line, or start a new run."
        )


def require_table_format(delimiter: str | None, encoding: str | None, *, prefix: str) -> None:
    """Raise InputError unless the delimiter and the encoding are valid. prefix: of their names in messages."""
    valid = delimiter is None or delimiter in DELIMITERS or (len(delimiter) == 1 and delimiter not in '"\r\n\0')
    expected = f"{', '.join(DELIMITERS)}, one character other than a quote or line end, or null"
    require(valid, f"{prefix}delimiter", delimiter, expected)
    expected = "the name of a text encoding in Python, such as cp1252, or null"
    require(encoding is None or _is_encoding(encoding), f"{prefix}encoding", encoding, expected)


def _is_file_name(text: str) -> bool:
    return 0 < len(text) <= 100 and "/" not in text and text.strip(". ") != "" and not has_control_characters(text)


def _require_class_weights(value: object) -> None:
    weights = list(value.values()) if isinstance(value, Mapping) else list(value) if isinstance(value, list) else []
    numbers = bool(weights) and all(isinstance(weight, int | float) and 0 < weight <= 1e30 for weight in weights)
    expected = "balanced, a list of numbers above 0 (at most 1e30), a mapping of label names to such numbers, or null"
    require(value is None or value == "balanced" or numbers, "train.class_weights", value, expected)


def _require_distinct(key: str, names: list[str]) -> None:
    require(all(isinstance(name, str) for name in names), key, list(names), "a list of names")
    require(len(names) >= 2, key, list(names), "a list of at least two names")
    require(len(set(names)) == len(names), key, list(names), "each name once")


def _require_columns(text: str, pair: str | None, label: str) -> None:
    require(label != text, "data.label_column", label, f"a column other than data.text_column={text}")
    if pair is not None:
        require(pair not in (text, label), "data.text_pair_column", pair, "a column other than those of text and label")


def _validation_share(fraction: float | None, *, alone: bool) -> float:
    return (0.1 if alone else 0.0) if fraction is None else fraction


def _is_encoding(name: str) -> bool:
    try:
        b"text".decode(name)
    except UnicodeError:
        return True
    except (LookupError, ValueError):  # also for codecs that are not text encodings, such as base64
        return False
    return True
