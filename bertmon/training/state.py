"""Where a training run is, as a checkpoint keeps it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from bertmon.metrics import EvalResult
from bertmon.result import Status


@dataclass(slots=True)
class TrainState:
    """What training has come to so far."""

    status: Status = Status.running
    steps: int = 0  # updates done
    evaluations: list[EvalResult] = field(default_factory=list)
    train_seconds: float = 0.0  # without the evaluations
    eval_seconds: float = 0.0
    compile_seconds: float = 0.0  # part of train_seconds: first passes of a batch shape, with train.compile

    @property
    def ended(self) -> bool:
        return self.status.ended

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of dataclasses.asdict. Raises KeyError, TypeError and ValueError."""
        evaluations = [EvalResult.from_dict(each) for each in fields["evaluations"]]
        return cls(**{**fields, "status": Status(fields["status"]), "evaluations": evaluations})
