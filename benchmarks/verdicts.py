"""How often the verdicts are right, and how early: scored on labeled runs, in seconds, without training.

    python benchmarks/verdicts.py                    the tables, from the stored histories
    python benchmarks/verdicts.py misses             the runs that the rules get wrong or flag in between, one per line
    python benchmarks/verdicts.py picture FILE       signals and flags of the held-out runs

The label depends only on the outcome of the full run. A run did not learn if its test accuracy is in the range of
guessing the majority class (bertmon.metrics.did_not_learn); it learned if that is at least 20 points above the majority
class. Runs in between are listed but not scored. Thresholds were set on the calibration part, settings 0 to 136 with
seed 0; all other runs are held out.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from labeled_runs import (
    ADVICE,
    BASE_STORE,
    BLIND_FROM,
    CALIBRATION_SETTINGS,
    PLATEAU,
    PRETRAINED_STORE,
    Family,
    Label,
    LabeledRun,
    label,
    smooth_loss,
    unpack,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bertmon.config import VerdictThresholds
from bertmon.monitor.diagnosis import Diagnosis, diagnose
from bertmon.monitor.history import History, Snapshot
from bertmon.monitor.plan_check import STUDIED_PEAKS
from bertmon.notation import format_percent, format_rate

# --- the rules -----------------------------------------------------------------------------------

Rule = Callable[[LabeledRun, int], int | None]
"""(run, steps between two snapshots) -> the step at which the run is first called doomed, None if never."""


def bertmon_rules(run: LabeledRun, every: int) -> int | None:
    """The verdicts of bertmon.monitor.diagnosis."""
    return next((step for step, diagnosis in verdicts(run.history, every) if diagnosis.verdict.doomed), None)


def verdicts(history: History, every: int) -> Iterator[tuple[int, Diagnosis]]:
    """The diagnosis after each snapshot, with a snapshot every `every` steps."""
    diagnosis = None
    shots = [shot for shot in history.snapshots if shot.step % every == 0]
    for number, shot in enumerate(shots, start=1):
        done = shot.step + 1
        so_far = History(history.plan, history.losses[:done], history.grad_norms[:done], shots[:number])
        diagnosis = diagnose(so_far, VerdictThresholds(), diagnosis)
        yield shot.step, diagnosis


def loss_rule(window: float) -> Rule:
    """The smoothed loss has not fallen over `window`, a share of the run's steps."""

    def rule(run: LabeledRun, every: int) -> int | None:
        smoothed, width = smooth_loss(run.history)
        lag = max(1, round(window * len(run.history.plan)))
        flat = np.flatnonzero(smoothed[lag:] >= smoothed[:-lag])
        return int(flat[0]) + lag + width - 1 if len(flat) else None

    return rule


def chance_rule(share: float) -> Rule:
    """The smoothed loss has never been below 0.95 of chance after `share` of the run."""

    def rule(run: LabeledRun, every: int) -> int | None:
        return None if run.learned_at <= share else math.ceil(share * len(run.history.plan))

    return rule


def vanishing_gradient(run: LabeledRun, every: int) -> int | None:
    """SageMaker Debugger: the mean |gradient| of any tensor is below 1e-7."""
    return _first(run, every, lambda shot: bool((shot["grad_mean"] < 1e-7).any()))


def weight_update_ratio(run: LabeledRun, every: int) -> int | None:
    """SageMaker Debugger: the update of any tensor is more than 10 or less than 1e-8 times the tensor."""
    return _first_update(
        run, every, lambda shot: bool(((shot["update_ratio"] > 10) | (shot["update_ratio"] < 1e-8)).any())
    )


def loss_not_decreasing(run: LabeledRun, every: int) -> int | None:
    """SageMaker Debugger: over 10 steps the loss has fallen by less than 0.1 %."""
    losses = np.array(run.history.losses)
    flat = np.flatnonzero(losses[10:] > losses[:-10] * (1 - 0.001))
    return int(flat[0]) + 10 if len(flat) else None


def update_ratio_off(run: LabeledRun, every: int) -> int | None:
    """The article's rule of thumb alone: the median update ratio of matrices is not within a factor of 10 of 1e-3."""

    def off(shot: Snapshot) -> bool:
        linear = [kind == "linear" for kind in shot.layers.kinds]
        return not 1e-4 <= np.median(shot["update_ratio"][linear]) <= 1e-2

    return _first_update(run, every, off)


def planned_peak(run: LabeledRun, every: int) -> int | None:
    """Known before the first step: the planned effective rate reaches the range where most small models fail."""
    return 0 if run.history.plan.effective_lr.max() >= PEAK_CLIFF else None


def _first_update(run: LabeledRun, every: int, holds: Callable[[Snapshot], bool]) -> int | None:
    """Like _first, without steps whose learning rate is 0, such as the first of a warm-up: they update nothing."""
    return _first(run, every, lambda shot: shot.effective_lr > 0 and holds(shot))


def _first(run: LabeledRun, every: int, holds: Callable[[Snapshot], bool]) -> int | None:
    return next((shot.step for shot in run.history.snapshots if shot.step % every == 0 and holds(shot)), None)


PEAK_CLIFF = next(low for low, _, lost, count in STUDIED_PEAKS if low > 0 and lost > count / 2)
"""The lowest peak effective rate from which more than half of the small models did not learn."""

# --- the table -----------------------------------------------------------------------------------

RULES: dict[str, Rule] = {
    "bertmon": bertmon_rules,
    "loss no lower than 5 % of the run before": loss_rule(0.05),
    "loss no lower than 10 % of the run before": loss_rule(0.1),
    "loss no lower than 20 % of the run before": loss_rule(0.2),
    "loss still at chance after 30 % of the run": chance_rule(0.3),
    "loss still at chance after 60 % of the run": chance_rule(0.6),
    "SageMaker VanishingGradient": vanishing_gradient,
    "SageMaker WeightUpdateRatio": weight_update_ratio,
    "SageMaker LossNotDecreasing": loss_not_decreasing,
    "update ratio within a factor of 10 of 1e-3": update_ratio_off,
    f"planned peak effective rate of {format_rate(PEAK_CLIFF, 2)} or more": planned_peak,
}


def print_scores(runs: list[LabeledRun], every: int) -> None:
    """One row per rule. The lead is the number of steps by which bertmon flags the same run before the rule."""
    by_label = {label: [run for run in runs if run.label == label] for label in Label}
    lost = by_label[Label.did_not_learn]
    own_flags = [bertmon_rules(run, every) for run in lost]
    print("| rule | did not learn: flagged | learned: flagged | between | median flag | median lead, steps |")
    print("|---|---|---|---|---|---|")
    for name, rule in RULES.items():
        steps = [rule(run, every) for run in lost]
        flags = [step / len(run.history.plan) for step, run in zip(steps, lost, strict=True) if step is not None]
        leads = [step - own for step, own in zip(steps, own_flags, strict=True) if None not in (step, own)]
        alarms, between = (
            [rule(run, every) is not None for run in by_label[label]] for label in (Label.learned, Label.between)
        )
        print(
            f"| {name} | {_share(len(flags), len(lost))} | {_share(sum(alarms), len(alarms))} "
            f"| {sum(between)} of {len(between)} "
            f"| {format_percent(float(np.median(flags))) if flags else ''} "
            f"| {f'{np.median(leads):+.0f}' if leads and rule is not bertmon_rules else ''} |"
        )


def _share(count: int, total: int) -> str:
    return f"{count} of {total} ({format_percent(count / total)})" if total else "none"


def print_advice(runs: list[LabeledRun]) -> None:
    """Outcomes of runs that did not learn and were trained again as their verdict advised, or with another seed."""
    outcomes: dict[tuple[str, str], list[Label]] = {}
    by_setting: dict[int, list[Label]] = {}
    for run in json.loads(ADVICE.read_text()):
        outcome = label(run["accuracy"], run["majority"], run["test_texts"])
        outcomes.setdefault((run["verdict"], run["advice"].split("=")[0]), []).append(outcome)
        by_setting.setdefault(run["setting"], []).append(outcome)
    failed = {run.setting for run in runs if run.calibration and run.label is Label.did_not_learn}
    control = [run.label for run in runs if run.setting in failed and not run.calibration]
    order = (Label.learned, Label.between, Label.did_not_learn)
    print(f"| verdict | advice | tried | {' | '.join(order)} |")
    print("|---|---|---|---|---|---|")
    for (verdict, key), labels in sorted(outcomes.items()):
        print(f"| {verdict} | `{key}` | {len(labels)} | {' | '.join(str(labels.count(each)) for each in order)} |")
    print(f"| | none, but another seed | {len(control)} | {' | '.join(str(control.count(each)) for each in order)} |")
    saved = sum(Label.learned in labels for labels in by_setting.values())
    print(f"\n{saved} of {len(by_setting)} runs learned with at least one remedy")


def misses(runs: list[LabeledRun], every: int) -> None:
    """The runs that the rules get wrong, and flagged ones that ended in between, one per line."""
    for run in runs:
        flag = bertmon_rules(run, every)
        if (run.label == Label.did_not_learn) is (flag is None):
            print(f"{run.setting}/{run.seed} {run.label} {run.accuracy:.1%}, flagged at {flag}: {run.overrides}")


# --- the picture ---------------------------------------------------------------------------------

COLORS = {Label.learned: "#0072B2", Label.did_not_learn: "#D55E00"}
DRAWN_RULES: dict[str, tuple[Rule, int, str, str]] = {
    "bertmon, every 10 steps": (bertmon_rules, 10, "#0072B2", "-"),
    "bertmon, every 30 steps": (bertmon_rules, 30, "#56B4E9", "-"),
    "SageMaker VanishingGradient": (vanishing_gradient, 10, "#E69F00", "--"),
    "loss still at chance after 60 %": (chance_rule(0.6), 10, "#777777", "-."),
}
"""Each with the steps between two snapshots, its color and its line style."""


def picture(runs: list[LabeledRun], path: Path) -> None:
    """Over the run: the spread of the logits (left), and the share of runs that did not learn flagged (right)."""
    figure = Figure(figsize=(10.5, 4), dpi=100)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_logits(left, runs)
    _draw_flags(right, runs)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#D5D7DB", linewidth=0.5)
        axes.set_axisbelow(True)
    figure.tight_layout(w_pad=2.5)
    figure.savefig(path)


def _draw_logits(axes: Axes, runs: list[LabeledRun]) -> None:
    for name, color in COLORS.items():
        for run in runs:
            if run.label == name:
                shots = run.history.snapshots
                percent = [100 * shot.step / len(run.history.plan) for shot in shots]
                axes.plot(percent, [shot.logit_std for shot in shots], color=color, linewidth=0.7, alpha=0.45)
    axes.axhline(VerdictThresholds().min_logit_std, color="#222222", linewidth=1, linestyle=(0, (4, 3)))
    axes.set(
        yscale="log",
        ylim=(1e-10, 10),
        xlim=(0, 100),
        xlabel="steps [% of the run]",
        ylabel="standard deviation of the logits",
    )
    lines = [Line2D([], [], color=color, label=name) for name, color in COLORS.items()]
    lines.append(Line2D([], [], color="#222222", linewidth=1, linestyle=(0, (4, 3)), label="threshold"))
    axes.legend(handles=lines, loc="lower right", fontsize=8.5, frameon=False, ncols=3)
    axes.set_title("What the logits say", fontsize=11, loc="left")


def _draw_flags(axes: Axes, runs: list[LabeledRun]) -> None:
    lost = [run for run in runs if run.label == Label.did_not_learn]
    learned = [run for run in runs if run.label == Label.learned]
    for name, (rule, every, color, style) in DRAWN_RULES.items():
        flags = sorted(100 * step / len(run.history.plan) for run in lost if (step := rule(run, every)) is not None)
        heights = 100 * np.arange(len(flags) + 1) / len(lost)
        alarms = np.mean([rule(run, every) is not None for run in learned])
        text = f"{name} ({alarms:.0%} false alarms)"
        axes.step([0, *flags, 100], [*heights, heights[-1]], where="post", color=color, linestyle=style, label=text)
    axes.set(xlim=(0, 100), ylim=(0, 103), xlabel="steps [% of the run]", ylabel="runs that did not learn, flagged [%]")
    axes.legend(loc="lower right", fontsize=8.5, facecolor="white", edgecolor="none", framealpha=1)
    axes.set_title("When it is known", fontsize=11, loc="left")


def parts(runs: list[LabeledRun]) -> dict[str, list[LabeledRun]]:
    """The parts of the study that are scored separately."""
    held_out = [run for run in runs if not run.calibration]
    new_seeds = [run for run in held_out if run.setting < CALIBRATION_SETTINGS]
    return {
        "calibration": [run for run in runs if run.calibration],
        "held out": held_out,
        "held out, new seed of known settings": new_seeds,
        "held out, settings 137 to 196": [run for run in runs if CALIBRATION_SETTINGS <= run.setting < BLIND_FROM],
        "held out, settings 197 to 236": [run for run in runs if run.setting >= BLIND_FROM],
    }


def family_parts(runs: list[LabeledRun]) -> dict[str, list[LabeledRun]]:
    """The separately scored parts of the later studies, on pretrained weights, wide models and BERT-base."""
    parts = {}
    for family in (Family.pretrained, Family.wide, Family.base):
        for part in ("calibration", "blind"):
            chosen = [run for run in runs if run.family is family and run.complete and getattr(run, part)]
            if chosen:
                parts[f"{family}, {part}"] = chosen
    return parts


def print_part(name: str, runs: list[LabeledRun], every: int) -> None:
    """One table with its heading."""
    print(f"\n{name}, a snapshot every {every} steps\n")
    print_scores(runs, every)


def print_all(runs: list[LabeledRun]) -> None:
    """All tables of the first study."""
    late = sum(run.label == Label.learned and run.plateau > PLATEAU for run in runs)
    plateau = f"{late} learned after a plateau of more than {PLATEAU:.0%} of the steps"
    print(f"{len(runs)} runs: {count_labels(runs)}; {plateau}")
    for every in (30, 10):
        for name, part in parts(runs).items():
            print_part(name, part, every)
    print("\nRuns of seed 0 that did not learn, trained again as advised\n")
    print_advice(runs)


def print_families(runs: list[LabeledRun]) -> None:
    """All tables of the study on pretrained weights and wide models."""
    parts = family_parts(runs)
    print("\n| runs | did not learn | learned | between |\n|---|---|---|---|")
    for name, part in parts.items():
        counts = [sum(run.label == label for run in part) for label in Label]
        print(f"| {name}: {len(part)} | {' | '.join(map(str, counts))} |")
    for every in (10, 30):
        print(f"\nA snapshot every {every} steps\n")
        print("| | did not learn: flagged | of these, logits shrank | learned: flagged | between | median flag |")
        print("|---|---|---|---|---|---|")
        for name, part in parts.items():
            print(summary_row(name, part, every))
        print(f"\nSageMaker VanishingGradient on the same runs, a snapshot every {every} steps\n")
        print("| | did not learn: flagged | of these, logits shrank | learned: flagged | between | median flag |")
        print("|---|---|---|---|---|---|")
        for name, part in parts.items():
            print(summary_row(name, part, every, vanishing_gradient))
    for name, part in parts.items():
        for every in (10, 30):
            print_part(name, part, every)


def summary_row(name: str, runs: list[LabeledRun], every: int, rule: Rule = bertmon_rules) -> str:
    """A rule's flags on some runs; those that did not learn are also counted by whether their logits shrank."""
    flags = {label: [(run, rule(run, every)) for run in runs if run.label == label] for label in Label}
    lost = flags[Label.did_not_learn]
    shares = [step / len(run.history.plan) for run, step in lost if step is not None]
    shrank = [step is not None for run, step in lost if run.logits_shrank]
    alarms, between = ([step is not None for _, step in flags[label]] for label in (Label.learned, Label.between))
    return (
        f"| {name} | {_share(len(shares), len(lost))} | {sum(shrank)} of {len(shrank)} "
        f"| {_share(sum(alarms), len(alarms))} | {sum(between)} of {len(between)} "
        f"| {format_percent(float(np.median(shares))) if shares else ''} |"
    )


def count_labels(runs: list[LabeledRun]) -> str:
    """The number of runs with each label, as text."""
    return ", ".join(f"{sum(run.label == label for run in runs)} {label}" for label in Label)


def later_runs() -> list[LabeledRun]:
    """The runs of pretrained_grid.py and bert_base.py."""
    return [*unpack(PRETRAINED_STORE), *unpack(BASE_STORE)]


def main(arguments: list[str]) -> None:
    """See the module's docstring."""
    runs = unpack()
    match arguments:
        case ["misses"]:
            misses([*runs, *later_runs()], every=30)
        case ["picture", path]:
            picture([run for run in runs if not run.calibration], Path(path))
        case []:
            print_all(runs)
            print_families(later_runs())
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
