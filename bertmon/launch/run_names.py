"""Names of runs: a run's folder within its sweep, and the overrides that distinguish its setting from others.

Overrides are Hydra's "key=value" strings of one run.
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence

from bertmon.storage import content_hash

NEVER_IN_NAME = ("cache_dir", "device", "experiment", "name", "resume", "seed")
"""Keys that are not part of a run's name unless they are swept; the seed names a subfolder."""

_NOT_A_STRING = re.compile(r"-?[\d_]*\.?[\d_]*(e-?[\d_]+)?|-?(inf|nan)|true|false|null", re.IGNORECASE)
_MAX_NAME_BYTES = 120  # file systems allow 255


def setting_overrides(overrides: Sequence[str], excluded: Collection[str]) -> dict[str, str]:
    """The overrides that define the run's setting, by key: all except the excluded keys and the seed."""
    by_key = dict(override.lstrip("+~").split("=", 1) for override in overrides if "=" in override)
    return {key: value for key, value in by_key.items() if key != "seed" and key not in excluded}


def setting_dir_name(overrides: Sequence[str], excluded: Collection[str], default: str) -> str:
    """The setting as a folder name, such as `warmup_frac=0.1`; `default` if it overrides nothing.

    Keys are shortened to their last part where that is unambiguous, and paths always. A hash is appended if a path was
    shortened, or the name had to be changed to be a valid file name.
    """
    settings = setting_overrides(overrides, excluded)
    if not settings:
        return default
    short_keys = {key: key.rpartition(".")[2] for key in settings}
    ambiguous = {name for name, count in Counter(short_keys.values()).items() if count > 1}
    keys = {key: key if short in ambiguous else short for key, short in short_keys.items()}
    full = ",".join(f"{keys[key]}={value}" for key, value in settings.items())
    short = ",".join(f"{keys[key]}={_last_part(value)}" for key, value in settings.items())
    safe = re.sub(r"[^\w.=,+\-]", "-", short).encode()[:_MAX_NAME_BYTES].decode(errors="ignore").strip(".") or default
    return safe if safe == full else f"{safe}-{content_hash(full)[:6]}"


def _last_part(value: str) -> str:
    """The last part of a path; any other value unchanged."""
    return value.strip("'\"").rstrip("/").rpartition("/")[2] or value if "/" in value else value


def quote_override(value: object) -> str:
    """Quote a value for Hydra's override grammar, so that it is not parsed as a list, a sweep, an interpolation, a
    number, a boolean or null."""
    text = str(value)
    if re.fullmatch(r"[A-Za-z0-9_./-]+", text) and (set(text) == {"."} or not _NOT_A_STRING.fullmatch(text)):
        return text
    escaped = re.sub(r"(\\+)(?='|$)", r"\1\1", text).replace("'", "\\'")  # its parser leaves other backslashes alone
    return f"'{escaped}'"
