"""Build what a run trains, from its config: texts to batches, a model that fits them, an optimizer, the plan."""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bertmon import distributed, model, optimizer
from bertmon.config import FilesConfig, RunConfig
from bertmon.data import Corpus, LazyTexts, Split, load_corpus, tokenize
from bertmon.data.batches import BatchLoader, bucket_lengths
from bertmon.data.describe import DataDescription, describe_corpus
from bertmon.data.tokenize import LazyTokens, TextTokenizer, TokenizedTexts
from bertmon.errors import InputError, require
from bertmon.monitor.history import History, RunPlan
from bertmon.monitor.monitor import MetricLog, Monitor, subsample
from bertmon.training.plan import plan_run
from bertmon.training.step import build_probe, set_determinism, set_precision


@dataclass(frozen=True, slots=True)
class Task:
    """Everything that a run trains, ready for its first step."""

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


def build_task(config: RunConfig, device: torch.device) -> Task:
    """The task of a config, from the config's seed. Raises InputError.

    Sets the process's random seeds, deterministic kernels and the precision of matrix products as the config says.
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

    def tokens_of(split: Split) -> TokenizedTexts:
        return tokenize.tokenize(tokenizer, split.texts, config.data.max_length, cache)

    def load(tokens: TokenizedTexts | LazyTokens, split: Split, batch_size: int) -> BatchLoader:
        return BatchLoader(
            tokens,
            split.labels,
            batch_size=batch_size,
            bucket_lengths=bucket_lengths(config.data.max_length, config.data.bucket_lengths),
            pad_id=tokenizer.pad_id,
            device=device,
            token_types=model.has_token_types(classifier),
        )

    texts, tokens = corpus.train.texts, None
    if isinstance(texts, LazyTexts):
        train_tokens: TokenizedTexts | LazyTokens = tokenize.tokenize_lazily(
            tokenizer, texts.take, config.data.max_length
        )
    else:
        train_tokens = tokens = tokens_of(corpus.train)
    train = load(train_tokens, corpus.train, config.train.batch_size)
    steps_per_epoch = -(-len(train) // config.train.accumulate)
    weights = class_weights(config.train.class_weights, corpus.train.labels, corpus.label_names)
    lr_scales = optimizer.lr_scales(config.optimizer, classifier)
    return Task(
        corpus=corpus,
        description=describe_corpus(
            corpus, tokenizer, config.data.max_length, tokens, own_texts=isinstance(config.data, FilesConfig)
        ),
        tokenizer=tokenizer,
        classifier=classifier,
        optimizer=optimizer.build_optimizer(config.optimizer, classifier.parameters(), lr_scales),
        train=train,
        # sorting by length needs the tokens of all texts
        validation=load(tokens_of(corpus.validation), corpus.validation, config.train.eval_batch_size)
        if corpus.validation
        else None,
        test=load(tokens_of(corpus.test), corpus.test, config.train.eval_batch_size),
        plan=plan_run(config, steps_per_epoch, chance_loss(corpus.train, weights)),
        steps_per_epoch=steps_per_epoch,
        class_weights=None if weights is None else torch.tensor(weights, dtype=torch.float32, device=device),
        lr_scales=lr_scales,
    )


def chance_loss(train: Split, weights: Sequence[float] | None) -> float:
    """The training loss of a model that ignores the texts, in nats: the entropy of the labels, weighted by class."""
    if weights is None:
        return train.label_entropy()
    masses = [count * weights[label] for label, count in Counter(train.labels).items()]
    shares = [mass / sum(masses) for mass in masses]
    return -sum(share * math.log(share) for share in shares)


def class_weights(wanted: Any, labels: Sequence[int], label_names: Sequence[str]) -> list[float] | None:
    """train.class_weights as a list [C]; None without any. Raises InputError for classes that do not exist."""
    if wanted is None:
        return None
    if wanted == "balanced":
        counts = Counter(labels)
        if missing := [name for label, name in enumerate(label_names) if label not in counts]:
            raise InputError(f"train.class_weights: expected training texts of every class, got none of {missing[0]}.")
        return [len(labels) / (len(label_names) * counts[label]) for label in range(len(label_names))]
    if isinstance(wanted, Mapping):
        by_name = {str(name): float(weight) for name, weight in wanted.items()}
        if unknown := sorted(by_name.keys() - set(label_names)):
            names = ", ".join(label_names[:10])
            raise InputError(f"train.class_weights: expected label names among {names}, got {unknown[0]}.")
        return [by_name.get(name, 1.0) for name in label_names]
    require(len(wanted) == len(label_names), "train.class_weights", list(wanted), f"{len(label_names)} numbers")
    return [float(weight) for weight in wanted]


def build_monitor(config: RunConfig, task: Task, history: History, metric_log: MetricLog) -> Monitor:
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
        suspected_cause=task.description.suspected_cause,
    )


def seed_everything(seed: int) -> None:
    """Python's, numpy's and torch's global random states, on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_dropout(seed: int, steps: int) -> None:
    """Give each process of a distributed run dropout of its own; `steps` are the updates done."""
    if distributed.rank():
        torch.manual_seed(seed + 1_000_003 * distributed.rank() + steps)
