"""A classification task in memory: texts, labels and their names.

Shapes: N texts of a split, C classes.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bertmon.data.lazy_texts import LazyTexts, Text, text_hash, text_parts
from bertmon.storage import cached_bytes, content_hash


class TextSequence(Protocol):
    """N texts, or N pairs of texts: a list, or LazyTexts."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Text]: ...
    def __getitem__(self, index: int, /) -> Text: ...


@dataclass(frozen=True, slots=True)
class Split:
    """Texts [N] and their labels [N], each in [0, C)."""

    texts: TextSequence
    labels: list[int]

    def __len__(self) -> int:
        return len(self.texts)

    def label_entropy(self) -> float:
        """Entropy of the labels in nats."""
        return entropy(self.labels)

    def class_counts(self, n_classes: int) -> npt.NDArray[np.int64]:
        """Texts of each class, [C]."""
        return np.bincount(self.labels, minlength=n_classes)

    def text_hashes(self) -> npt.NDArray[np.uint64]:
        """64-bit hash of each text [N]; two different texts collide with a probability of 2**-64."""
        if isinstance(self.texts, LazyTexts):
            return self.texts.hashes
        return np.fromiter(map(text_hash, self.texts), dtype=np.uint64, count=len(self.texts))

    def subset(self, indices: npt.NDArray[np.int64]) -> "Split":
        """The texts at these indices, with their labels."""
        texts = self.texts
        part: TextSequence = (
            texts.subset(indices) if isinstance(texts, LazyTexts) else [texts[index] for index in indices]
        )
        return Split(part, [self.labels[index] for index in indices])


@dataclass(frozen=True, slots=True)
class Corpus:
    """Training and test splits, and optionally a validation split, over the same label names [C]."""

    train: Split
    test: Split
    label_names: tuple[str, ...]
    validation: Split | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Warnings from reading the texts, to be shown to the user."""

    def fingerprint(self) -> str:
        """SHA-256 of all texts, labels and label names, in order."""
        parts = [*self.label_names]
        for split in (self.train, self.test, *([self.validation] if self.validation else [])):
            digest = split.texts.digest if isinstance(split.texts, LazyTexts) else content_hash(*flatten(split.texts))
            parts += [digest, ",".join(map(str, split.labels))]
        return content_hash(*parts)

    def majority_share(self) -> float:
        """Share of the most frequent class in the test split: the accuracy of a run that learned nothing."""
        return max(self.test.labels.count(label) for label in set(self.test.labels)) / len(self.test)


def flatten(texts: Iterable[Text]) -> Iterator[str]:
    """The texts one by one, the second of a pair after the first."""
    return (part for text in texts for part in text_parts(text))


def entropy(labels: Sequence[int]) -> float:
    """Entropy of labels [N] in nats: the cross-entropy of a model that knows the class shares and ignores the texts."""
    shares = [count / len(labels) for count in Counter(labels).values()]
    return -sum(share * math.log(share) for share in shares)


def cached_corpus(cache: Path, name: str, read: Callable[[], Corpus]) -> Corpus:
    """The corpus cached under `name`, read and stored if missing. For single texts without a validation split."""

    def make() -> bytes:
        corpus = read()
        splits = {
            key: {"texts": list(split.texts), "labels": split.labels}
            for key, split in (("train", corpus.train), ("test", corpus.test))
        }
        return json.dumps({**splits, "label_names": corpus.label_names}).encode()

    content = json.loads(cached_bytes(cache, name, make))
    return Corpus(Split(**content["train"]), Split(**content["test"]), tuple(content["label_names"]))
