"""Do the rate margin and the token spread warn of a run that will not learn, earlier than the verdict does?

    python benchmarks/warning_signals.py         the scores, from the stored signals of pretrained_grid.py
    python benchmarks/warning_signals.py cost    what one measurement costs, in steps of training

recorded_signals.py defines them. Each is used as a rule "doomed once below the threshold". Its threshold is the highest
one with at most 1 % false alarms on the calibration part, and is then scored once on the blind part. The lead is the
number of steps by which the rule precedes the first doomed verdict, both with a snapshot every 10 steps; negative if it
follows.
"""

import itertools
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
from early_signals import MAX_FALSE_ALARMS, Signal, score
from environment import compose_config, describe
from labeled_runs import PRETRAINED_STORE, Label, LabeledRun, unpack
from recorded_signals import RateMargin, Signals, token_spreads, unpack_signals
from verdicts import bertmon_rules

from bertmon.data.batches import Batch
from bertmon.training.step import GuardedUpdate, forward_backward, resolve_device
from bertmon.training.task import Task, build_task

EVERY = 10
MARKS = {"rate margin": [2.0], "token spread, last layer": [0.005]}
"""Always scored. The token spread of a BERT-base on a plateau that ended fell to 0.016; 0.005 is well below that."""

THRESHOLDS = {
    "rate margin": [2.0**power for power in range(-4, 6)],
    "token spread": [0.001, 0.002, 0.005, *np.round(np.arange(0.01, 1.0, 0.01), 2)],
}


def series(rows: Sequence[Signals]) -> dict[str, list[tuple[int, float]]]:
    """Each signal's values every EVERY steps, by its name."""
    rows = [row for row in rows if row.step % EVERY == 0]
    return {
        "rate margin": [(row.step, row.rate_margin) for row in rows],
        "token spread, last layer": [(row.step, row.token_spread[-1]) for row in rows],
        "token spread, smallest of all layers": [(row.step, min(row.token_spread)) for row in rows],
        "token spread, last layer, over that of step 0": [
            (row.step, row.token_spread[-1] / rows[0].token_spread[-1]) for row in rows
        ],
    }


def signals(recorded: dict[int, list[Signals]]) -> dict[str, Signal]:
    """The signals in the table, by name."""
    by_setting = {setting: series(rows) for setting, rows in recorded.items()}
    names = next(iter(by_setting.values()))
    return {name: lambda run, name=name: by_setting[run.setting][name] for name in names}


def choose_threshold(runs: Sequence[LabeledRun], name: str, signal: Signal) -> float:
    """The highest one with at most 1 % false alarms; 0 if there is none."""
    lowest = [min(value for _, value in signal(run)) for run in runs if run.label is Label.learned]
    grid = THRESHOLDS[name.split(",")[0]]
    return max((at for at in grid if np.mean([value < at for value in lowest]) <= MAX_FALSE_ALARMS), default=0.0)


def verdict_step(run: LabeledRun) -> int | None:
    """The step of the first doomed verdict."""
    return bertmon_rules(run, EVERY)


def rows(runs: Sequence[LabeledRun], recorded: dict[int, list[Signals]]) -> Iterator[str]:
    """One row per signal, threshold and part."""
    parts = {name: [run for run in runs if getattr(run, name)] for name in ("calibration", "blind")}
    for name, signal in signals(recorded).items():
        thresholds = [choose_threshold(parts["calibration"], name, signal), *MARKS.get(name, [])]
        for threshold, (part, members) in itertools.product(thresholds, parts.items()):
            result = score(members, signal, threshold, verdict_step)
            early = sum(lead > 0 for lead in result.leads)
            lead = f"{np.median(result.leads):+.0f}" if result.leads else ""
            yield (
                f"| {name} < {threshold:g} | {part} | {len(result.leads)} of {result.collapsed} "
                f"| {result.false_alarms} of {result.learned} | {lead} | {early} of {result.collapsed} |"
            )


# --- what they cost --------------------------------------------------------------------------------


def cost(overrides: Sequence[str], repeats: int = 10) -> Iterator[str]:
    """CPU seconds of a step, and of one measurement of each signal as a share of it."""
    config = compose_config(overrides)
    task = build_task(config, resolve_device(config.device))
    update = GuardedUpdate(task.classifier, task.optimizer, config.train.max_grad_norm)
    timed: dict[str, list[float]] = {"step": [], "rate margin": [], "token spread": []}
    for batch in itertools.islice(task.train.epoch_batches(0, 0), repeats):
        for name, seconds in _measure(task, update, batch).items():
            timed[name].append(seconds)
    medians = {name: float(np.median(seconds)) for name, seconds in timed.items()}
    yield f"a step: {medians['step']:.3f} CPU seconds; {describe()}"
    for name in ("rate margin", "token spread"):
        share = medians[name] / medians["step"]
        yield f"{name}: {share:.0%} of a step; {share / 30:.1%} of a run that is watched every 30 steps"


def _measure(task: Task, update: GuardedUpdate, batch: Batch) -> dict[str, float]:
    """CPU seconds of one step and of both signals around it."""
    began = time.process_time()
    token_spreads(task.classifier, batch)
    spread_read = time.process_time()
    trial = RateMargin(task.classifier, batch)
    prepared = time.process_time()
    loss, _ = forward_backward(task.classifier, [batch], "fp32")
    update.update(loss, 1e-4)
    stepped = time.process_time()
    trial.measure()
    ended = time.process_time()
    margin = ended - stepped + prepared - spread_read
    return {"step": stepped - prepared, "rate margin": margin, "token spread": spread_read - began}


def main(arguments: Sequence[str]) -> None:
    """See the module's docstring."""
    match arguments:
        case []:
            print("| rule | part | flagged | learned: flagged | median lead, steps | before the verdict |")
            print("|---|---|---|---|---|---|")
            print("\n".join(rows(unpack(PRETRAINED_STORE), unpack_signals())))
        case ["cost", *overrides]:
            print("\n".join(cost(["experiment=quickstart", "device=cpu", *overrides])))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
