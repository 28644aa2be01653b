"""How many threads torch's OpenMP uses and how they wait: settings of the environment, read when torch is loaded."""

import os

_SETTINGS: dict[str, str] = {}
"""Variables that every process of bertmon starts with. None yet: which ones pay on idle and busy machines is to be
measured."""


def configure_threads() -> None:
    """Set the OpenMP variables that the user has not set. To be called before torch is imported, by each entry point.

    A user who has set any of OMP_* or GOMP_* keeps exactly those.
    """
    if not any(name.startswith(("OMP_", "GOMP_")) for name in os.environ):
        os.environ.update(_SETTINGS)
