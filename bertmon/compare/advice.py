"""What to try next after a sweep: changes that failed in it are not proposed, settings that worked are named.

A run collapses because its effective learning rate is too large; every remedy here lowers its peak.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bertmon.compare.results import RunSummary, Setting, Sweep, short_names
from bertmon.config import MAX_INT
from bertmon.monitor.advice import LONG_WARMUP
from bertmon.monitor.diagnosis import Verdict
from bertmon.notation import format_rate, format_value
from bertmon.schedule import bias_correction_gain, warmup_steps

_MAX_STEPS = 4000  # at which the gain of a missing bias correction is computed


@dataclass(frozen=True, slots=True)
class Remedy:
    """A config value to change, and the peak effective learning rate that the run would then have."""

    key: str
    value: Any
    peak: float

    def __str__(self) -> str:
        return f"{self.key}={format_value(self.value)} (peak effective rate {format_rate(self.peak)})"


def advise(sweep: Sweep, setting: Setting, *, brief: bool = False) -> str:
    """A sentence or two for a setting with runs that did not learn; empty if there is no advice.

    brief: if another setting worked, leave out remedies that have not been tried.
    """
    flagged = [run for run in setting.runs_not_learned if run.flagged_step is not None]
    if not flagged:
        return _advise_on_imbalance(setting)
    sentences = []
    if worked := _nearest_that_worked(sweep, setting):
        sentences.append(_worked_sentence(sweep, setting, worked))
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
    """Class weights or more steps for rare classes; tested on a MiniLM with nine texts in ten of one class."""
    runs = setting.runs_not_learned
    if not runs or not all(run.constant_prediction and run.has_rare_classes for run in runs):
        return ""
    weighted = runs[0].values.get("train.class_weights") is not None
    return "Try more steps." if weighted else "Try train.class_weights=balanced or more steps."


def remedies(run: RunSummary) -> list[Remedy]:
    """Single changes that at least halve the run's peak effective rate; a smaller rate if no other does."""
    values, steps = run.values, run.result.total_steps if run.result else None
    if not values or not steps or steps > MAX_INT or math.isnan(run.peak_effective_lr):
        return []
    lowered = [remedy for remedy in _remedies(run, steps) if remedy.peak < run.peak_effective_lr / 2]
    if not lowered:
        lr = _smaller_rate(run)
        lowered = [Remedy("optimizer.lr", lr, run.peak_effective_lr * lr / values["optimizer.lr"])]
    return lowered


def _smaller_rate(run: RunSummary) -> float:
    """The rate that the run's own verdict advises, as its log shows it; without one, a third of its rate."""
    diagnosis = run.result.diagnosis if run.result else None
    advised = re.fullmatch(r"optimizer\.lr=(\d[\d.e-]*)", (diagnosis and diagnosis.advice) or "")
    lr: float = run.values["optimizer.lr"]
    return float(advised[1]) if advised and float(advised[1]) < lr else float(f"{lr / 3:.1g}")


def _remedies(run: RunSummary, total_steps: int) -> Iterator[Remedy]:
    fits = LONG_WARMUP + (run.values["schedule.decay_frac"] or 0.0) <= 1
    if fits and not run.values["schedule.function"]:  # a custom function can ignore the warm-up
        steps = warmup_steps(LONG_WARMUP, total_steps)
        in_steps = run.values["schedule.warmup_steps"] is not None
        key, value = ("warmup_steps", steps) if in_steps else ("warmup_frac", LONG_WARMUP)
        yield Remedy(f"schedule.{key}", value, run.peak_lr * _peak_factor(run.values, steps, total_steps))
    if not run.values["optimizer.bias_correction"]:
        yield Remedy("optimizer.bias_correction", True, run.peak_lr)


def _peak_factor(values: Mapping[str, Any], warmup: int, total_steps: int) -> float:
    """Peak effective rate over peak nominal rate, for a warm-up of `warmup` steps and a decay never above the peak.

    Exact if the gain of a missing bias correction falls after the warm-up, as it does after a few tens of steps.
    """
    if values["optimizer.bias_correction"]:
        return 1.0
    betas = {"beta1": values["optimizer.beta1"], "beta2": values["optimizer.beta2"]}
    stride = max(1, total_steps // _MAX_STEPS)
    return max(
        min(step / max(warmup, 1), 1.0) * bias_correction_gain(step, **betas) for step in range(0, warmup + 1, stride)
    )


def _nearest_that_worked(sweep: Sweep, setting: Setting) -> Setting | None:
    """The setting that differs by the fewest keys, then the best, among those whose runs all learned."""
    worked = [other for other in sweep.settings if other.ended and not other.runs_not_learned and other.values]
    if not setting.values or not worked:
        return None
    return min(worked, key=lambda other: (len(_changes(setting, other)), -other.sort_key()))


def _changes(setting: Setting, other: Setting) -> list[str]:
    return [key for key in other.values if other.values[key] != setting.values.get(key)]


def _worked_sentence(sweep: Sweep, setting: Setting, worked: Setting) -> str:
    changes = _changes(setting, worked)
    short = short_names(worked.values)
    change = ", ".join(f"{short[key]}={sweep.label(key, worked.values[key])}" for key in changes) or worked.name
    n = len(worked.ended)
    text = f"With {change} {('the run', 'both runs')[n - 1] if n < 3 else f'all {n} runs'} learned"
    own_peak, worked_peak = format_rate(setting.peak_effective_lr), format_rate(worked.peak_effective_lr)
    if own_peak != worked_peak and "nan" not in (own_peak, worked_peak):
        text += f" (peak effective rate {worked_peak} instead of {own_peak})"
    return f"{text}."


def _was_tried(sweep: Sweep, setting: Setting, remedy: Remedy) -> bool:
    """Whether the sweep has a setting with the remedy's value that is otherwise identical."""
    (run, *_) = setting.runs_not_learned
    changed = {**run.values, remedy.key: remedy.value}
    return any(other.ended and other.ended[0].values == changed for other in sweep.settings)


def _most_common_advice(runs: Sequence[RunSummary]) -> str:
    advice = [run.result.diagnosis.advice for run in runs if run.result and run.result.diagnosis]
    texts = [text for text in advice if text]
    return max(texts, key=texts.count, default="")


def _contradicted(sweep: Sweep, advice: str) -> bool:
    """Whether a setting of the sweep already has the advised value, but not all of its runs learned."""
    key, _, value = advice.partition(" or ")[0].partition("=")
    tried = [other for other in sweep.settings if format_value(other.values.get(key)) == value]
    return any(other.runs_not_learned for other in tried)
