"""AdamW with and without bias correction; which parameters decay, and which have a rate of their own."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from bertmon import schedule
from bertmon.config import OptimizerConfig
from bertmon.errors import InputError
from bertmon.parameter_names import EMBEDDINGS, parameter_depths

_UNBIASED_STEP = 2.0**24
"""A step count at which both of Adam's corrections are exactly 1, and which float32 cannot count past."""


def build_optimizer(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter], lr_scales: Mapping[nn.Parameter, float] | None = None
) -> torch.optim.AdamW:
    """AdamW over the parameters that train; its rate is 0 until the schedule sets it.

    With g the gradient, t = 1, 2, ... and everything per element:

        m <- beta1 m + (1 - beta1) g                  v <- beta2 v + (1 - beta2) g^2
        p <- p - lr * weight_decay * p                (matrices only)
        p <- p - lr * (m / c1) / (sqrt(v / c2) + eps)

    c1 = 1 - beta1^t and c2 = 1 - beta2^t with bias correction (Loshchilov & Hutter 2019, arXiv 1711.05101), and both 1
    without, as in the original BERT code and in transformers' former AdamW(correct_bias=False). That one applied the
    decay after the step instead of before it; with weight_decay=0 nothing differs.

    The form without correction is torch's own optimizer, fused kernels and all, started at step 2**24: there
    1 - beta^t rounds to 1, so the moments of every real step stay uncorrected.

    lr_scales: `lr_scales` of the model; each group has its factor of the schedule's rate as "lr_scale".
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    scales = {parameter: (lr_scales or {}).get(parameter, 1.0) for parameter in trained}
    groups = [
        {"params": [p for p in trained if (p.ndim >= 2) is matrices and scales[p] == scale], "lr_scale": scale}
        | {"weight_decay": config.weight_decay if matrices else 0.0}
        for scale in dict.fromkeys(scales.values())
        for matrices in (True, False)
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=all(parameter.device.type in ("cpu", "cuda", "mps") for parameter in trained),
    )
    if not config.bias_correction:
        for parameter in trained:
            optimizer.state[parameter] = {
                "step": torch.full((), _UNBIASED_STEP, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer


def lr_scales(config: OptimizerConfig, model: nn.Module) -> dict[nn.Parameter, float]:
    """Each parameter's factor of the schedule's learning rate, by layer_decay and head_lr.

    Raises InputError for layer_decay in a model whose names have no layer numbers, or with a decoder's as well.
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
    """What a missing bias correction multiplies the learning rate of `step` by; 1 with bias correction."""
    if config.bias_correction:
        return 1.0
    return schedule.bias_correction_gain(step, beta1=config.beta1, beta2=config.beta2)
