"""The monitor's vocabulary, numpy only: what was measured, and what it is called.

Shapes: L layers, S statistics.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

STATISTICS = ("grad_mean", "grad_max", "grad_std", "grad_zero", "update_ratio")
"""Mean, largest value and standard deviation of |gradient| before clipping; share of gradients that are exactly zero;
L2 norm of the parameter's change in this step over its L2 norm before."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What was measured at one step. A statistic that does not exist, such as a ratio to a zero weight, is nan."""

    step: int
    lr: float  # the learning rate that this step used
    layers: tuple[str, ...]  # [L], from input to output
    kinds: tuple[str, ...]  # [L], "embedding", "linear", "norm", "bias" or "other"
    values: npt.NDArray[np.float64]  # [L, S]

    def __post_init__(self) -> None:
        assert self.values.shape == (len(self.layers), len(STATISTICS)), self.values.shape

    def __getitem__(self, statistic: str) -> npt.NDArray[np.float64]:
        """One statistic of all layers [L]."""
        column: npt.NDArray[np.float64] = self.values[:, STATISTICS.index(statistic)]
        return column

    def __eq__(self, other: Any) -> bool:
        return (
            isinstance(other, Snapshot)
            and (self.step, self.lr, self.layers, self.kinds) == (other.step, other.lr, other.layers, other.kinds)
            and np.array_equal(self.values, other.values, equal_nan=True)
        )
