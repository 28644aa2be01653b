"""monitor.on_behind: how far the other runs of the sweep have come, from the files that they leave."""

from collections.abc import Callable
from pathlib import Path

from bertmon.monitor.behind import find_behind, loss_reduction
from bertmon.monitor.diagnosis import Diagnosis, Finding
from bertmon.monitor.history import HISTORY_FILE, History
from bertmon.result import RESULT_FILE, RunResult

BehindCheck = Callable[[History, Diagnosis], Finding | None]
"""The finding that a run cannot catch up with the sweep's best any more; None if it can."""


class SweepComparison:
    """Compares a run with the runs of its sweep that have ended, in whatever process or on whatever machine.

    Only runs on the same data count. Each is read once; one that cannot be read is ignored.
    """

    def __init__(self, sweep_dir: Path, run_dir: Path, fingerprint: str) -> None:
        self._sweep_dir = sweep_dir
        self._run_dir = run_dir
        self._fingerprint = fingerprint
        self._reductions: dict[Path, float] = {}  # of the runs that were read

    def find_behind(self, history: History, diagnosis: Diagnosis) -> Finding | None:
        """As BehindCheck."""
        return find_behind(history, diagnosis, self._best())

    def _best(self) -> float:
        for path in self._sweep_dir.glob(f"*/*/{RESULT_FILE}"):
            run_dir = path.parent
            if run_dir not in self._reductions and run_dir != self._run_dir:
                result = RunResult.read_ended(run_dir)
                if result and result.data and result.data.fingerprint == self._fingerprint:
                    self._reductions[run_dir] = _loss_reduction(run_dir)
        return max(self._reductions.values(), default=-float("inf"))


def _loss_reduction(run_dir: Path) -> float:
    try:
        reduction = loss_reduction(History.load(run_dir / HISTORY_FILE))
    except (OSError, ValueError):
        return -float("inf")
    return reduction if reduction == reduction else -float("inf")
