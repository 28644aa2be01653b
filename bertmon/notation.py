"""One notation for numbers in the console, the report and the figures: 1e-3, 76.5 %, 2 min 05 s. Pure."""

import math


def format_rate(value: float, digits: int = 3, *, plain_from: float = 0.1) -> str:
    """A number that may live on a logarithmic scale, such as a learning rate: 5.5e-4, 2e-2, 0.3.

    plain_from: from there on, up to 10,000, without an exponent.
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if plain_from <= abs(value) < 10_000:
        return f"{value:.{digits if abs(value) < 100 else max(digits, 5)}g}"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


def format_value(value: object) -> str:
    """The value of a config key: a path by its last part, a list without brackets."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return format_rate(value, 6, plain_from=0.01)
    if isinstance(value, list | tuple):
        return ", ".join(map(format_value, value))
    text = str(value)
    return text.rstrip("/").rpartition("/")[2] or text


def format_percent(share: float, deviation: float = math.nan) -> str:
    """A share in [0, 1], with a standard deviation where there is one: 76.5 %, 81.2 ± 6.0 %. Empty for nan."""
    if math.isnan(share):
        return ""
    return f"{100 * share:.1f}{'' if math.isnan(deviation) else f' ± {100 * deviation:.1f}'} %"


def format_duration(seconds: float) -> str:
    """In its two largest units; empty for nan."""
    if math.isnan(seconds):
        return ""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
