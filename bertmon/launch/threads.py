"""How many threads torch's OpenMP uses and how they wait: settings of the environment, read when torch is loaded."""

import os

_SETTINGS = {"GOMP_SPINCOUNT": "10000"}
"""Turns that a thread of GNU OpenMP, which torch uses on Linux, waits at a barrier before it sleeps. By default it
waits for minutes, and whatever else computes on the machine stalls every step. This many turns cost nothing on idle
cores and help on busy ones (docs/LOG.md, benchmarks/threads.py)."""


def configure_threads() -> None:
    """Set the OpenMP variables that the user has not set. To be called before torch is imported, by each entry point.

    A user who has set any of OMP_* or GOMP_* keeps exactly those.
    """
    if not any(name.startswith(("OMP_", "GOMP_")) for name in os.environ):
        os.environ.update(_SETTINGS)
