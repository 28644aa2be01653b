"""Build what a run trains, from its config: texts to batches, a model that fits them, an optimizer, the plan."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from bertmon import distributed, model, optimizer, schedule
from bertmon.config import RunConfig
from bertmon.data import Corpus, LazyTexts, Split, load_corpus, tokenize
from bertmon.data.batches import BatchLoader, bucket_lengths
from bertmon.monitor.history import History, RunPlan
from bertmon.monitor.monitor import MetricLog, Monitor, subsample
from bertmon.training.step import build_probe, set_determinism, set_precision


@dataclass(frozen=True, slots=True)
class Task:
    """Everything that a run trains, ready for its first step."""

    corpus: Corpus
    classifier: nn.Module
    optimizer: torch.optim.Optimizer
    train: BatchLoader
    test: BatchLoader
    plan: RunPlan


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

    def load(split: Split, batch_size: int, *, lazy: bool) -> BatchLoader:
        return BatchLoader(
            tokenize.tokenize_lazily(tokenizer, split.texts.take, config.data.max_length)
            if lazy and isinstance(split.texts, LazyTexts)
            else tokenize.tokenize(tokenizer, split.texts, config.data.max_length, cache),
            split.labels,
            batch_size=batch_size,
            bucket_lengths=bucket_lengths(config.data.max_length, config.data.bucket_lengths),
            pad_id=tokenizer.pad_id,
            device=device,
            token_types=model.has_token_types(classifier),
        )

    train = load(corpus.train, config.train.batch_size, lazy=True)
    return Task(
        corpus=corpus,
        classifier=classifier,
        optimizer=optimizer.build_optimizer(config.optimizer, classifier.parameters()),
        train=train,
        test=load(corpus.test, config.train.eval_batch_size, lazy=False),  # sorting by length needs all lengths
        plan=plan_run(config, len(train), corpus.train.label_entropy()),
    )


def plan_run(config: RunConfig, steps_per_epoch: int, chance_loss: float) -> RunPlan:
    """The learning rates of all steps, and the loss of a model that ignores the texts (in nats)."""
    total_steps = config.train.epochs * steps_per_epoch
    factors = [
        schedule.lr_factor(
            step, decay=config.schedule.decay.value, warmup_frac=config.schedule.warmup_frac, total_steps=total_steps
        )
        for step in range(total_steps)
    ]
    lr = config.optimizer.lr * np.array(factors)
    gains = [optimizer.bias_correction_gain(config.optimizer, step) for step in range(total_steps)]
    return RunPlan(
        lr=lr,
        effective_lr=lr * np.array(gains),
        chance_loss=chance_loss,
        warmup_frac=config.schedule.warmup_frac,
        bias_correction=config.optimizer.bias_correction,
    )


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
