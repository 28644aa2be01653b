"""Number formats shared by the console, the report and the figures: 1e-3, 76.5 %, 2 min 05 s. Pure functions."""

import math


def format_rate(value: float, digits: int = 3, *, plain_from: float = 0.1) -> str:
    """Format a number that spans orders of magnitude, such as a learning rate: 5.5e-4, 2e-2, 0.3.

    plain_from: numbers from plain_from up to 10,000 have no exponent.
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if plain_from <= abs(value) < 10_000:
        return f"{value:.{digits if abs(value) < 100 else max(digits, 5)}g}"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


def format_value(value: object) -> str:
    """Format the value of a config key: a path as its last part, a list without brackets."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return format_rate(value, 6, plain_from=0.01)
    if isinstance(value, list | tuple):
        return ", ".join(map(format_value, value))
    text = str(value)
    return text.rstrip("/").rpartition("/")[2] or text


def format_percent(share: float, deviation: float = math.nan) -> str:
    """Format a fraction in [0, 1], with its standard deviation if given: 76.5 %, 81.2 ± 6.0 %. Empty for nan."""
    if math.isnan(share):
        return ""
    return f"{100 * share:.1f}{'' if math.isnan(deviation) else f' ± {100 * deviation:.1f}'} %"


def format_duration(seconds: float) -> str:
    """Format a duration in its two largest units; empty for nan."""
    if math.isnan(seconds):
        return ""
    rounded = round(seconds)
    if rounded < 120:
        return f"{rounded} s"
    if rounded < 7200:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"
