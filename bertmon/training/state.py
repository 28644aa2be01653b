"""The progress of a training run, as stored in a checkpoint."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from bertmon.metrics import EvalResult, best_evaluation
from bertmon.result import Status


@dataclass(slots=True)
class TrainState:
    """Status and progress of training. Each evaluation has a result per split, in the same order."""

    status: Status = Status.running
    steps: int = 0  # updates done
    evaluations: list[EvalResult] = field(default_factory=list)  # of the test split
    validations: list[EvalResult] = field(default_factory=list)  # of the validation split; empty without one
    train_seconds: float = 0.0  # without evaluations
    eval_seconds: float = 0.0
    compile_seconds: float = 0.0  # part of train_seconds: first pass of each batch shape, with train.compile

    @property
    def ended(self) -> bool:
        return self.status.ended

    @property
    def selection(self) -> Sequence[EvalResult]:
        """The evaluations that the best one is chosen from."""
        return self.validations or self.evaluations

    def add(self, test: EvalResult, validation: EvalResult | None, metric: str) -> None:
        """Append the evaluations of one step. Only the last and the best step keep their confusion matrices."""
        self.evaluations.append(test)
        if validation is not None:
            self.validations.append(validation)
        best = best_evaluation(self.selection, metric)
        kept_steps = {test.step} | ({best.step} if best else set())
        for evaluations in (self.evaluations, self.validations):
            evaluations[:] = [each if each.step in kept_steps else each.without_confusion() for each in evaluations]

    def evaluations_since_best(self, metric: str) -> int:
        """Number of evaluations after the best one, not counting step 0; 0 if the last one is the best."""
        best = best_evaluation(self.selection, metric)
        return sum(each.step > (best.step if best else 0) for each in self.selection)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of dataclasses.asdict. Raises KeyError, TypeError and ValueError."""
        lists = {name: [EvalResult.from_dict(each) for each in fields[name]] for name in ("evaluations", "validations")}
        names = {each.name for each in dataclasses.fields(cls)}
        return cls(**{**{k: v for k, v in fields.items() if k in names}, "status": Status(fields["status"]), **lists})
