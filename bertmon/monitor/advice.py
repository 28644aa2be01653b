"""The likely cause of a doomed verdict and what to change, from the learning rates of the run's plan. Pure.

The limit on the peak effective learning rate comes from the study of small models in docs/article.md: below 1e-3, 1 of
102 runs did not learn; above 1.9e-3, 69 of 72. A smaller beta2 of 0.99 lowers the peak too but is not advised: 2 of 5
runs with it did not learn, compared with none with a longer warm-up or bias correction.
"""

import re
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from bertmon.monitor.history import RunPlan, Snapshot
from bertmon.schedule import warmup_steps

_SAFE_PEAK = 1e-3
"""The largest peak effective learning rate that is advised."""
_HARMLESS_RATE = 1e-6
"""A divergence at smaller rates, early in a warm-up, has another cause, such as the inputs or unscaled float16."""
LONG_WARMUP = 0.7
"""The warm-up that is advised, as a share of the steps."""


@dataclass(frozen=True, slots=True)
class SettingNames:
    """How advice refers to the settings of a run: format strings with {value}, and with {steps} for the warm-up.

    warmup is None if no setting can lengthen the warm-up.
    """

    lr: str
    warmup: str | None
    bias_correction: str


CONFIG_KEYS = SettingNames(
    "optimizer.lr={value}",
    "schedule.warmup_frac={value:g}",
    "optimizer.bias_correction=true",
)
"""The keys of bertmon's own config."""

OWN_LOOP = SettingNames(
    "a learning rate of {value}",
    "a warm-up of {steps} steps",
    "an optimizer with bias correction, such as torch's AdamW",
)
"""For an optimizer and scheduler outside bertmon."""


class Explanation(TypedDict):
    """Fields of a Diagnosis."""

    cause: str | None
    advice: str | None


_UNEXPLAINED = Explanation(cause=None, advice=None)


def explain_divergence(plan: RunPlan, step: int, setting_names: SettingNames) -> Explanation:
    """The largest effective rate before `step` was too large; advises a tenth of it, or _SAFE_PEAK if smaller."""
    largest = float(plan.effective_lr[:step].max(initial=0.0))
    if largest < _HARMLESS_RATE:
        return _UNEXPLAINED
    return {"cause": _too_large(largest), "advice": _lower_lr(plan, largest / 10, setting_names)}


def explain_collapse(plan: RunPlan, step: int, setting_names: SettingNames) -> Explanation:
    """The largest effective rate before `step` was too large; advises changes that at least halve it."""
    if not plan.effective_lr[:step].any():
        return _UNEXPLAINED  # no weight has moved yet
    peak = int(plan.effective_lr[:step].argmax())
    largest, nominal = float(plan.effective_lr[peak]), float(plan.lr.max())
    boosts = np.divide(plan.effective_lr, plan.lr, out=np.ones(len(plan)), where=plan.lr > 0)
    remedies = {}
    if setting_names.warmup and plan.warmup_frac < LONG_WARMUP:
        long_warmup = warmup_steps(LONG_WARMUP, len(plan))
        ramp = np.minimum(np.arange(len(plan)) / long_warmup, 1.0)
        remedies[setting_names.warmup.format(value=LONG_WARMUP, steps=long_warmup)] = nominal * (ramp * boosts).max()
    if not plan.bias_correction:
        remedies[setting_names.bias_correction] = nominal
    sufficient = [change for change, rate in remedies.items() if rate < largest / 2]
    cause = (
        f"an effective learning rate of {format_number(largest)} at step {peak}, {boosts[peak]:.1f}x the nominal rate "
        f"of that step (no bias correction, warm-up {plan.warmup_frac:g})"
        if boosts[peak] > 1.5
        else f"a learning rate of {format_number(largest)} at step {peak} is too large for this model"
    )
    return {"cause": cause, "advice": " or ".join(sufficient or [_lower_lr(plan, largest / 3, setting_names)])}


def explain_not_learning(plan: RunPlan, shots: list[Snapshot], setting_names: SettingNames) -> Explanation:
    """The rate is too small or too large if all steps together move the weights by little or much of their size.

    No explanation for a movement in between.
    """
    linear = [kind == "linear" for kind in shots[0].layers.kinds]
    per_lr = [shot.signals["update_per_lr/linear"] for shot in shots if "update_per_lr/linear" in shot.signals]
    if not any(linear) or not per_lr:
        return _UNEXPLAINED
    size = np.nanmedian(shots[0]["weight_rms"][linear])
    movement = float(np.median(per_lr) * plan.effective_lr.sum() / size)
    peak = float(plan.lr.max())
    if not movement > 0:
        return _UNEXPLAINED  # most steps were too small for the weights' precision, or were not measured
    if movement < 1:
        cause = (
            f"a learning rate of {format_number(peak)} is too small: "
            f"all {len(plan)} steps together change the weights by {100 * movement:.2g} %"
        )
        larger = setting_names.lr.format(value=format_number(peak / movement))
        return {"cause": cause, "advice": f"{larger} or more steps" if peak / movement <= _SAFE_PEAK else "more steps"}
    if movement > 3:
        highest = float(plan.effective_lr.max())
        return {"cause": _too_large(highest), "advice": _lower_lr(plan, highest / 3, setting_names)}
    return _UNEXPLAINED


def _too_large(rate: float) -> str:
    cause = f"a learning rate of {format_number(rate)} is too large"
    if rate / 10 <= _SAFE_PEAK:
        return cause
    return (
        f"{cause}: small models learn at peak effective rates up to about {format_number(_SAFE_PEAK)} (docs/article.md)"
    )


def _lower_lr(plan: RunPlan, peak: float, setting_names: SettingNames) -> str:
    """Advises the nominal rate with which the plan peaks at an effective rate of `peak`, or _SAFE_PEAK if smaller."""
    lr = plan.lr.max() * min(peak, _SAFE_PEAK) / plan.effective_lr.max()
    return setting_names.lr.format(value=format_number(float(lr)))


def format_number(value: float) -> str:
    """The number with two significant digits, in a notation that is easy to type."""
    if not value or 0.01 <= value < 1000:
        return f"{value:.2g}"
    return re.sub(
        r"e([+-])0*(\d)", lambda match: f"e{match[1].strip('+')}{match[2]}", f"{value:.1e}".replace(".0e", "e")
    )
