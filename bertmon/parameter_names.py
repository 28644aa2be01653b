"""Where in a transformers model a parameter lies, by its name."""

import re
from typing import Any

EMBEDDINGS = -1
"""Depth of the embeddings: below the first encoder layer."""


def encoder_layer(name: str) -> int | None:
    """Index of the encoder layer that the parameter of that name belongs to, counted from the input; None outside."""
    number = re.search(r"\bblocks?\.(\d+)\.", name) or re.search(r"\blayers?\.(\d+)\.", name)  # T5's block has both
    return int(number[1]) if number else None


def parameter_depths(model: Any) -> dict[str, int | None]:
    """Of each parameter by name: the index of its encoder layer, EMBEDDINGS, or None above all layers."""
    try:
        embeddings = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    except (AttributeError, NotImplementedError):  # a family without a table of embeddings, such as CANINE
        embeddings = set()
    depths: dict[str, int | None] = {}
    for name, parameter in model.named_parameters():
        depth = encoder_layer(name)
        below = depth is None and ("embeddings" in name or id(parameter) in embeddings)
        depths[name] = EMBEDDINGS if below else depth
    return depths
