"""multirun/<sweep>/best: a link to the model to use, and which saved models stay."""

import os
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

from bertmon.compare.results import RunSummary, Setting, Sweep
from bertmon.result import MODEL_DIR, RunResult, Status

BEST_LINK = "best"

_UNDONE = ("waiting", str(Status.running), str(Status.interrupted))


def link_best_model(sweep: Sweep, sweep_dir: Path) -> Path | None:
    """Make sweep_dir/best a link to the model of the best run that saved one; returns that run's folder, or None.

    The link leads to the model and not to the run, whose event files TensorBoard would show twice.

    The best setting has the highest mean objective (RunResult.objective) over its ended runs, the best run the highest
    one in it. With train.keep=best the models of the other settings are deleted once every run has ended.
    """
    best = _best_setting(sweep.settings)
    saved = [run for run in best.ended if run.result and run.result.model_dir] if best else []
    if not saved:
        return None
    chosen = max(saved, key=_objective)
    _replace_link(sweep_dir / BEST_LINK, chosen.run_dir / MODEL_DIR)
    if not any(run.status in _UNDONE for run in sweep.runs):
        for setting in sweep.settings:
            for run in setting.ended if setting is not best else ():
                if _keeps_best_only(run.result):
                    shutil.rmtree(run.run_dir / MODEL_DIR, ignore_errors=True)
    return chosen.run_dir


def _best_setting(settings: Sequence[Setting]) -> Setting | None:
    ended = [setting for setting in settings if setting.ended]
    return max(ended, key=lambda setting: statistics.fmean(map(_objective, setting.ended)), default=None)


def _objective(run: RunSummary) -> float:
    assert run.result is not None
    return run.result.objective


def _keeps_best_only(result: RunResult | None) -> bool:
    train = ((result.config if result else None) or {}).get("train") or {}
    return train.get("keep") == "best"


def _replace_link(link: Path, target: Path) -> None:
    """Where symbolic links need a privilege (Windows) there is none; the report names the run."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        temporary.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
        temporary.replace(link)
    except OSError:
        temporary.unlink(missing_ok=True)
