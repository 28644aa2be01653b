"""The rules: a History so far -> a verdict in words. Pure, numpy only; when to ask is up to monitor.

How often the rules are right is measured on labeled runs: benchmarks/verdicts.py.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from bertmon.config import VerdictThresholds
from bertmon.monitor import advice
from bertmon.monitor.advice import CONFIG_KEYS, SettingNames, format_number
from bertmon.monitor.history import History, RunPlan, Snapshot


class Verdict(StrEnum):
    """The state of a run. The last three are doomed: the run is not expected to learn any more."""

    undecided = "undecided"  # it has not shown anything yet
    healthy = "healthy"  # its loss is clearly below chance
    slow = "slow"
    collapsed = "collapsed"
    diverged = "diverged"
    not_learning = "not learning"

    @property
    def doomed(self) -> bool:
        return self in (Verdict.collapsed, Verdict.diverged, Verdict.not_learning)


_RENAMED_SIGNALS = {"depth_profile": "depth_ratio", "logit_spread": "logit_std"}
"""Signals as version 0.1 named them."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One observation that a verdict rests on: `value` of `signal` at `step`, beyond `threshold`."""

    signal: str  # the tag that it has in TensorBoard
    layer: str | None
    value: float
    threshold: float
    step: int
    text: str

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of dataclasses.asdict, through JSON (null for nan and infinity), and as version 0.1 wrote it."""
        layer, value, threshold = fields["layer"], fields["value"], fields["threshold"]
        return cls(
            signal=_RENAMED_SIGNALS.get(fields["signal"], str(fields["signal"])),
            layer=None if layer is None else str(layer),
            value=math.nan if value is None else float(value),
            threshold=math.inf if threshold is None else float(threshold),
            step=int(fields["step"]),
            text=str(fields["text"] if "text" in fields else fields["words"]),
        )


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A verdict, the step since which it holds, and the reasons for it."""

    verdict: Verdict
    since_step: int
    findings: tuple[Finding, ...] = ()
    cause: str | None = None
    advice: str | None = None

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of dataclasses.asdict; other keys are ignored. Raises KeyError, TypeError and ValueError."""
        findings = tuple(map(Finding.from_dict, fields.get("findings") or ()))
        cause, advice = (None if fields.get(key) is None else str(fields[key]) for key in ("cause", "advice"))
        verdict = Verdict(fields["verdict"])
        if verdict is Verdict.healthy and not findings:  # as version 0.1 called it
            verdict = Verdict.undecided
        return cls(verdict, int(fields["since_step"]), findings, cause, advice)

    def findings_text(self) -> str:
        """The findings in words."""
        return ", ".join(finding.text for finding in self.findings)

    def __str__(self) -> str:
        why = self.findings_text()
        text = f"step {self.since_step}: {self.verdict}" + (f" - {why}." if why else "")
        if self.cause:
            text += f" Likely cause: {self.cause}."
        return text + (f" Try {self.advice}." if self.advice else "")


_HYSTERESIS = 10.0
"""The factor by which a signal must exceed its threshold before a verdict is withdrawn."""


_MIN_LOSSES = 10
"""Losses that a verdict of healthy requires."""


def diagnose(
    history: History,
    rules: VerdictThresholds,
    before: Diagnosis | None = None,
    setting_names: SettingNames = CONFIG_KEYS,
) -> Diagnosis:
    """The verdict after the last step of `history`, which must have a snapshot; the first rule that applies decides.

    before: the last diagnosis of the run; it is returned unchanged while its verdict holds. setting_names: for advice.
    """
    for rule in (_diverged, _collapsed, _learned, _blown_up, _not_learning, _slow):
        diagnosis = rule(history, rules, before)
        if diagnosis is not None:
            break
    else:
        if before is not None and before.verdict is Verdict.healthy:  # a run that has learned stays healthy
            return before
        diagnosis = Diagnosis(Verdict.undecided, len(history.losses) - 1)
    if before is not None and before.verdict is diagnosis.verdict:
        return before
    return _with_explanation(diagnosis, history, rules, setting_names)


def _with_explanation(
    diagnosis: Diagnosis, history: History, rules: VerdictThresholds, setting_names: SettingNames
) -> Diagnosis:
    """The diagnosis, with a cause and advice if its verdict is doomed."""
    plan, step = history.plan, diagnosis.since_step
    if diagnosis.verdict is Verdict.diverged:
        return replace(diagnosis, **advice.explain_divergence(plan, step, setting_names))
    if diagnosis.verdict is Verdict.collapsed:
        return replace(diagnosis, **advice.explain_collapse(plan, step, setting_names))
    if diagnosis.verdict is Verdict.not_learning and diagnosis.findings[0].signal == "loss/train":
        return replace(diagnosis, **advice.explain_divergence(plan, step + 1, setting_names))
    if diagnosis.verdict is Verdict.not_learning and _logits_shrunk(history, rules):
        return replace(diagnosis, **advice.explain_collapse(plan, step, setting_names))
    if diagnosis.verdict is Verdict.not_learning:
        return replace(diagnosis, **advice.explain_not_learning(plan, history.snapshots, setting_names))
    return diagnosis


def divergence(
    plan: RunPlan,
    signal: str,
    value: float,
    step: int,
    layer: str | None = None,
    setting_names: SettingNames = CONFIG_KEYS,
) -> Diagnosis:
    """For a loss ("loss/train", "loss/test") or a gradient ("grad_norm") that is infinite or not a number at `step`."""
    text = f"{signal} is {value}" + (f" (gradients are not finite from {layer} towards the input)" if layer else "")
    finding = Finding(signal, layer, value, math.inf, step, text)
    return Diagnosis(Verdict.diverged, step, (finding,), **advice.explain_divergence(plan, step, setting_names))


def _diverged(history: History, rules: VerdictThresholds, before: Diagnosis | None) -> Diagnosis | None:
    """A loss or a gradient that is infinite or not a number."""
    step, loss, norm = len(history.losses) - 1, history.losses[-1], history.grad_norms[-1]
    finite_loss = math.isfinite(loss) or not history.plan.loss_known
    if finite_loss and math.isfinite(norm):
        return None
    layer = None
    if history.snapshots and history.snapshots[-1].step == step:
        snapshot = history.snapshots[-1]
        broken = np.flatnonzero(~np.isfinite(snapshot["grad_max"]))
        if 0 < len(broken) < len(snapshot.layers):
            layer = snapshot.layers.labels[broken[-1]]
    if finite_loss:
        return divergence(history.plan, "grad_norm", norm, step, layer)
    return divergence(history.plan, "loss/train", loss, step, layer)


def _collapsed(history: History, rules: VerdictThresholds, before: Diagnosis | None) -> Diagnosis | None:
    """The logits ignore the texts, and gradients vanish towards the input or the weights have stopped moving."""
    collapsed = before is not None and before.verdict is Verdict.collapsed
    snapshot, limit = history.snapshots[-1], _logit_std_limit(history, rules, collapsed=collapsed)
    vanishing = snapshot.depth_ratio[0] < rules.min_depth_ratio
    stalled = snapshot.signals.get("update_per_lr/linear", math.inf) < rules.min_update_per_lr
    if collapsed:
        if all(logit_std > _HYSTERESIS * limit for logit_std in _recent_logit_stds(history)):
            return None  # a few unusual batches are not a recovery
    elif not (snapshot.logit_std < limit and (vanishing or stalled)):
        return None
    elif _learned(history, rules, before) and max(_recent_logit_stds(history)) >= limit:
        return None  # a few unusual batches of a model that has learned are not a collapse
    return Diagnosis(Verdict.collapsed, snapshot.step, tuple(_collapse_findings(snapshot, limit, rules)))


def _collapse_findings(snapshot: Snapshot, limit: float, rules: VerdictThresholds) -> Iterator[Finding]:
    """The signals that show the collapse."""
    ratio, first = snapshot.depth_ratio
    if ratio < rules.min_depth_ratio:
        text = f"gradients vanish towards the input (first/last layer {_below(ratio, rules.min_depth_ratio)}, {first})"
        yield Finding("depth_ratio", first, ratio, rules.min_depth_ratio, snapshot.step, text)
    moved = snapshot.signals.get("update_per_lr/linear", math.inf)
    if moved < rules.min_update_per_lr:
        text = f"the weights barely move (update/learning rate {_below(moved, rules.min_update_per_lr)})"
        yield Finding("update_per_lr/linear", None, moved, rules.min_update_per_lr, snapshot.step, text)
    text = f"every text gets the same logits (standard deviation {_below(snapshot.logit_std, limit)})"
    yield Finding("logit_std", None, snapshot.logit_std, limit, snapshot.step, text)


def _logit_std_limit(history: History, rules: VerdictThresholds, *, collapsed: bool) -> float:
    """The `logit_std` below which a model ignores its texts.

    It is absolute, or a share of the value at step 0 if that is larger and gradients have clearly vanished: the logits
    of wide and of pretrained models start with a hundred times the standard deviation of small ones. collapsed: the
    current verdict is `collapsed`, so that gradients must recover further.
    """
    relative = rules.min_logit_std_ratio * _initial_logit_std(history)
    vanished = history.snapshots[-1].depth_ratio[0] < rules.vanished_depth_ratio * (_HYSTERESIS if collapsed else 1.0)
    return max(rules.min_logit_std, relative) if vanished else rules.min_logit_std


def _logits_shrunk(history: History, rules: VerdictThresholds) -> bool:
    """Whether the updates were so large that `logit_std` fell far below its value at step 0."""
    measured = [shot.logit_std for shot in history.snapshots if not math.isnan(shot.logit_std)]
    return bool(measured) and measured[-1] < rules.shrunk_logit_std_ratio * _initial_logit_std(history)


def _trend_start(history: History, rules: VerdictThresholds) -> int:
    """The step after the last snapshot whose logits had shrunk; before it, `logit_std` was on a plateau."""
    limit = rules.shrunk_logit_std_ratio * _initial_logit_std(history)
    return max((shot.step + 1 for shot in history.snapshots if shot.logit_std < limit), default=0)


def _initial_logit_std(history: History) -> float:
    """The value at step 0, before the first update; 0 if it was not measured."""
    first = history.snapshots[0]
    return first.logit_std if first.step == 0 and math.isfinite(first.logit_std) else 0.0


def _learned(history: History, rules: VerdictThresholds, before: Diagnosis | None) -> Diagnosis | None:
    """The loss is clearly below chance, the loss of a model that knows only the class frequencies.

    It must be below `learned_loss_ratio` times chance, and below chance by more than two standard errors of at least
    ten losses, since those of small batches with rare classes are noisy. To stay healthy, half of the distance is
    enough.
    """
    loss, error = _smoothed(history)
    has_learned = before is not None and before.verdict is Verdict.healthy
    if not has_learned and np.isfinite(history.losses).sum() < _MIN_LOSSES:
        return None
    share = (1 + rules.learned_loss_ratio) / 2 if has_learned else rules.learned_loss_ratio
    chance, step = history.plan.chance_loss, len(history.losses) - 1
    if not (loss < share * chance and loss + 2 * error < chance):
        return None
    text = (
        f"the loss is below {rules.learned_loss_ratio:g} of chance "
        f"({loss:.2f} < {rules.learned_loss_ratio * chance:.2f})"
    )
    return Diagnosis(
        Verdict.healthy, step, (Finding("loss/train", None, loss, rules.learned_loss_ratio * chance, step, text),)
    )


def _blown_up(history: History, rules: VerdictThresholds, before: Diagnosis | None) -> Diagnosis | None:
    """After `slow_after` of the run the loss is far above chance: updates are far too large."""
    done, (loss, _), chance = len(history.losses), _smoothed(history), history.plan.chance_loss
    limit = rules.max_loss_ratio * chance
    if done < rules.slow_after * len(history.plan) or not history.plan.loss_known or not loss > limit:
        return None
    text = f"after {done} of {len(history.plan)} steps the loss is far above chance ({loss:.3g} > {limit:.3g})"
    return Diagnosis(Verdict.not_learning, done - 1, (Finding("loss/train", None, loss, limit, done - 1, text),))


def _not_learning(history: History, rules: VerdictThresholds, before: Diagnosis | None) -> Diagnosis | None:
    """The logits will barely depend on the texts at the last step, even with the fastest growth to be expected."""
    plan, shots = history.plan, history.snapshots
    step = shots[-1].step
    if not plan.lr_confirmed or not plan.effective_lr[: step + 1].any():
        return None  # no prediction: the rates to come are unknown, or no weight has moved yet
    expected = _predict_final_logit_std(plan, shots, rules, trend_start=_trend_start(history, rules))
    hysteresis = _HYSTERESIS if before is not None and before.verdict is Verdict.not_learning else 1.0
    if not expected < rules.min_final_logit_std * hysteresis:
        return None
    text = (
        "the logits barely depend on the text, and even at the fastest growth to be expected will not by the last step "
        f"(standard deviation expected at most {_below(expected, rules.min_final_logit_std)})"
    )
    return Diagnosis(
        Verdict.not_learning,
        step,
        (Finding("logit_std", None, expected, rules.min_final_logit_std, step, text),),
    )


def _predict_final_logit_std(
    plan: RunPlan, shots: list[Snapshot], rules: VerdictThresholds, *, trend_start: int
) -> float:
    """The largest `logit_std` to expect at the end of the run; infinite if there is nothing to extrapolate from.

    When a model leaves a plateau, `logit_std` grows exponentially with the sum of the effective learning rates: its
    logarithm is linear in that sum. A line is fitted to the second half of the steps so far, from `trend_start` on, and
    extrapolated to the last step, with its slope plus two standard errors or, if larger, a quarter of
    `max_logit_std_growth`, since a plateau can end suddenly. That growth itself is assumed as long as less than
    `min_lr_used` of the sum has been used, and with fewer than three snapshots from `trend_start` on.
    """
    first = bisect_left(shots, shots[-1].step / 2, key=lambda shot: shot.step)
    measured = [shot for shot in shots[first:] if shot.logit_std > 0]
    if not measured:
        return math.inf
    recent = measured[:: 1 + len(measured) // 100]
    lr_sum = np.cumsum(plan.effective_lr)
    now, left = lr_sum[shots[-1].step], lr_sum[-1] - lr_sum[shots[-1].step]
    trend = [shot for shot in recent if shot.step >= trend_start]
    moved = len(trend) >= 3 and lr_sum[trend[-1].step] > lr_sum[trend[0].step]
    has_trend = moved and now >= rules.min_lr_used * lr_sum[-1]
    fitted = trend if has_trend else recent
    used = np.array([lr_sum[shot.step] for shot in fitted])
    log_stds = np.log([shot.logit_std for shot in fitted])
    centered = used - used.mean()
    if not has_trend:
        end = log_stds.mean() + rules.max_logit_std_growth * left
    else:
        slope = float(centered @ log_stds / (centered @ centered))
        residuals = log_stds - log_stds.mean() - slope * centered
        error = math.sqrt(float(residuals @ residuals / (len(fitted) - 2) / (centered @ centered)))
        end = (
            log_stds.mean()
            + slope * (now - used.mean())
            + max(slope + 2 * error, rules.max_logit_std_growth / 4) * left
        )
    return math.exp(min(float(end), 100.0))


def _slow(history: History, rules: VerdictThresholds, before: Diagnosis | None) -> Diagnosis | None:
    """Nothing has been learned after `slow_after` of the run, and no rule calls it doomed.

    A run whose loss is below chance but too noisy to count as learned is not slow. A slow run stays slow until it has
    learned.
    """
    done, (loss, _), chance = len(history.losses), _smoothed(history), history.plan.chance_loss
    if done < rules.slow_after * len(history.plan) or not history.plan.loss_known:
        return None
    was_slow = before is not None and before.verdict is Verdict.slow
    if loss < rules.learned_loss_ratio * chance and not was_slow:
        return None
    text = (
        f"after {done} of {len(history.plan)} steps the loss is no better than chance ({loss:.2f}, chance {chance:.2f})"
    )
    finding = Finding("loss/train", None, loss, rules.learned_loss_ratio * chance, done - 1, text)
    return Diagnosis(Verdict.slow, done - 1, (finding,))


def unmoved_weights(shots: list[Snapshot], low_precision: frozenset[str]) -> Finding | None:
    """Weights that two consecutive updates left unchanged in every bit, although float32 could have represented them.

    No verdict depends on it. low_precision: labels of the weights that are stored in fewer than 32 bits.
    """
    if len(shots) < 2:
        return None
    rows = np.flatnonzero(_unmoved(shots[-1]) & _unmoved(shots[-2]))
    if not len(rows):
        return None
    last = shots[-1]
    labels = [last.layers.labels[row] for row in rows]
    text = (
        f"{len(rows)} of {len(last.layers)} weights, {labels[0]} first, did not change in the last two watched steps, "
        f"at a learning rate of {format_number(last.lr)}: "
    )
    if low_precision.issuperset(labels):
        text += "they are stored in 16 bits, which round small updates away; keep them in float32."
    else:
        text += "are they in the optimizer, and does optimizer.step() run inside of watch.step?"
    return Finding("update_ratio", labels[0], 0.0, 0.0, last.step, text)


def _unmoved(shot: Snapshot) -> npt.NDArray[np.bool_]:
    """Which weights did not change although they should have [L].

    Their gradient is well above Adam's epsilon, and a hundredth of the learning rate well above float32's resolution.
    """
    rates = shot.effective_lr * np.array(shot.layers.lr_scales or 1.0)
    with np.errstate(invalid="ignore"):
        visible = 1e-2 * rates > 2.0**-24 * shot["weight_rms"]
        unmoved: npt.NDArray[np.bool_] = (shot["update_ratio"] == 0) & (shot["grad_mean"] > 1e-6) & visible
    return unmoved


def _smoothed(history: History) -> tuple[float, float]:
    """Mean loss of the last steps, without those not watched, and its standard error."""
    losses = np.array(history.losses[-history.smoothing_window :])
    losses = losses[~np.isnan(losses)]
    if not len(losses):
        return math.nan, math.nan
    return float(losses.mean()), float(losses.std() / math.sqrt(len(losses)))


def _recent_logit_stds(history: History) -> list[float]:
    """The values measured in the last `smoothing_window` steps, but at least the last three."""
    recent: list[float] = []
    for shot in reversed(history.snapshots):
        if len(recent) >= 3 and shot.step < len(history.losses) - history.smoothing_window:
            break
        if not math.isnan(shot.logit_std):
            recent.append(shot.logit_std)
    return recent


def _below(value: float, threshold: float) -> str:
    return f"{format_number(value)} < {format_number(threshold)}"
