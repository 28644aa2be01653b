"""AdamW with and without bias correction; which parameters have weight decay, and each one's learning rate."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from bertmon import schedule
from bertmon.config import OptimizerConfig
from bertmon.errors import InputError
from bertmon.parameter_names import EMBEDDINGS, parameter_depths

_UNBIASED_STEP = 2.0**24
"""A step count at which both of Adam's bias corrections are exactly 1; float32 cannot count beyond it."""


def build_optimizer(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter], lr_scales: Mapping[nn.Parameter, float] | None = None
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; its learning rate is 0 until the schedule sets it.

    With the gradient g and t = 1, 2, ..., elementwise:

        m <- beta1 m + (1 - beta1) g                  v <- beta2 v + (1 - beta2) g^2
        p <- p - lr * weight_decay * p                (matrices only)
        p <- p - lr * (m / c1) / (sqrt(v / c2) + eps)

    With bias correction, c1 = 1 - beta1^t and c2 = 1 - beta2^t (Loshchilov & Hutter 2019, arXiv 1711.05101); without,
    c1 = c2 = 1, as in the original BERT code and in transformers' former AdamW(correct_bias=False). The latter applied
    weight decay after the step instead of before it; with weight_decay=0 there is no difference.

    Without bias correction, this is torch's optimizer, including its fused kernels, started at step 2**24: there
    1 - beta^t rounds to 1, so that the moments are never corrected.

    lr_scales: the result of `lr_scales`; each parameter group stores its factor as "lr_scale".
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    scales = {parameter: (lr_scales or {}).get(parameter, 1.0) for parameter in trainable}
    groups = [
        {"params": [p for p in trainable if (p.ndim >= 2) is matrices and scales[p] == scale], "lr_scale": scale}
        | {"weight_decay": config.weight_decay if matrices else 0.0}
        for scale in dict.fromkeys(scales.values())
        for matrices in (True, False)
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=all(parameter.device.type in ("cpu", "cuda", "mps") for parameter in trainable),
    )
    if not config.bias_correction:
        for parameter in trainable:
            optimizer.state[parameter] = {
                "step": torch.full((), _UNBIASED_STEP, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer


def lr_scales(config: OptimizerConfig, model: nn.Module) -> dict[nn.Parameter, float]:
    """Each parameter's learning rate relative to the schedule's, from layer_decay and head_lr.

    Raises InputError for layer_decay in a model without layer numbers in its parameter names, or with a decoder.
    """
    base = f"{getattr(model, 'base_model_prefix', '')}."
    depths = parameter_depths(model)
    layers = 1 + max((depth for depth in depths.values() if depth is not None), default=EMBEDDINGS)
    shape: Any = getattr(model, "config", None)
    if config.layer_decay < 1 and (not layers or getattr(shape, "is_encoder_decoder", False)):
        why = "whose parameter names have no layer numbers" if not layers else "which has a decoder"
        raise InputError(f"optimizer.layer_decay: expected 1 for {shape.model_type}, {why}, got {config.layer_decay}.")
    head = 1.0 if config.head_lr is None else config.head_lr / config.lr
    scales = {}
    for name, parameter in model.named_parameters():
        depth = depths[name]
        if depth is None:  # the pooler belongs to the base model, and is above all layers
            scales[parameter] = 1.0 if name.startswith(base) else head
        else:
            scales[parameter] = config.layer_decay ** (layers - depth)
    return scales


def bias_correction_gain(config: OptimizerConfig, step: int) -> float:
    """The factor by which missing bias correction scales the learning rate of `step`; 1 with bias correction."""
    if config.bias_correction:
        return 1.0
    return schedule.bias_correction_gain(step, beta1=config.beta1, beta2=config.beta2)
