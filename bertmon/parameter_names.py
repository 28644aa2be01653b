"""The position of a parameter in a transformers model, from its name."""

import re
from typing import Any

EMBEDDINGS = -1
"""Depth of the embeddings: below the first encoder layer."""


def encoder_layer(name: str) -> int | None:
    """Index of the encoder layer of a parameter, counted from the input; None if it is outside the encoder layers."""
    for layers in ("blocks?", "layers?", "h"):  # T5 has blocks of layers; h as in GPT-2
        if number := re.search(rf"\b{layers}\.(\d+)\.", name):
            return int(number[1])
    return None


def parameter_depths(model: Any) -> dict[str, int | None]:
    """The depth of each parameter, by name: the index of its encoder layer, EMBEDDINGS, or None above all layers."""
    try:
        embeddings = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    except (AttributeError, NotImplementedError):  # a family without an embedding table, such as CANINE
        embeddings = set()
    depths: dict[str, int | None] = {}
    for name, parameter in model.named_parameters():
        depth = encoder_layer(name)
        is_embedding = depth is None and ("embeddings" in name or id(parameter) in embeddings)
        depths[name] = EMBEDDINGS if is_embedding else depth
    return depths
