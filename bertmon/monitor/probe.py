"""How much a model's logits depend on its input.

Shapes: B texts of a batch, C classes.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from bertmon.monitor import stats

MAX_TEXTS = 8
"""Texts of a batch that the probe uses in a forward pass of its own."""
_MIN_STEPS = 10
"""Steps between two of the probe's own passes. A pass takes a sixth of the FLOPs of a step of 16 texts; since it is in
float32, it takes a larger share of the time of a bfloat16 step on a GPU."""


class LogitProbe:
    """Standard deviation of the logits over the texts of a batch, without dropout and in float32.

    forward: returns the logits [n, C] of the first MAX_TEXTS texts of the batch, or None if it cannot measure them. It
    is called in eval mode, at most every tenth step: dropout and bfloat16 would hide the differences that matter.
    training_logits: returns the logits [B, C] of all processes' texts from the batch and the logits of the training
    pass. Pass it only if that pass is exact, without dropout and in float32; the probe then makes none of its own.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[[Any], Tensor | None],
        training_logits: Callable[[Any, Tensor], Tensor] | None = None,
    ) -> None:
        self._model = model
        self._forward = forward
        self._training_logits = training_logits
        self.next_step = 0
        """The first step at which the probe makes its next pass."""

    def logit_std(self, step: int, batch: Any, logits: Tensor | None) -> Tensor | None:
        """Standard deviation over texts, mean over classes []; nan for a single text. None: not measured at this step.

        batch: passed to `forward`. logits: from the training pass [B, C], if available.
        """
        if self._training_logits is not None and logits is not None:
            return stats.logit_std(self._training_logits(batch, logits))
        if step < self.next_step:
            return None
        self.next_step = step + _MIN_STEPS
        with stats.eval_fp32(self._model):
            probe_logits = self._forward(batch)
            return None if probe_logits is None else stats.logit_std(probe_logits)


def is_exact(model: nn.Module) -> bool:
    """Whether a float32 training pass of the model returns the same logits as one in eval mode.

    Some families, such as BART and OPT, apply dropout without a module; its rate is in the model's config.
    """
    keys = getattr(getattr(model, "config", None), "__dict__", {}).items()
    in_config = any("drop" in key and isinstance(value, int | float) and value > 0 for key, value in keys)
    return not in_config and not any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())


def first_texts(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The model's inputs with only the first MAX_TEXTS rows of every tensor that has one row per text."""
    texts = next((len(rows) for rows in batch.values() if isinstance(rows, Tensor) and rows.ndim), 0)

    def is_of_texts(rows: Any) -> bool:
        return isinstance(rows, Tensor) and rows.ndim > 0 and len(rows) == texts

    return {name: rows[:MAX_TEXTS] if is_of_texts(rows) else rows for name, rows in batch.items()}
