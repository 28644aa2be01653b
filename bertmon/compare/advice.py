"""What to try next, from what a sweep tried: what failed in it is not proposed, what worked is named. Pure.

A run that collapses has met too large an effective learning rate; every remedy here lowers its peak.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bertmon.compare.results import RunSummary, Setting, Sweep, short_names
from bertmon.config import MAX_INT
from bertmon.monitor.diagnosis import Verdict
from bertmon.notation import format_rate, format_value
from bertmon.schedule import lr_factor

_REMEDIES: tuple[tuple[str, Any], ...] = (
    ("schedule.warmup_frac", 0.7),
    ("optimizer.bias_correction", True),
)
_MAX_STEPS = 4000  # at which a plan is computed


@dataclass(frozen=True, slots=True)
class Remedy:
    """One config value to change, and the peak effective learning rate that the run would have then."""

    key: str
    value: Any
    peak: float

    def __str__(self) -> str:
        return f"{self.key}={format_value(self.value)} (peak effective rate {format_rate(self.peak)})"


def advise(sweep: Sweep, setting: Setting, *, brief: bool = False) -> str:
    """A sentence or two for a setting whose runs did not learn; empty where there is nothing to say.

    brief: where something worked, leave out what has not been tried.
    """
    flagged = [run for run in setting.did_not_learn if run.flagged_step is not None]
    if not flagged:
        return _advise_on_imbalance(setting)
    sentences = []
    if worked := _nearest_that_worked(sweep, setting):
        sentences.append(_named(sweep, setting, worked))
    if flagged[0].verdict in (Verdict.collapsed, Verdict.diverged):
        untried = [remedy for remedy in remedies(flagged[0]) if not _was_tried(sweep, setting, remedy)]
        if untried and not worked:
            sentences.append(f"Try {' or '.join(map(str, untried))}.")
        elif untried and not brief:
            sentences.append(f"Not tried: {', '.join(map(str, untried))}.")
    elif not worked and (advice := _most_common_advice(flagged)) and not _contradicted(sweep, advice):
        sentences.append(f"Try {advice}.")
    return " ".join(sentences)


def _advise_on_imbalance(setting: Setting) -> str:
    """Weights of the rare classes, or time for them; tried on a MiniLM with nine texts in ten of one class."""
    runs = setting.did_not_learn
    if not runs or not all(run.constant_prediction and run.has_rare_classes for run in runs):
        return ""
    weighted = runs[0].values.get("train.class_weights") is not None
    return "Try more steps." if weighted else "Try train.class_weights=balanced or more steps."


def remedies(run: RunSummary) -> list[Remedy]:
    """Single changes that at least halve the run's peak effective rate; a smaller rate if no other does."""
    values, steps = run.values, run.result.total_steps if run.result else None
    if not steps or steps > MAX_INT or not _is_adam(values):
        return []
    peak = peak_effective_lr(values, steps)
    lowered = [Remedy(key, value, peak_effective_lr({**values, key: value}, steps)) for key, value in _REMEDIES]
    lowered = [remedy for remedy in lowered if remedy.peak < peak / 2 and values.get(remedy.key) != remedy.value]
    if not lowered:
        lr = float(f"{values['optimizer.lr'] / 3:.1g}")
        lowered = [Remedy("optimizer.lr", lr, peak_effective_lr({**values, "optimizer.lr": lr}, steps))]
    return lowered


def peak_effective_lr(values: Mapping[str, Any], total_steps: int) -> float:
    """Largest learning rate of a plan, times what missing bias correction multiplies it by.

    values: a config by dotted key.
    """
    every = max(1, total_steps // _MAX_STEPS)
    schedule = {"decay": values["schedule.decay"], "warmup_frac": values["schedule.warmup_frac"]}
    factors = (
        lr_factor(step, **schedule, total_steps=total_steps) * _gain(values, step + 1)
        for step in range(0, total_steps, every)
    )
    return float(values["optimizer.lr"]) * max(factors)


def _gain(values: Mapping[str, Any], t: int) -> float:
    """(1 - beta1^t) / sqrt(1 - beta2^t) at the t-th step without bias correction."""
    if values["optimizer.bias_correction"]:
        return 1.0
    return float((1 - values["optimizer.beta1"] ** t) / math.sqrt(1 - values["optimizer.beta2"] ** t))


def _is_adam(values: Mapping[str, Any]) -> bool:
    keys = ("lr", "bias_correction", "beta1", "beta2")
    return all(f"optimizer.{key}" in values for key in keys) and "schedule.decay" in values


def _nearest_that_worked(sweep: Sweep, setting: Setting) -> Setting | None:
    """Of the settings all of whose runs learned, the one that differs by the fewest keys, then the best."""
    worked = [other for other in sweep.settings if other.ended and not other.did_not_learn and other.values]
    if not setting.values or not worked:
        return None
    return min(worked, key=lambda other: (len(_changes(setting, other)), -other.sort_key()))


def _changes(setting: Setting, other: Setting) -> list[str]:
    return [key for key in other.values if other.values[key] != setting.values.get(key)]


def _named(sweep: Sweep, setting: Setting, worked: Setting) -> str:
    changes = _changes(setting, worked)
    short = short_names(worked.values)
    change = ", ".join(f"{short[key]}={sweep.label(key, worked.values[key])}" for key in changes) or worked.name
    n = len(worked.ended)
    text = f"With {change} {('the run', 'both runs')[n - 1] if n < 3 else f'all {n} runs'} learned"
    here, there = format_rate(setting.peak_effective_lr), format_rate(worked.peak_effective_lr)
    if here != there and "nan" not in (here, there):
        text += f" (peak effective rate {there} in place of {here})"
    return f"{text}."


def _was_tried(sweep: Sweep, setting: Setting, remedy: Remedy) -> bool:
    """Whether a setting of the sweep has the remedy's value and is otherwise that one."""
    (run, *_) = setting.did_not_learn
    wanted = {**run.values, remedy.key: remedy.value}
    return any(other.ended and other.ended[0].values == wanted for other in sweep.settings)


def _most_common_advice(runs: Sequence[RunSummary]) -> str:
    advice = [run.result.diagnosis.advice for run in runs if run.result and run.result.diagnosis]
    texts = [text for text in advice if text]
    return max(texts, key=texts.count, default="")


def _contradicted(sweep: Sweep, advice: str) -> bool:
    """Whether a setting of the sweep already has the value that is advised, and did not learn."""
    key, _, value = advice.partition(" or ")[0].partition("=")
    tried = [other for other in sweep.settings if format_value(other.values.get(key)) == value]
    return any(other.did_not_learn for other in tried)
