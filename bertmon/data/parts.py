"""A corpus from the parts that a user names: shared label indices, and splits for parts without a source.

Shapes: N texts of a part.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bertmon.data.corpus import Corpus, Split, TextSequence
from bertmon.data.splitting import split_off, with_validation
from bertmon.data.table_rows import join_names
from bertmon.errors import InputError


class PartContent(NamedTuple):
    """Texts and labels of one file or data set."""

    texts: TextSequence  # [N]
    label_names: list[str]
    labels: npt.NDArray[np.int64]  # [N], indices into label_names
    notes: list[str]


class LabelIndex(dict[str, int]):
    """Indices of label names, in order of first use."""

    def __missing__(self, name: str) -> int:
        return self.setdefault(name, len(self))


class SplitKeys(Protocol):
    """The config keys that control splitting."""

    test_frac: float
    split_seed: int

    def validation_share(self) -> float: ...


def build_corpus(
    parts: Mapping[str, PartContent],
    sources: Mapping[str, str | None],
    config: SplitKeys,
    label_names: Sequence[str],
    *,
    suffix: str = "",
) -> Corpus:
    """The corpus of the parts "train" and, if present, "test" and "validation".

    sources: what each part was read from, for messages. suffix: of the keys data.train, data.test and data.validation
    in messages. label_names: those of the training part, in order. Raises InputError for labels that the training part
    lacks, and for a split that leaves a class without texts.
    """
    if len(label_names) < 2:
        only = join_names(label_names)
        raise InputError(f"data.train{suffix}: expected at least two labels, got only {only} in {sources['train']}.")
    for key, part in parts.items():
        if unknown := sorted(set(part.label_names) - set(label_names)):
            raise InputError(
                f"data.{key}{suffix}: expected the labels of {sources['train']} ({join_names(label_names)}), "
                f"got {join_names(unknown)} in {sources[key]}."
            )
    splits = {key: _split(part, label_names) for key, part in parts.items()}
    if "test" not in splits:
        splits["train"], splits["test"] = split_off(
            splits["train"], config.test_frac, config.split_seed, tuple(label_names), key="data.test_frac"
        )
    notes = tuple(note for part in parts.values() for note in part.notes)
    corpus = Corpus(splits["train"], splits["test"], tuple(label_names), splits.get("validation"), notes)
    fraction = config.validation_share()
    return with_validation(corpus, fraction, config.split_seed) if fraction else corpus


def _split(part: PartContent, label_names: Sequence[str]) -> Split:
    index = {name: label for label, name in enumerate(label_names)}
    return Split(part.texts, np.array([index[name] for name in part.label_names])[part.labels].tolist())
