"""bertmon: train BERT across a sweep of settings and see early which runs will never learn."""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertmon.errors import InputError as InputError
    from bertmon.integrations.own_loop import Watch as Watch
    from bertmon.integrations.transformers_trainer import WatchCallback as WatchCallback
    from bertmon.launch.api import train as train
    from bertmon.monitor.diagnosis import Verdict as Verdict
    from bertmon.monitor.history import History as History
    from bertmon.result import RunResult as RunResult

    __version__: str

_MODULES = {
    "History": "bertmon.monitor.history",
    "InputError": "bertmon.errors",
    "RunResult": "bertmon.result",
    "Verdict": "bertmon.monitor.diagnosis",
    "Watch": "bertmon.integrations.own_loop",
    "WatchCallback": "bertmon.integrations.transformers_trainer",
    "train": "bertmon.launch.api",
}
"""Imported on first use: importing torch and transformers takes seconds."""

__all__ = ["History", "InputError", "RunResult", "Verdict", "Watch", "WatchCallback", "__version__", "train"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("bertmon")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'bertmon' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
