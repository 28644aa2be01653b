"""multirun/<sweep>/best, a link to the best model, and the deletion of other saved models."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from bertmon.compare.results import NOT_STARTED, RunSummary, Setting, Sweep
from bertmon.result import MODEL_DIR, RunResult, Status, run_names

BEST_LINK = "best"

_PENDING = (NOT_STARTED, str(Status.running), str(Status.interrupted))


def link_best_model(sweep: Sweep, sweep_dir: Path) -> Path | None:
    """Make sweep_dir/best a link to the model of the best run that saved one; returns the model's path, or None.

    The link points to the model and not to the run, whose event files TensorBoard would show twice. If it cannot be
    created (Windows without the privilege, or the name is taken), the path of the run's own model is returned.

    The best setting has the highest mean objective (RunResult.objective) over its ended runs, the best run the highest
    one in it. With train.keep=best the models of the other settings on the same data are deleted once every run of the
    launch has ended. If sweep.json lists runs (not for a search), others in the folder are ignored.
    """
    settings = _own_settings(sweep, sweep_dir)
    best = max((setting for setting in settings if setting.ended), key=Setting.sort_key, default=None)
    saved = [run for run in best.ended if (run.run_dir / MODEL_DIR).is_dir()] if best else []
    if not saved:
        return None
    model = max(saved, key=_objective).run_dir / MODEL_DIR
    if not any(run.status in _PENDING for setting in settings for run in setting.runs):
        _delete_models(settings)
    return _make_link(sweep_dir / BEST_LINK, model)


def _own_settings(sweep: Sweep, sweep_dir: Path) -> list[Setting]:
    """The sweep's settings, with only the runs of the launch."""
    own = {sweep_dir / name for name in run_names(sweep_dir)} or {run.run_dir for run in sweep.runs}
    return [
        Setting(setting.name, setting.values, tuple(run for run in setting.runs if run.run_dir in own))
        for setting in sweep.settings
    ]


def _delete_models(settings: Sequence[Setting]) -> None:
    """Delete the models of all settings except the best one on each data set."""
    ended = [setting for setting in settings if setting.ended]
    best: dict[str, Setting] = {}
    for setting in sorted(ended, key=Setting.sort_key, reverse=True):
        best.setdefault(_fingerprint(setting), setting)  # of equally good ones the first, as above
    for setting in ended:
        for run in setting.ended if setting is not best[_fingerprint(setting)] else ():
            if _keeps_best_only(run.result):
                shutil.rmtree(run.run_dir / MODEL_DIR, ignore_errors=True)


def _fingerprint(setting: Setting) -> str:
    """The fingerprint of the data, which all runs of a setting share."""
    result = setting.ended[0].result
    return result.data.fingerprint if result and result.data else ""


def _objective(run: RunSummary) -> float:
    assert run.result is not None
    return run.result.objective


def _keeps_best_only(result: RunResult | None) -> bool:
    train = ((result.config if result else None) or {}).get("train") or {}
    return train.get("keep") == "best"


def _make_link(link: Path, target: Path) -> Path:
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        temporary.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
        temporary.replace(link)
    except OSError:
        temporary.unlink(missing_ok=True)
        return target
    return link
