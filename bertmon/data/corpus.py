"""A classification task in memory: texts, labels and their names.

Shapes: N texts of a split, C classes.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from bertmon.storage import cached_bytes, content_hash


class TextSequence(Protocol):
    """N texts: a list, or text_files.LazyTexts."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[str]: ...
    def __getitem__(self, index: int, /) -> str: ...


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


@dataclass(frozen=True, slots=True)
class Corpus:
    """A training and a test split over the same label names [C]."""

    train: Split
    test: Split
    label_names: tuple[str, ...]

    def fingerprint(self) -> str:
        """SHA-256 of all texts, labels and label names, in order."""
        parts = [*self.label_names]
        for split in (self.train, self.test):
            digest = getattr(split.texts, "digest", None)  # of texts that are not in memory
            parts += [digest or content_hash(*split.texts), ",".join(map(str, split.labels))]
        return content_hash(*parts)

    def majority_share(self) -> float:
        """Share of the most frequent class in the test split: the accuracy of a run that learned nothing."""
        return max(self.test.labels.count(label) for label in set(self.test.labels)) / len(self.test)


def entropy(labels: Sequence[int]) -> float:
    """Entropy of labels [N] in nats: the cross-entropy of a model that knows the class shares and ignores the texts."""
    shares = [count / len(labels) for count in Counter(labels).values()]
    return -sum(share * math.log(share) for share in shares)


def cached_corpus(cache: Path, name: str, read: Callable[[], Corpus]) -> Corpus:
    """The corpus stored under `name` in the cache; read and stored if missing."""
    content = json.loads(cached_bytes(cache, name, lambda: json.dumps(asdict(read())).encode()))
    return Corpus(Split(**content["train"]), Split(**content["test"]), tuple(content["label_names"]))
