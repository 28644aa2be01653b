"""Labels of causal language models, which shift them internally: logits at token t are scored against label t + 1.

Shapes: B texts, T tokens.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bertmon.integrations.labels import IGNORED

_NOT_SHIFTED = {"CpmAntForCausalLM", "ProphetNetForCausalLM", "XLNetLMHeadModel"}
"""Language models of transformers whose loss does not shift the labels."""


def shifts_labels(model: nn.Module) -> bool:
    """Whether a transformers model, or one wrapped by peft, scores each token's logits against the next token's label.

    Decoder-only models do; encoder-decoders do not shift their labels.
    """
    get_base_model: Any = getattr(model, "get_base_model", None)  # peft
    if get_base_model is not None:
        model = get_base_model()
    kind = type(model).__name__
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) or kind in _NOT_SHIFTED:
        return False
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return causal or getattr(model, "loss_type", None) in ("ForCausalLM", "ForConditionalGeneration")


def scored_labels(inputs: Any, shifted: bool) -> Any:
    """The labels aligned with the logits [B, T, C]; None if the inputs have none.

    shifted: the result of `shifts_labels`. A collator may have shifted the labels already, as `shift_labels`.
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
