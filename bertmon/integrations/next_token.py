"""Labels of causal language models, which the model itself shifts: the logits at token t are scored with label t + 1.

Shapes: B texts, T tokens.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bertmon.integrations.labels import IGNORED

_NOT_SHIFTED = {"CpmAntForCausalLM", "ProphetNetForCausalLM", "XLNetLMHeadModel"}
"""transformers' language models whose loss takes the labels as they are."""


def shifts_labels(model: nn.Module) -> bool:
    """Whether a model of transformers', or peft's around it, scores the logits of each token with the next one's label.

    Those that generate from their input alone do; an encoder-decoder has its labels as they are.
    """
    inside: Any = getattr(model, "get_base_model", None)  # of peft's models
    if inside is not None:
        model = inside()
    kind = type(model).__name__
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) or kind in _NOT_SHIFTED:
        return False
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return causal or getattr(model, "loss_type", None) in ("ForCausalLM", "ForConditionalGeneration")


def scored_labels(inputs: Any, shifted: bool) -> Any:
    """The labels that belong to the logits [B, T, C] of the same position; None if the inputs have none.

    shifted: as `shifts_labels` says. A collator may have shifted them itself, as `shift_labels`.
    """
    if not isinstance(inputs, Mapping):
        return None
    labels = inputs.get("labels")
    if not shifted:
        return labels
    if isinstance(inputs.get("shift_labels"), Tensor):
        return inputs["shift_labels"]
    if not isinstance(labels, Tensor) or labels.ndim != 2:
        return labels
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)
