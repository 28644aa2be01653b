"""Logits of the first texts of a batch, for any model and batch format of a training loop.

Shapes: n texts, T tokens, C classes.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from bertmon.errors import InputError, first_line, require
from bertmon.monitor.probe import MAX_TEXTS, first_texts

log = logging.getLogger(__name__)


class ModelLogits:
    """Returns the logits [n, C] of a batch's first texts; None, with one warning, if there is no row for each text.

    forward: the user's function from a batch to its logits. None: call the model on the batch's first texts, without
    labels. may_fail: if the model cannot be called this way, disable this object instead of raising.
    """

    def __init__(
        self, model: nn.Module, forward: Callable[[Any], Tensor] | None = None, *, may_fail: bool = False
    ) -> None:
        self._model = model
        self._forward = forward
        self._may_fail = may_fail
        self._disabled = False
        self._warned = False

    def __call__(self, batch: Any) -> Tensor | None:
        if self._disabled:
            return None
        if self._forward is None and not isinstance(batch, Mapping):
            self._disable(f"batch: expected a mapping of the model's inputs, or logits=..., got {type(batch).__name__}")
            return None
        try:
            scores = self._forward(batch) if self._forward else self._model_logits(first_texts(batch))
        except Exception as error:
            if isinstance(error, InputError) or not self._may_fail:
                raise
            self._disable(f"the logits of a batch could not be computed in float32 ({first_line(error)})")
            return None
        if isinstance(scores, Tensor) and scores.ndim > 2:
            self._disable(f"logits of shape {list(scores.shape)} are not one row for each text")
            return None
        shape = f"shape {list(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        ok = isinstance(scores, Tensor) and scores.ndim == 2
        require(ok, "logits", shape, "a tensor of shape [texts, classes]")
        if len(scores) < 2 and not self._warned:
            self._warned = True
            log.warning(
                "A batch of fewer than two texts: how logits differ between texts is unknown, no verdict on collapse."
            )
        return scores[:MAX_TEXTS]

    def _disable(self, reason: str) -> None:
        self._disabled = True
        log.warning(f"{reason}: no verdict on collapse for this model, gradients and updates only.")

    def _model_logits(self, batch: Mapping[str, Any]) -> Tensor:
        # an encoder-decoder derives its decoder's inputs from the labels
        needs_labels = getattr(getattr(self._model, "config", None), "is_encoder_decoder", False)
        inputs = {name: rows for name, rows in batch.items() if name != "labels" or needs_labels}
        # the class's forward: accelerate wraps the instance's in autocast
        output = type(self._model).forward(self._model, **inputs)
        scores = getattr(output, "logits", None)
        if scores is None:
            raise InputError(
                "model: expected one whose output has .logits (in transformers: a classifier, with return_dict=True), "
                f"or logits=..., got a {type(output).__name__}."
            )
        logits: Tensor = scores
        return logits
