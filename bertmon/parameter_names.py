"""What transformers' names of parameters say about them."""

import re


def encoder_layer(name: str) -> int | None:
    """Index of the encoder layer that the parameter of that name belongs to, counted from the input; None outside."""
    number = re.search(r"\blayers?\.(\d+)\.", name)
    return int(number[1]) if number else None
