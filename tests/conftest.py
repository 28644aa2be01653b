"""What many tests need: a task small enough to train in a second, and a device-independent start."""

import dataclasses
import random
from pathlib import Path

import pytest

from bertmon import config
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
        cache_dir=str(tmp_path / "cache"),
        data=FilesConfig(
            train=str(write_texts(tmp_path / "train.csv", 44, seed=1)),
            test=str(write_texts(tmp_path / "test.csv", 10, seed=2)),
            max_length=32,
        ),
        model=dataclasses.replace(TINY),
        schedule=ScheduleConfig(warmup_frac=0.25),
        train=TrainConfig(epochs=2, batch_size=8, log_every=2),
    )
