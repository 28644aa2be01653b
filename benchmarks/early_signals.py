"""Free signals and the plan alone as predictors, compared with the verdict: scored on the labeled runs, in seconds.

    python benchmarks/early_signals.py

- eps floor: the median over linear weights of mean |gradient| divided by Adam's eps, 1e-6 (the stored histories lack
  the root mean square, which is larger: by a factor of 1.25 for a normal distribution).
- update_per_lr: the median over linear weights of Adam's step in units of the effective learning rate.

Each signal is used as a rule "doomed once below the threshold". Its threshold is the highest one with at most 1 % false
alarms on the calibration part, and is then scored once on the held-out runs; marks from the literature and from single
runs are scored unchanged. The lead is the number of steps by which the rule precedes the verdict `collapsed`, with a
snapshot every 10 steps; negative if it follows. The last table has outcomes by peak of the planned effective rate.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from labeled_runs import Label, LabeledRun, unpack
from verdicts import verdicts

from bertmon.monitor.diagnosis import Verdict
from bertmon.monitor.history import Snapshot
from bertmon.monitor.plan_check import STUDIED_PEAKS
from bertmon.notation import format_rate

EPS = 1e-6
MAX_FALSE_ALARMS = 0.01
GRID = [round(mantissa * 10.0**exponent, 6) for exponent in range(-3, 4) for mantissa in (1, 2, 3, 5, 7)]

Signal = Callable[[LabeledRun], Iterable[tuple[int, float]]]
"""Maps a run to its watched steps, each with the signal's value."""


def of_snapshots(signal: Callable[[Snapshot], float]) -> Signal:
    """A signal computed from single snapshots."""
    return lambda run: ((shot.step, signal(shot)) for shot in run.history.snapshots)


def eps_floor(snapshot: Snapshot) -> float:
    """Median over linear weights of mean |gradient| divided by eps."""
    linear = [kind == "linear" for kind in snapshot.layers.kinds]
    return float(np.median(snapshot["grad_mean"][linear]) / EPS)


def update_per_lr(snapshot: Snapshot) -> float:
    """The snapshot's update_per_lr of linear weights; nan if it has none."""
    return snapshot.signals.get("update_per_lr/linear", np.nan)


MARKS = {"eps floor": (1.0, 0.1), "update_per_lr/linear": (0.23, 0.01)}
"""0.23 is sqrt((1 - beta1) / (1 + beta1)), the step under pure noise (Ma & Yarats 2019); 0.01 is the current rule."""

SIGNALS: dict[str, Signal] = {
    "eps floor": of_snapshots(eps_floor),
    "update_per_lr/linear": of_snapshots(update_per_lr),
}


@dataclass(frozen=True)
class SignalScore:
    """The score of a rule on some runs."""

    collapsed: int  # runs that did not learn and were flagged by the verdict that the rule is compared with
    leads: tuple[int, ...]  # of the runs among them that the rule flags
    learned: int
    false_alarms: int

    @property
    def false_alarm_share(self) -> float:
        return self.false_alarms / self.learned


def first_below(run: LabeledRun, signal: Signal, threshold: float) -> int | None:
    """The first watched step at which the signal is below the threshold."""
    return next((step for step, value in signal(run) if value < threshold), None)


def collapse_step(run: LabeledRun) -> int | None:
    """The step at which the run is called collapsed, if that is its first doomed verdict."""
    doomed = (item for item in verdicts(run.history, 10) if item[1].verdict.doomed)
    step, diagnosis = next(doomed, (None, None))
    return step if diagnosis is not None and diagnosis.verdict is Verdict.collapsed else None


def score(
    runs: Sequence[LabeledRun],
    signal: Signal,
    threshold: float,
    verdict_step: Callable[[LabeledRun], int | None] = collapse_step,
) -> SignalScore:
    """Score the rule "doomed once below the threshold" on these runs, compared with the step of a verdict."""
    learned = [run for run in runs if run.label is Label.learned]
    lost = [(run, step) for run in runs if run.label is Label.did_not_learn and (step := verdict_step(run)) is not None]
    flags = [(first_below(run, signal, threshold), step) for run, step in lost]
    return SignalScore(
        len(lost),
        tuple(step - flag for flag, step in flags if flag is not None),
        len(learned),
        sum(first_below(run, signal, threshold) is not None for run in learned),
    )


def choose_threshold(runs: Sequence[LabeledRun], signal: Signal) -> float:
    """The highest of GRID with at most 1 % false alarms."""
    learned = [run for run in runs if run.label is Label.learned]
    lowest = [np.nanmin([value for _, value in signal(run)]) for run in learned]
    allowed = [at for at in GRID if np.mean([value < at for value in lowest]) <= MAX_FALSE_ALARMS]
    return max(allowed)


def rows(runs: Sequence[LabeledRun]) -> Iterator[str]:
    """One row per signal, threshold and part."""
    parts = {
        "calibration": [run for run in runs if run.calibration],
        "held out": [run for run in runs if not run.calibration],
    }
    for name, signal in SIGNALS.items():
        thresholds = (choose_threshold(parts["calibration"], signal), *MARKS[name])
        for threshold, (part, members) in itertools.product(thresholds, parts.items()):
            result = score(members, signal, threshold)
            early = sum(lead > 0 for lead in result.leads)
            yield (
                f"| {name} < {threshold:g} | {part} | {len(result.leads)} of {result.collapsed} "
                f"| {result.false_alarms} of {result.learned} | {np.median(result.leads):+.0f} "
                f"| {early} of {result.collapsed} |"
            )


def peak_table(runs: Sequence[LabeledRun]) -> Iterator[tuple[float, float, int, int]]:
    """Bounds of the peak effective rate, the number of runs that did not learn, and the number of all runs."""
    for low, high, *_ in STUDIED_PEAKS:
        inside = [run.label for run in runs if low <= run.history.plan.effective_lr.max() < high]
        yield low, high, inside.count(Label.did_not_learn), len(inside)


def main() -> None:
    """See the module's docstring."""
    print("| rule | part | collapsed: flagged | learned: flagged | median lead, steps | before the verdict |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows(unpack())))
    print("\n| peak effective rate | did not learn |\n|---|---|")
    for low, high, lost, count in peak_table(unpack()):
        print(f"| {format_rate(low, 2)} to {format_rate(high, 2)} | {lost} of {count} |")


if __name__ == "__main__":
    main()
