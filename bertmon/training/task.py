"""Build everything that a run needs from its config: batches of texts, a matching model, optimizer and plan."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from bertmon import distributed, model, optimizer
from bertmon.config import FilesConfig, HfConfig, RunConfig, ScheduleConfig
from bertmon.data import Corpus, LazyTexts, Split, load_corpus, tokenize
from bertmon.data.batches import BatchLoader, bucket_lengths
from bertmon.data.describe import DataDescription, describe_corpus
from bertmon.data.tokenize import LazyTokens, TextTokenizer, TokenizedTexts
from bertmon.monitor.advice import CONFIG_KEYS, LONG_WARMUP, SettingNames
from bertmon.monitor.history import History, RunPlan
from bertmon.monitor.monitor import MetricLog, Monitor, subsample
from bertmon.training.class_weights import chance_loss, class_weights
from bertmon.training.plan import plan_run
from bertmon.training.step import build_probe, set_determinism, set_precision


@dataclass(frozen=True, slots=True)
class Task:
    """Everything that a run needs for its first step."""

    corpus: Corpus
    description: DataDescription
    tokenizer: TextTokenizer
    classifier: nn.Module
    optimizer: torch.optim.Optimizer
    train: BatchLoader
    validation: BatchLoader | None
    test: BatchLoader
    plan: RunPlan
    steps_per_epoch: int
    class_weights: Tensor | None  # [C], of the loss
    lr_scales: Mapping[nn.Parameter, float]  # factors of the plan's learning rate

    @property
    def device(self) -> torch.device:
        return next(self.classifier.parameters()).device


def build_task(config: RunConfig, device: torch.device) -> Task:
    """The task of a config. Raises InputError.

    Sets the random seeds, deterministic kernels and precision of matrix products of the process, as configured.
    """
    set_determinism(config.train.deterministic)
    set_precision(config.train.precision, device)
    seed_everything(config.seed)
    cache = config.cache_path()
    corpus = load_corpus(config.data, cache)
    tokenizer = tokenize.load_tokenizer(config.model, corpus.train.texts, cache)
    classifier = model.build_model(
        config.model,
        label_names=corpus.label_names,
        vocab_size=tokenizer.size,
        pad_id=tokenizer.pad_id,
        max_length=config.data.max_length,
    ).to(device)
    loaders = _Loaders(config, tokenizer, device, model.has_token_types(classifier))
    train_tokens = loaders.tokens(corpus.train, lazy=True)
    train = loaders.load(train_tokens, corpus.train, config.train.batch_size)
    steps_per_epoch = -(-len(train) // config.train.accumulate)
    weights = class_weights(config.train.class_weights, corpus.train.labels, corpus.label_names)
    lr_scales = optimizer.lr_scales(config.optimizer, classifier)
    return Task(
        corpus=corpus,
        description=describe_corpus(
            corpus,
            tokenizer,
            config.data.max_length,
            None if callable(train_tokens) else train_tokens,
            own_texts=isinstance(config.data, FilesConfig | HfConfig),
        ),
        tokenizer=tokenizer,
        classifier=classifier,
        optimizer=optimizer.build_optimizer(config.optimizer, classifier.parameters(), lr_scales),
        train=train,
        validation=loaders.evaluation(corpus.validation) if corpus.validation else None,
        test=loaders.evaluation(corpus.test),
        plan=plan_run(config, steps_per_epoch, chance_loss(corpus.train, weights)),
        steps_per_epoch=steps_per_epoch,
        class_weights=None if weights is None else torch.tensor(weights, dtype=torch.float32, device=device),
        lr_scales=lr_scales,
    )


@dataclass(frozen=True, slots=True)
class _Loaders:
    """Builds the batch loaders of a corpus's splits."""

    config: RunConfig
    tokenizer: TextTokenizer
    device: torch.device
    token_types: bool

    def tokens(self, split: Split, *, lazy: bool) -> TokenizedTexts | LazyTokens:
        """The tokens of all texts; with `lazy`, for texts not in memory, a function that makes them on demand."""
        length = self.config.data.max_length
        if lazy and isinstance(split.texts, LazyTexts):
            return tokenize.tokenize_lazily(self.tokenizer, split.texts.take, length)
        return tokenize.tokenize(self.tokenizer, split.texts, length, self.config.cache_path())

    def load(self, tokens: TokenizedTexts | LazyTokens, split: Split, batch_size: int) -> BatchLoader:
        """The split's batches."""
        return BatchLoader(
            tokens,
            split.labels,
            batch_size=batch_size,
            bucket_lengths=bucket_lengths(self.config.data.max_length, self.config.data.bucket_lengths),
            pad_id=self.tokenizer.pad_id,
            device=self.device,
            token_types=self.token_types,
        )

    def evaluation(self, split: Split) -> BatchLoader:
        """The batches of an evaluation split, never lazy: sorting by length needs the tokens of all texts."""
        return self.load(self.tokens(split, lazy=False), split, self.config.train.eval_batch_size)


def build_monitor(config: RunConfig, task: Task, history: History, metric_log: MetricLog, *, name: str = "") -> Monitor:
    """The monitor of a run; with monitor=off it measures nothing and has no diagnosis."""
    weights = model.named_weights(task.classifier, biases=config.monitor.include_biases)
    labels = subsample(list(weights), config.monitor.skip_prob)
    return Monitor(
        {label: weights[label] for label in labels} if config.monitor.enabled else {},
        history,
        config.monitor,
        metric_log,
        probe=build_probe(task.classifier, config.train.precision),
        max_grad_norm=config.train.max_grad_norm,
        lr_scales=task.lr_scales,
        name=name,
        setting_names=setting_names(config.schedule),
        suspected_cause=task.description.suspected_cause,
    )


def setting_names(schedule: ScheduleConfig) -> SettingNames:
    """Names of the settings in advice: the warm-up under the key in use, or None if a long warm-up does not fit or the
    schedule is a user's function."""
    if schedule.function is not None or LONG_WARMUP + (schedule.decay_frac or 0.0) > 1:
        return replace(CONFIG_KEYS, warmup=None)
    return (
        CONFIG_KEYS if schedule.warmup_steps is None else replace(CONFIG_KEYS, warmup="schedule.warmup_steps={steps}")
    )


def seed_everything(seed: int) -> None:
    """Seed the global random states of Python, numpy and torch, on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_dropout(seed: int, steps: int) -> None:
    """Seed dropout differently in each process of a distributed run; `steps` are the updates done."""
    if distributed.rank():
        torch.manual_seed(seed + 1_000_003 * distributed.rank() + steps)
