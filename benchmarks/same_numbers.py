"""Check that two versions of bertmon train identically: compare all losses and accuracies of a sweep exactly.

    python benchmarks/same_numbers.py BEFORE AFTER [OVERRIDE...]

BEFORE and AFTER are folders of sweeps, or checkouts, in which README's quickstart sweep (warm-up 0.1 and 0.7, seeds 0,
1, 2, and any further overrides) is run first, with the checkout's own .venv if it has one. The training loss and the
gradient norm of every step are compared, and the evaluations at steps that both sides evaluate. Both sides need the
same machine, number of threads and library versions, because a different order of summation rounds differently. The
exit code is 1 if a number differs or a run is missing.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertmon.monitor.history import HISTORY_FILE, History
from bertmon.result import RESULT_FILE, RunResult

SWEEP = ["-m", "bertmon.run", "-m", "schedule.warmup_frac=0.1,0.7", "seed=0,1,2"]

Key = tuple[str, ...]


@dataclass(frozen=True)
class Numbers:
    """The numbers that a run recorded during training."""

    losses: list[float]  # of each step
    grad_norms: list[float]
    evaluations: list[tuple[int, float, float]]  # step, loss, accuracy

    def common_evaluations(self, other: "Numbers") -> list[tuple[int, float, float]]:
        """The evaluations at steps that the other side also evaluates: versions differ in how often they evaluate."""
        steps = {step for step, *_ in other.evaluations}
        return [each for each in self.evaluations if each[0] in steps]

    def first_difference(self, other: "Numbers") -> str:
        """A description of the first difference; empty if there is none."""
        compared = {name: (getattr(self, name), getattr(other, name)) for name in ("losses", "grad_norms")}
        compared["evaluations"] = self.common_evaluations(other), other.common_evaluations(self)
        for name, (before, after) in compared.items():
            for number, (a, b) in enumerate(zip(before, after, strict=False)):
                if repr(a) != repr(b):  # nan equals nan
                    return f"{name}[{number}]: {a!r} and {b!r}"
            if len(before) != len(after):
                return f"{len(before)} and {len(after)} {name}"
        return ""


def read_sweep(folder: Path) -> dict[Key, Numbers]:
    """The ended runs in a folder, by overrides and seed."""
    return dict(_read_runs(folder))


def _read_runs(folder: Path) -> Iterator[tuple[Key, Numbers]]:
    for path in sorted(folder.rglob(RESULT_FILE)):
        result = RunResult.read_ended(path.parent)
        if result is not None:
            history = History.load(path.with_name(HISTORY_FILE))
            evaluations = [(each.step, each.loss, each.accuracy) for each in result.evaluations]
            overrides: dict[str, Any] = result.overrides
            key = (*(f"{name}={value}" for name, value in sorted(overrides.items())), f"seed={result.seed}")
            yield key, Numbers(history.losses, history.grad_norms, evaluations)


def run_sweep(checkout: Path, overrides: Sequence[str], target: Path) -> None:
    """Run the quickstart sweep with the sources of a checkout."""
    python = checkout / ".venv" / "bin" / "python"
    command = [str(python if python.exists() else sys.executable), *SWEEP, *overrides, f"hydra.sweep.dir={target}"]
    subprocess.run(command, cwd=checkout, check=True, stdout=subprocess.DEVNULL)  # -m: the sources of cwd come first


def compare(before: dict[Key, Numbers], after: dict[Key, Numbers]) -> bool:
    """Print a line for each run; returns whether all runs are present and equal."""
    equal = bool(before)
    for key in sorted(before.keys() | after.keys()):
        if key not in before or key not in after:
            difference = f"missing {'before' if key not in before else 'after'}"
        else:
            difference = before[key].first_difference(after[key])
            common = len(before[key].common_evaluations(after[key]))
            steps = f"{len(before[key].losses)} steps, {common} evaluations"
        equal &= not difference
        print(f"{' '.join(key)}: {difference or f'equal ({steps})'}")
    print(f"{len(before)} and {len(after)} runs: {'equal' if equal else 'different'}")
    return equal


def main(arguments: Sequence[str]) -> int:
    """See the module's docstring."""
    if len(arguments) < 2:
        print(__doc__)
        return 2
    sweeps = []
    for number, folder in enumerate(map(Path, arguments[:2])):
        if (folder / "bertmon").is_dir():
            target = Path(tempfile.mkdtemp(prefix="same_numbers_"), ("before", "after")[number])
            print(f"{folder}: running the sweep into {target}", flush=True)
            run_sweep(folder.resolve(), arguments[2:], target)
            folder = target
        sweeps.append(read_sweep(folder))
    return 0 if compare(*sweeps) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
