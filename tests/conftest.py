"""What many tests need: a task small enough to train in a second, and a device-independent start."""

import dataclasses
import random
from pathlib import Path

import pytest
import torch

from bertmon import batches, config, data, model, tokens
from bertmon.config import FilesConfig, ModelConfig, RunConfig, ScheduleConfig, TrainConfig

SHARED = Path(__file__).parents[2] / "shared" / "data"

needs_newsgroups = pytest.mark.skipif(
    not (SHARED / "scikit_learn_data").is_dir(), reason="20 newsgroups are not on this machine"
)

TINY = ModelConfig(
    num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32
)


def write_texts(path: Path, count: int, seed: int) -> Path:
    """A .csv of `count` texts of 3 to 30 words whose label is what most words are about."""
    words = {"sea": ["boat", "wave", "fish", "salt"], "sky": ["cloud", "bird", "wind", "star"]}
    rng = random.Random(seed)
    lines = ["text,label"]
    for number in range(count):
        label = ("sea", "sky")[number % 2]
        chosen = rng.choices(words[label] + ["the", "a", "and"], k=rng.randint(3, 30))
        lines.append(f"{' '.join(chosen)},{label}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def settings(tmp_path: Path) -> RunConfig:
    """A run of 2 epochs of 6 steps, on the CPU, over files in tmp_path."""
    return RunConfig(
        seed=1,
        device=config.Device.cpu,
        cache=str(tmp_path / "cache"),
        data=FilesConfig(
            train=str(write_texts(tmp_path / "train.csv", 44, seed=1)),
            test=str(write_texts(tmp_path / "test.csv", 10, seed=2)),
            max_length=32,
        ),
        model=dataclasses.replace(TINY),
        schedule=ScheduleConfig(warmup_frac=0.25),
        train=TrainConfig(epochs=2, batch_size=8, log_every=2),
    )


@dataclasses.dataclass
class Parts:
    """Everything `fit` takes, made from settings."""

    corpus: data.Corpus
    vocabulary: tokens.Vocabulary
    classifier: torch.nn.Module
    train: batches.Batches
    test: batches.Batches


def build_parts(settings: RunConfig) -> Parts:
    cache = Path(settings.cache)
    torch.manual_seed(settings.seed)
    corpus = data.load(settings.data, cache)
    vocabulary = tokens.load_vocabulary(settings.model, corpus.train.texts, cache)
    classifier = model.build(
        settings.model,
        label_names=corpus.label_names,
        vocab_size=vocabulary.size,
        pad_id=vocabulary.pad_id,
        max_length=settings.data.max_length,
    )

    def batched(split: data.Split) -> batches.Batches:
        return batches.Batches(
            tokens.tokenize(vocabulary, split.texts, settings.data.max_length, cache),
            split.labels,
            batch_size=settings.train.batch_size,
            lengths=batches.pad_lengths(settings.data.max_length, settings.data.pad_lengths),
            pad_id=vocabulary.pad_id,
            device=torch.device("cpu"),
        )

    return Parts(corpus, vocabulary, classifier, batched(corpus.train), batched(corpus.test))
