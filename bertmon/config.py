"""The schema of a run: one dataclass per conf group, with each key's meaning, unit and range under its field.

A value out of range raises InputError when the dataclass is built. Whether a file, a package or a device exists is left
to the modules that use it; composing and reading a config to bertmon.launch.
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
"""Limit of every integer but the seed; beyond it libraries overflow or run out of memory."""

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
"""Keys of version 0.1, with their names today."""

RENAMED_CHOICES = {"model=bert_narrow": "model=bert_small_8l", "model=hub": "model=pretrained"}
"""Choices of conf groups in version 0.1, with their names today."""


def _require_int(key: str, value: object, least: int = 1, most: int = MAX_INT) -> None:
    ok = isinstance(value, int) and least <= value <= most
    require(ok, key, value, f"an integer of at least {least} and at most {most}")


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
    """What all sources of texts have in common."""

    max_length: int = 256
    """Maximum number of tokens per text, including [CLS] and [SEP]; longer texts are truncated. At least 8."""
    bucket_lengths: list[int] | None = None
    """Lengths in tokens that a batch may be padded to, ascending, the last equal to max_length. A batch takes the
    first one that holds its longest text. null: the quarters of max_length, rounded up to a multiple of 8."""
    validation_frac: float | None = None
    """Share of the training texts that becomes the validation part, with the same share of every class; in [0, 1).
    null: 0.1 if data=files has data.train alone (data=hf: data.train_split), else 0, which is no validation part."""
    split_seed: int = 0
    """Seed of the splits that bertmon makes itself; apart from `seed`, so that runs with different seeds have the same
    texts in each part. From 0 to 2**32 - 1."""

    def __post_init__(self) -> None:
        _require_int("data.max_length", self.max_length, least=8)
        fraction = self.validation_frac
        require(
            fraction is None or 0 <= fraction < 1, "data.validation_frac", fraction, "at least 0 and below 1, or null"
        )
        _require_int("data.split_seed", self.split_seed, least=0, most=2**32 - 1)
        if self.bucket_lengths is not None:
            lengths = list(self.bucket_lengths)
            require(
                all(isinstance(length, int) for length in lengths)  # OmegaConf lets lists in lists pass
                and lengths == sorted(set(lengths))
                and lengths[:1] > [0]
                and lengths[-1] == self.max_length,
                "data.bucket_lengths",
                lengths,
                f"ascending integers above 0 that end with data.max_length={self.max_length}",
            )


@dataclass(kw_only=True, slots=True)
class NewsgroupsConfig(DataConfig):
    """20 newsgroups, as loaded and split by date into train and test parts by scikit-learn's fetch_20newsgroups."""

    categories: list[str] = field(
        default_factory=lambda: ["alt.atheism", "comp.graphics", "sci.space", "talk.religion.misc"]
    )
    """Newsgroups to classify, at least two of the twenty. The default four are the article's."""
    remove: list[PostPart] = field(default_factory=list)
    """Parts of each post to leave out: headers, footers, quotes. The article keeps them all."""
    data_home: str | None = None
    """Folder that holds scikit-learn's own cache of the data. null: $SCIKIT_LEARN_DATA or ~/scikit_learn_data."""

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
"""By names that need no quoting on a command line."""


@dataclass(kw_only=True, slots=True)
class FilesConfig(DataConfig):
    """Your own texts, in files: .csv, .tsv, .jsonl, .json (an array) or .parquet; all but the last may be .gz."""

    train: str = MISSING
    """File with the training texts: .csv or .tsv with a header line, .jsonl with one object per line, .json with an
    array of objects, or .parquet."""
    test: str | None = None
    """File with the test texts, likewise. null: data.test_frac of the training file."""
    validation: str | None = None
    """File with the texts by which epochs and settings are chosen. null: data.validation_frac of the training file."""
    test_frac: float = 0.2
    """Share of the training file that becomes the test part if data.test is null, with the same share of every class.
    Above 0 and below 1."""
    text_column: str = "text"
    """Column, or JSON key, that holds the text."""
    text_pair_column: str | None = None
    """Column that holds the second text of a pair, as in entailment or paraphrase tasks. null: single texts."""
    label_column: str = "label"
    """Column, or JSON key, that holds the label: a string, an integer, true or false."""
    delimiter: str | None = None
    """What is between the columns of .csv and .tsv: comma, semicolon, tab, pipe, or another character. null: a tab for
    .tsv; for .csv a comma, or the semicolon or tab of a header that has no comma."""
    encoding: str | None = None
    """Encoding of the files, by its name in Python, such as cp1252. null: UTF-8, or what a byte order mark says."""
    quoted: bool | None = None
    """Whether fields may be enclosed in double quotes. null: true for .csv; false for .tsv, where a quote is part of
    the text, as in GLUE's files."""
    skip_empty: bool = False
    """true: leave rows out whose text or label is empty. false: refuse them."""

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
    """A data set of the Hugging Face hub, or a folder of datasets.save_to_disk. Needs the extra bertmon[datasets]."""

    name: str = MISSING
    """Name of the data set on the hub, or a local folder."""
    subset: str | None = None
    """Which of its configurations, such as rte of glue. null: its only one."""
    train_split: str = "train"
    """Split with the training texts."""
    test_split: str | None = "test"
    """Split with the test texts. null: data.test_frac of the training split."""
    validation_split: str | None = None
    """Split by which epochs and settings are chosen. null: data.validation_frac of the training split."""
    test_frac: float = 0.2
    """Share of the training split that becomes the test part if data.test_split is null. Above 0 and below 1."""
    text_column: str = "text"
    """Column that holds the text."""
    text_pair_column: str | None = None
    """Column that holds the second text of a pair. null: single texts."""
    label_column: str = "label"
    """Column that holds the label: class labels, strings, integers or booleans."""
    skip_empty: bool = False
    """true: leave rows out whose text or label is empty. false: refuse them."""

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
    """A BERT-like sequence classifier. Architecture keys carry the names of the transformers config."""

    init: Init = Init.random
    """Where the weights come from: random (a fresh model) or pretrained (the weights of `name`)."""
    name: str | None = None
    """Hub name or local folder that gives the architecture, the tokenizer and, with init=pretrained, the weights.
    null: the architecture is the keys below."""
    tokenizer: str | None = None
    """Hub name or local folder that gives the vocabulary. null: that of `name`; without a name, a WordPiece vocabulary
    trained on the training texts."""
    vocab_size: int | None = None
    """Entries of a vocabulary that is trained on the texts (fewer where they hold fewer), at least 100. null: 8,000."""
    model_type: str | None = None
    """Architecture family, by its transformers name, where `name` is null: roberta-prelayernorm, ... null: bert."""
    num_hidden_layers: int | None = None
    """Encoder layers. This and the keys below: null leaves it to `name` or to the family's own default."""
    hidden_size: int | None = None
    """Width of a token's vector, a multiple of num_attention_heads."""
    num_attention_heads: int | None = None
    """Attention heads of a layer."""
    intermediate_size: int | None = None
    """Width inside the feed-forward network."""
    max_position_embeddings: int | None = None
    """Positions the model knows, at least data.max_length."""
    hidden_dropout_prob: float | None = None
    """Dropout of embeddings, feed-forward and attention outputs, in [0, 1)."""
    attention_probs_dropout_prob: float | None = None
    """Dropout of attention weights, in [0, 1)."""
    frozen_layers: int | None = None
    """Lowest encoder layers whose weights, and those of the embeddings, do not train: 0 freezes the embeddings alone.
    null: everything trains."""

    def __post_init__(self) -> None:
        for key in ("name", "tokenizer", "model_type"):
            require(getattr(self, key) != "", f"model.{key}", "''", "a name, or null")
        self.name, self.tokenizer = (each and os.path.expanduser(each) for each in (self.name, self.tokenizer))
        if self.vocab_size is not None:
            _require_int("model.vocab_size", self.vocab_size, least=100, most=1_000_000)
            own = not (self.tokenizer or self.name)
            require(own, "model.vocab_size", self.vocab_size, "null with model.tokenizer or model.name")
        if self.name is not None:
            require(self.model_type is None, "model.model_type", self.model_type, "null with model.name")
        for key, value in self.architecture():
            if key.endswith("_prob"):
                require(0 <= value < 1, f"model.{key}", value, "a number of at least 0 and below 1")
            else:
                _require_int(f"model.{key}", value, most=1000 if key == "num_hidden_layers" else MAX_INT)
        if self.frozen_layers is not None:
            _require_int("model.frozen_layers", self.frozen_layers, least=0, most=1000)
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
    """false: the moments are not corrected for their start at zero, as in the original BERT code. Early steps are
    then larger, by (1 - beta1^t) / sqrt(1 - beta2^t) at the t-th step."""
    beta1: float = 0.9
    """Decay of the running mean of gradients, in [0, 1)."""
    beta2: float = 0.999
    """Decay of the running mean of squared gradients, in [0, 1)."""
    eps: float = 1e-6
    """Added to the denominator. Above 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; biases and LayerNorm weights have none. At least 0."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each encoder layer to the one below it (layer-wise learning rate decay): with L
    layers the head has the whole rate, layer d from the input layer_decay^(L - d), the embeddings layer_decay^(L + 1).
    In (0, 1]; 1: one rate for all."""
    head_lr: float | None = None
    """Peak learning rate of the classification head. Above 0; null: that of the others."""

    def __post_init__(self) -> None:
        for key in ("lr", "eps"):
            value = getattr(self, key)
            require(0 < value < math.inf, f"optimizer.{key}", value, "a finite number above 0")
        for key in ("beta1", "beta2"):
            value = getattr(self, key)
            require(0 <= value < 1, f"optimizer.{key}", value, "a number of at least 0 and below 1")
            if not self.bias_correction:  # the form without it starts at step 2**24, where beta**step must vanish
                require(value <= 0.999997, f"optimizer.{key}", value, "at most 0.999997 without bias correction")
        decay = self.weight_decay
        require(0 <= decay < math.inf, "optimizer.weight_decay", decay, "a finite number of at least 0")
        require(0 < self.layer_decay <= 1, "optimizer.layer_decay", self.layer_decay, "a number in (0, 1]")
        if self.head_lr is not None:
            require(0 < self.head_lr < math.inf, "optimizer.head_lr", self.head_lr, "a finite number above 0 or null")


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    """The learning rate over the run."""

    decay: Decay = Decay.linear
    """What follows the warm-up: linear (down to 0), cosine (down to 0) or constant; or one of transformers' schedules:
    inverse_sqrt, polynomial, cosine_with_restarts, cosine_with_min_lr, warmup_stable_decay."""
    warmup_frac: float = 0.1
    """Share of all steps over which the learning rate rises linearly from 0 to its peak, in [0, 1]."""
    warmup_steps: int | None = None
    """The same as a number of steps, which then replaces warmup_frac. At least 0, and at most all steps of the run
    count; null: warmup_frac counts."""
    power: float | None = None
    """Exponent of decay=polynomial. Above 0."""
    end_factor: float | None = None
    """Share of the peak rate that decay=polynomial, cosine_with_min_lr or warmup_stable_decay ends at, in [0, 1)."""
    cycles: int | None = None
    """Number of cosines of decay=cosine_with_restarts. At least 1."""
    timescale: int | None = None
    """Steps after which decay=inverse_sqrt has begun to fall. At least 1; null: those of the warm-up."""
    decay_frac: float | None = None
    """Share of all steps over which decay=warmup_stable_decay falls, at the end of the run, in (0, 1]."""
    function: str | None = None
    """A schedule of your own, as an importable module.function: it is called with (step, warmup_steps, total_steps) and
    returns what the peak rate is multiplied by at that step. It replaces decay."""

    def __post_init__(self) -> None:
        require(0 <= self.warmup_frac <= 1, "schedule.warmup_frac", self.warmup_frac, "a number from 0 to 1")
        if self.warmup_steps is not None:
            _require_int("schedule.warmup_steps", self.warmup_steps, least=0)
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
"""Keys that belong to some decays: whether they must be given, and to which."""


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """Length, batches, evaluation, checkpoints and precision of the training."""

    epochs: int = 3
    """Passes over the training texts. At least 1."""
    batch_size: int = 16
    """Texts of a batch, of all processes together. At least 1; the last batch of an epoch may be smaller."""
    accumulate: int = 1
    """Batches whose gradients are added up for one step; the step's loss is the mean over all their texts. At least
    1."""
    class_weights: Any = None
    """Weights of the classes in the loss: balanced (inversely proportional to their number of training texts, as
    scikit-learn's compute_class_weight), a list of numbers above 0 in the order of the classes, or a mapping of label
    names to numbers. null: all the same."""
    eval_batch_size: int = 64
    """Texts per batch of an evaluation. At least 1; does not affect the metrics."""
    eval_every: int | None = None
    """Steps between two evaluations. At least 1; null: a part of an epoch, so that a run has ten or a few more. Every
    run is also evaluated before its first step and at each epoch's end; with a number above the run's steps, only
    there. docs/cost.md says what evaluations cost."""
    metric: Metric = Metric.accuracy
    """What the best evaluation, the best setting and a sweeper's objective go by: accuracy, f1_macro (mean F1 over the
    classes) or mcc (Matthews correlation coefficient). On the validation split if there is one, else on the test
    split."""
    patience: int | None = None
    """Number of evaluations in a row (see eval_every) without an improvement of the metric after which training stops.
    At least 1; null: never."""
    save_model: SaveModel = SaveModel.none
    """Save the model in the run's folder, as transformers' save_pretrained does: none, last (at the end) or best (at
    each evaluation that improves the metric; not before the first step)."""
    keep: Keep = Keep.best
    """Which saved models to keep when a sweep has ended: best (those of the best setting) or all."""
    log_every: int = 10
    """Steps between two points of loss/train, the learning rates, grad_norm and clipped. At least 1."""
    max_grad_norm: float | None = 1.0
    """Gradients with a larger global L2 norm are scaled down to it. Above 0; null: no clipping."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints. At least 1; null: only checkpoint_minutes counts."""
    checkpoint_minutes: float | None = 10.0
    """Minutes between two checkpoints, written at the end of a step. Above 0; null: only checkpoint_every counts. An
    interrupted run writes one too, unless both are null; a run that ends deletes its checkpoint."""
    precision: Precision = Precision.fp32
    """fp32: IEEE float32, regardless of TF32 settings in the environment. tf32: the same with TF32 matrix products,
    faster on NVIDIA GPUs since Ampere. bf16: matrix products autocast to bfloat16. Weights and optimizer state are
    float32 in all of them."""
    compile: bool = False
    """true: torch.compile the training pass, once for each shape of a batch. Results differ by rounding.
    For GPUs: on the CPU it needs a C++ compiler and gains nothing (docs/LOG.md)."""
    deterministic: bool = False
    """true: only kernels that give the same bits each time, on CUDA too, where they are slower; an operation that has
    none is an error. The CPU needs no such setting."""

    def __post_init__(self) -> None:
        _require_class_weights(self.class_weights)
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
    """Below this share of its value at step 0, logit_std has shrunk and its trend predicts nothing about the remaining
    steps (max_logit_std_growth is assumed instead): a BERT-base on a plateau that ended had 0.06 to 0.09, runs with too
    small a learning rate 0.3 or more. In (0, 1)."""
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
    """Slope that is assumed until then, the one of the fastest known run: log(logit_std) per unit of learning rate.
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
    """Steps between two measurements; step 0 is the first. At least 1."""
    figures: bool = True
    """Draw gradient_depth, gradient_flow and update_ratio at each measurement."""
    include_biases: bool = False
    """Monitor biases as well as weights."""
    skip_prob: float = 0.0
    """Share of weights not monitored, in [0, 1): chosen at random, but the same in every run, and never the first or
    the last one. Verdicts use the weights that are monitored."""
    on_doomed: OnDoomed = OnDoomed.warn
    """What happens to a run whose verdict is collapsed or not learning: warn (it continues) or stop (after a last
    evaluation, with status "stopped"; a verdict that would have been withdrawn later is final then). A run that
    diverged always ends."""
    on_behind: OnBehind = OnBehind.ignore
    """What happens to a run that learns, but cannot catch up with the best run of its sweep that has ended, at its pace
    times two: ignore, or stop (status "stopped"; in one process only). Scored in docs/verdicts.md."""
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
    """Name of the preset in conf/experiment that the settings start from; each preset sets it. custom: none."""
    name: str | None = None
    """Name of the run, or of the whole sweep, for folders and TensorBoard. null: the experiment's. At most 100
    characters, without / and control characters."""
    seed: int = 0
    """Seeds weights, order of the texts and dropout. From 0 to 2**32 - 1."""
    device: Device = Device.auto
    """cuda, cpu, mps, or auto: cuda if available, else mps if available, else cpu."""
    cache_dir: str | None = None
    """Folder for corpora, vocabularies and tokens, which many runs share. Safe to delete.
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


_NOT_IDENTITY = (
    "cache_dir",
    "device",
    "experiment",
    "name",
    "resume",
    "train.checkpoint_every",
    "train.checkpoint_minutes",
)


def run_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that make a run this run and no other, by dotted key, with values as JSON has them.

    config: a RunConfig as a dict, today's or that of version 0.1. Everything that asks whether two runs have the same
    settings (resume, the grouping of a report) uses this.
    """
    flat = json.loads(json.dumps(dict(_flattened(config))))
    renamed = {RENAMED_KEYS.get(key, key): value for key, value in flat.items()}
    return {key: value for key, value in renamed.items() if key not in _NOT_IDENTITY}


def default_identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a run with defaults alone, as far as keys have one, on the kind of data that `values` is of."""
    names = {key.removeprefix("data.") for key in values if key.startswith("data.")}
    schemas = (DataConfig, DocstringsConfig, NewsgroupsConfig, FilesConfig, HfConfig)
    fitting = (schema for schema in schemas if names <= {each.name for each in fields(schema)})
    return dict(_defaults(next(fitting, DataConfig)))


@functools.cache
def _defaults(schema: type[DataConfig]) -> Mapping[str, Any]:
    made = ((each.name, each.default, each.default_factory) for each in fields(schema))
    data = {name: factory() if callable(factory) else default for name, default, factory in made}
    known = {f"data.{name}": value for name, value in data.items() if value != MISSING}
    return run_identity(asdict(RunConfig()) | known)


def _flattened(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def require_same_run(here: Mapping[str, Any], there: Mapping[str, Any], folder: Path) -> None:
    """Raise InputError with all differences (up to 20) unless two identities are equal.

    there: that of the run in `folder`, of which here is the one that would resume. A key that an earlier version of
    bertmon did not have counts as its default.
    """
    there = {**default_identity(here), **there}
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    if keys:
        differences = (
            f"{sanitize_line(key)} was {sanitize_line(there.get(key))}, now {sanitize_line(here.get(key))}"
            for key in keys[:20]
        )
        raise InputError(
            f"{folder}: cannot resume with different settings: {'; '.join(differences)}. "
            "Give the earlier values on the command line, or start a new run."
        )


def require_table_format(delimiter: str | None, encoding: str | None, *, prefix: str) -> None:
    """Raise InputError unless a table can be read with these; prefix: of their names in the message."""
    known = delimiter is None or delimiter in DELIMITERS or (len(delimiter) == 1 and delimiter not in '"\r\n\0')
    expected = f"{', '.join(DELIMITERS)}, one character that is no quote or line end, or null"
    require(known, f"{prefix}delimiter", delimiter, expected)
    expected = "the name of a text encoding in Python, such as cp1252, or null"
    require(encoding is None or _is_encoding(encoding), f"{prefix}encoding", encoding, expected)


def _is_file_name(text: str) -> bool:
    return 0 < len(text) <= 100 and "/" not in text and text.strip(". ") != "" and not has_control_characters(text)


def _require_class_weights(value: object) -> None:
    weights = list(value.values()) if isinstance(value, Mapping) else list(value) if isinstance(value, list) else []
    numbers = bool(weights) and all(isinstance(weight, int | float) and 0 < weight < math.inf for weight in weights)
    expected = "balanced, a list of numbers above 0, a mapping of label names to such numbers, or null"
    require(value is None or value == "balanced" or numbers, "train.class_weights", value, expected)


def _require_distinct(key: str, names: list[str]) -> None:
    require(all(isinstance(name, str) for name in names), key, list(names), "a list of names")
    require(len(names) >= 2, key, list(names), "a list of at least two names")
    require(len(set(names)) == len(names), key, list(names), "each name once")


def _require_columns(text: str, pair: str | None, label: str) -> None:
    require(label != text, "data.label_column", label, f"another column than data.text_column={text}")
    if pair is not None:
        require(pair not in (text, label), "data.text_pair_column", pair, "a column other than those of text and label")


def _validation_share(fraction: float | None, *, alone: bool) -> float:
    return (0.1 if alone else 0.0) if fraction is None else fraction


def _is_encoding(name: str) -> bool:
    try:
        b"text".decode(name)
    except UnicodeError:
        return True
    except (LookupError, ValueError):  # also of codecs that are no text encodings, such as base64
        return False
    return True
