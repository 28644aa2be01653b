"""The monitor's data: the measurements of a run, and their names. Numpy only.

Shapes: L weights, S statistics, N steps of the whole run, n steps so far, K watched steps.
"""

import io
import json
import math
import re
import zipfile
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_MAX_BYTES = 2**31  # of an unpacked history: 400,000 watched steps of BERT-base

HISTORY_FILE = "history.npz"
"""The file in a run's folder that holds everything that was measured; History.load reads it."""

STATISTICS = ("grad_mean", "grad_max", "grad_std", "grad_zero", "update_ratio", "weight_rms")
"""Mean, largest value and standard deviation of |gradient| before clipping; share of gradients that are exactly zero;
L2 norm of the parameter's change in this step over its L2 norm before; root mean square of the parameter before."""


@dataclass(frozen=True)
class WeightTable:
    """The watched parameters [L], from input to output."""

    labels: tuple[str, ...]
    kinds: tuple[str, ...]  # "embedding", "linear", "norm", "bias" or "other"
    depths: tuple[int | None, ...]  # number of the encoder layer; None outside the encoder
    lr_scales: tuple[float, ...] = ()  # factors of the run's learning rate; empty: 1 for all

    def __post_init__(self) -> None:
        assert len(self.labels) == len(self.kinds) == len(self.depths)
        assert len(self.lr_scales) in (0, len(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def matrix_groups(self) -> dict[str, list[int]]:
        """Rows of the matrices that occur in every encoder layer, from the first layer to the last, by name."""
        groups: dict[str, list[int]] = {}
        for row, (label, kind, depth) in enumerate(zip(self.labels, self.kinds, self.depths, strict=True)):
            if kind == "linear" and depth is not None:
                groups.setdefault(re.sub(rf"\b{depth}\b", "*", label, count=1), []).append(row)
        return {name: rows for name, rows in groups.items() if len(rows) > 1}


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The measurements at one step. Undefined values, such as a ratio to a zero weight, are nan."""

    step: int
    lr: float  # the learning rate that this step used
    effective_lr: float  # lr times the gain of a missing bias correction
    logit_std: float  # standard deviation of the logits over a batch's texts, mean over classes, without dropout
    layers: WeightTable
    values: FloatArray  # [L, S]

    def __post_init__(self) -> None:
        assert self.values.shape == (len(self.layers), len(STATISTICS)), self.values.shape

    def with_layers(self, layers: WeightTable) -> "Snapshot":
        """The same snapshot with a larger table, which must include all its weights; the others' values are nan."""
        if layers == self.layers:
            return self
        values = np.full((len(layers), len(STATISTICS)), np.nan)
        values[[layers.labels.index(label) for label in self.layers.labels]] = self.values
        return replace(self, layers=layers, values=values)

    def __getitem__(self, statistic: str) -> FloatArray:
        """One statistic of all weights [L]."""
        column: FloatArray = self.values[:, STATISTICS.index(statistic)]
        return column

    @cached_property
    def depth_ratio(self) -> tuple[float, str]:
        """Mean |gradient| of the first encoder layer over the last one's, and the label of the first one's matrix.

        For the kind of matrix with the smallest ratio; nan if no kind occurs in several layers. If it is far below 1,
        the gradient vanishes on its way to the input.
        """
        mean, smallest = self["grad_mean"], (np.nan, "")
        for rows in self.layers.matrix_groups.values():
            first, last = rows[0], rows[-1]
            with np.errstate(invalid="ignore", over="ignore"):  # in a run that has diverged
                ratio = float(mean[first] / mean[last]) if mean[last] > 0 else np.nan
            if ratio < smallest[0] or np.isnan(smallest[0]):
                smallest = (ratio, self.layers.labels[first])
        return smallest

    @cached_property
    def signals(self) -> dict[str, float]:
        """Signals of the whole model by tag, without those that are undefined at this step.

        update_per_lr is the root mean square of a weight's change in the step over the effective learning rate, median
        over all weights of a kind: Adam's step relative to its step for a constant gradient.
        """
        signals = {"depth_ratio": self.depth_ratio[0], "logit_std": self.logit_std}
        if self.effective_lr > 0:
            with np.errstate(invalid="ignore", over="ignore"):  # in a run that has diverged
                steps = self["update_ratio"] * self["weight_rms"] / self.effective_lr
                if self.layers.lr_scales:
                    steps = steps / np.array(self.layers.lr_scales)
            for kind in ("embedding", "linear", "norm"):
                of_kind = steps[[row for row, other in enumerate(self.layers.kinds) if other == kind]]
                of_kind = of_kind[~np.isnan(of_kind)]
                signals[f"update_per_lr/{kind}"] = float(np.median(of_kind)) if len(of_kind) else np.nan
        return {tag: value for tag, value in signals.items() if not np.isnan(value)}

    def __eq__(self, other: Any) -> bool:
        return (
            isinstance(other, Snapshot)
            and (self.step, self.lr, self.effective_lr, self.layers)
            == (other.step, other.lr, other.effective_lr, other.layers)
            and np.array_equal(self.logit_std, other.logit_std, equal_nan=True)
            and np.array_equal(self.values, other.values, equal_nan=True)
        )


@dataclass(frozen=True, slots=True, eq=False)
class RunPlan:
    """What is known about a run before its first step."""

    lr: FloatArray  # [N]
    effective_lr: FloatArray  # [N]
    chance_loss: float  # entropy of the training labels: the loss of a model that ignores the texts; nan: loss unknown
    warmup_frac: float
    bias_correction: bool
    lr_confirmed: bool = True  # whether rules can rely on the rates to come; not stored in files

    def __len__(self) -> int:
        return len(self.lr)

    @property
    def loss_known(self) -> bool:
        """Whether the losses of the steps are known, so that rules can rely on them."""
        return not math.isnan(self.chance_loss)


@dataclass(slots=True)
class History:
    """A run so far: every step's loss and gradient norm, and the snapshots of the watched steps."""

    plan: RunPlan
    losses: list[float] = field(default_factory=list)  # [n], mean cross-entropy of each step's batch; nan: not watched
    grad_norms: list[float] = field(default_factory=list)  # [n], global L2 norm before clipping
    snapshots: list[Snapshot] = field(default_factory=list)  # [K]

    @property
    def smoothing_window(self) -> int:
        """The number of last steps that losses are averaged over: a twentieth of the run, but at least 20."""
        return max(20, len(self.plan) // 20)

    def mean_since(self, since: int, clip: float | None = None) -> dict[str, float]:
        """Scalars of the last step, by tag; loss, gradient norm and clipping are means since step `since`."""
        last, norms = len(self.losses) - 1, np.array(self.grad_norms[since:])
        means = {
            "loss/train": float(np.mean(self.losses[since:])),
            "learning_rate": float(self.plan.lr[last]),
            "effective_learning_rate": float(self.plan.effective_lr[last]),
            "grad_norm": float(norms.mean()),
        }
        return means if clip is None else means | {"clipped": float((norms > clip).mean())}

    def rewind(self, steps: int) -> None:
        """Forget everything after the first `steps` steps."""
        del self.losses[steps:], self.grad_norms[steps:]
        self.snapshots = [snapshot for snapshot in self.snapshots if snapshot.step < steps]

    def to_bytes(self) -> bytes:
        """The history as an .npz file without pickles."""
        shots = self.snapshots
        layers = shots[0].layers if shots else WeightTable((), (), ())
        plan = self.plan
        about = {"chance_loss": plan.chance_loss, "warmup_frac": plan.warmup_frac}
        file = io.BytesIO()
        np.savez_compressed(
            file,
            about=np.array(json.dumps(about | {"bias_correction": plan.bias_correction} | asdict(layers))),
            lr=plan.lr,
            effective_lr=plan.effective_lr,
            loss=np.array(self.losses, dtype=np.float32),
            grad_norm=np.array(self.grad_norms, dtype=np.float32),
            step=np.array([shot.step for shot in shots], dtype=np.int64),
            logit_std=np.array([shot.logit_std for shot in shots], dtype=np.float32),
            values=np.array([shot.values for shot in shots]).reshape(len(shots), len(layers), len(STATISTICS)),
        )
        return file.getvalue()

    @classmethod
    def load(cls, path: Path | str) -> "History":
        """Read a file with the content of `to_bytes`. Raises OSError and ValueError."""
        path = Path(path)
        if not path.is_file():  # reading a FIFO would block
            raise OSError("not a file")
        return cls.from_bytes(path.read_bytes())

    @classmethod
    def from_bytes(cls, content: bytes) -> "History":
        """The inverse of `to_bytes`. Raises ValueError for anything else."""
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as packed:
                if sum(part.file_size for part in packed.infolist()) > _MAX_BYTES:
                    raise ValueError(f"more than {_MAX_BYTES} bytes")
            history = cls._from_bytes(content)
            history._check()
        except Exception as error:  # numpy and zipfile raise a dozen kinds of errors for other files
            raise ValueError(f"corrupt history file ({type(error).__name__}: {error})") from None
        return history

    def _check(self) -> None:
        """Raise ValueError if the parts of a file are not consistent with each other."""
        plan, shots, steps = self.plan, self.snapshots, len(self.losses)
        rows = [plan.lr, plan.effective_lr, np.array(self.losses), np.array(self.grad_norms)]
        numbers = [plan.chance_loss, plan.warmup_frac, *(shot.logit_std for shot in shots)]
        layers = shots[0].layers if shots else WeightTable((), (), ())
        consistent = (
            all(row.ndim == 1 and row.dtype.kind == "f" for row in rows)
            and len(plan.lr) == len(plan.effective_lr) >= steps == len(self.grad_norms)
            and all(isinstance(number, int | float) for number in numbers)
            and all(isinstance(name, str) for name in (*layers.labels, *layers.kinds))
            and all(depth is None or isinstance(depth, int) for depth in layers.depths)
            and all(shot.values.dtype.kind == "f" and 0 <= shot.step < len(plan) for shot in shots)
        )
        if not consistent:
            raise ValueError("inconsistent shapes")

    @classmethod
    def _from_bytes(cls, content: bytes) -> "History":
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            layers = WeightTable(*(tuple(about.get(key, ())) for key in ("labels", "kinds", "depths", "lr_scales")))
            plan = RunPlan(
                stored["lr"],
                stored["effective_lr"],
                about["chance_loss"],
                about["warmup_frac"],
                about["bias_correction"],
            )
            shots = [
                Snapshot(step, plan.lr[step], plan.effective_lr[step], logit_std, layers, values)
                for step, logit_std, values in zip(
                    stored["step"].tolist(),
                    stored["logit_std" if "logit_std" in stored else "logit_spread"].tolist(),
                    stored["values"],
                    strict=True,
                )
            ]
            return cls(plan, stored["loss"].tolist(), stored["grad_norm"].tolist(), shots)
