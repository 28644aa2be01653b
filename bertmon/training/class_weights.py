"""train.class_weights: the weight of each class in the loss.

Shapes: N training texts, C classes.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bertmon.data import Split
from bertmon.errors import InputError, require


def chance_loss(train: Split, weights: Sequence[float] | None) -> float:
    """The training loss of a model that ignores the texts, in nats: the entropy of the labels, weighted by class."""
    if weights is None:
        return train.label_entropy()
    masses = [count * weights[label] for label, count in Counter(train.labels).items()]
    shares = [mass / sum(masses) for mass in masses]
    return -sum(share * math.log(share) for share in shares)


def class_weights(setting: Any, labels: Sequence[int], label_names: Sequence[str]) -> list[float] | None:
    """The value of train.class_weights as a list [C], or None. Raises InputError for classes that do not exist."""
    if setting is None:
        return None
    if setting == "balanced":
        counts = Counter(labels)
        if missing := [name for label, name in enumerate(label_names) if label not in counts]:
            raise InputError(f"train.class_weights: expected training texts of every class, got none of {missing[0]}.")
        return [len(labels) / (len(label_names) * counts[label]) for label in range(len(label_names))]
    if isinstance(setting, Mapping):
        by_name = {str(name): float(weight) for name, weight in setting.items()}
        if unknown := sorted(by_name.keys() - set(label_names)):
            names = ", ".join(label_names[:10])
            raise InputError(f"train.class_weights: expected label names among {names}, got {unknown[0]}.")
        return [by_name.get(name, 1.0) for name in label_names]
    require(len(setting) == len(label_names), "train.class_weights", list(setting), f"{len(label_names)} numbers")
    return [float(weight) for weight in setting]
