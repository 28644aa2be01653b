"""Validation and test parts split off the training texts: stratified, with a separate seed, the same in every run.

Shapes: N texts of a split, C classes.
"""

from dataclasses import replace

import numpy as np

from bertmon.data.corpus import Corpus, Split
from bertmon.errors import InputError


def with_validation(corpus: Corpus, fraction: float, seed: int) -> Corpus:
    """The corpus with `fraction` of its training texts as the validation part."""
    train, validation = split_off(corpus.train, fraction, seed, corpus.label_names, key="data.validation_frac")
    return replace(corpus, train=train, validation=validation)


def split_off(
    split: Split, fraction: float, seed: int, label_names: tuple[str, ...], *, key: str
) -> tuple[Split, Split]:
    """Stratified split into (the rest, `fraction` of the texts), both in the order of `split`.

    Raises InputError, naming `key`, if one of the two has no texts of a class.
    """
    from sklearn.model_selection import train_test_split

    counts = split.class_counts(len(label_names))
    rarest = int(counts.argmin())
    rare_class = f"class {label_names[rarest]} has {counts[rarest]} of the {len(split)} texts."
    if counts[rarest] < 2:
        raise InputError(
            f"{key}: expected at least two texts of every class to split: {rare_class} Add texts of it, or remove it."
        )
    problem = f"{key}: expected a fraction that puts texts of every class into both parts, got {fraction}: {rare_class}"
    try:
        rest, part = train_test_split(
            np.arange(len(split)), test_size=fraction, random_state=seed, stratify=split.labels
        )
    except ValueError:  # a class with one text, or a part with fewer texts than classes
        raise InputError(problem) from None
    parts = (split.subset(np.sort(rest)), split.subset(np.sort(part)))
    if any(not half.class_counts(len(label_names)).all() for half in parts):
        raise InputError(problem)
    return parts
