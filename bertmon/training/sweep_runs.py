"""The other runs of a run's sweep, known from the files that they write when they end.

Works across processes, launchers and machines that share the sweep's folder; nothing is locked or written.
"""

import logging
import math
from pathlib import Path

from bertmon.monitor.behind import loss_reduction
from bertmon.monitor.history import HISTORY_FILE, History
from bertmon.result import RunResult, SweepFile

log = logging.getLogger(__name__)

_MAX_DEPTH = 4  # folders between a run and its sweep


class SweepRuns:
    """The ended runs of a run's sweep that trained on the same data; each is read once."""

    def __init__(self, run_dir: Path, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._unread = _other_runs(run_dir.resolve())
        self._best = -math.inf

    def best_loss_reduction(self) -> float:
        """The largest loss reduction of the runs that have ended so far; -inf if there are none."""
        for run_dir in list(self._unread):
            result = RunResult.read_ended(run_dir)
            if result is None or result.data is None:
                continue
            self._unread.remove(run_dir)
            if result.data.fingerprint == self._fingerprint:
                self._best = max(self._best, _reduction(run_dir))
        return self._best


def _other_runs(run_dir: Path) -> list[Path]:
    """Folders of the sweep's other runs; empty for a run outside any sweep."""
    for sweep_dir in list(run_dir.parents)[:_MAX_DEPTH]:
        sweep = SweepFile.read(sweep_dir)
        if sweep and (name := str(run_dir.relative_to(sweep_dir))) in sweep.runs:
            return [sweep_dir / other for other in sweep.runs if other != name]
    return []


def _reduction(run_dir: Path) -> float:
    try:
        reduction = loss_reduction(History.load(run_dir / HISTORY_FILE))
    except (OSError, ValueError) as error:
        log.warning("%s: could not read %s (%s); the comparison skips this run", run_dir.name, HISTORY_FILE, error)
        return -math.inf
    return reduction if math.isfinite(reduction) else -math.inf
