"""Environment variables for the OpenMP threads of torch, which are read when torch is imported."""

import os

_SETTINGS = {"GOMP_SPINCOUNT": "10000"}
"""Iterations that a thread of GNU OpenMP, which torch uses on Linux, spins at a barrier before it sleeps. By default it
spins for minutes, and any other load on the machine stalls every step. This count costs nothing on idle cores and helps
on busy ones (docs/LOG.md, benchmarks/threads.py)."""


def configure_threads() -> None:
    """Set OpenMP variables, unless the user has set any OMP_* or GOMP_*. Each entry point calls it before it imports
    torch.
    """
    if not any(name.startswith(("OMP_", "GOMP_")) for name in os.environ):
        os.environ.update(_SETTINGS)
