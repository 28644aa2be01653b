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
    """A verdict, the step that it is known since, and why."""

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
"""How far beyond its threshold a signal has to come back before a verdict is withdrawn."""


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
        if before is not None and before.verdict is Verdict.healthy:  # what it has learned it has learned
            return before
        diagnosis = Diagnosis(Verdict.undecided, len(history.losses) - 1)
    if before is not None and before.verdict is diagnosis.verdict:
        return before
    return _explained(diagnosis, history, rules, setting_names)


def _explained(
    diagnosis: Diagnosis, history: History, rules: VerdictThresholds, setting_names: SettingNames
) -> Diagnosis:
    """With cause and advice, if it is a doomed one."""
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
    """The logits ignore the texts, while the gradient dies towards the input or the weights have stopped moving."""
    collapsed = before is not None and before.verdict is Verdict.collapsed
    snapshot, limit = history.snapshots[-1], _same_logits_limit(history, rules, collapsed=collapsed)
    vanishing = snapshot.depth_ratio[0] < rules.min_depth_ratio
    resting = snapshot.signals.get("update_per_lr/linear", math.inf) < rules.min_update_per_lr
    if collapsed:
        if all(spread > _HYSTERESIS * limit for spread in _last_spreads(history)):
            return None  # some odd batches are no recovery
    elif not (snapshot.logit_std < limit and (vanishing or resting)):
        return None
    elif _learned(history, rules, before) and max(_last_spreads(history)) >= limit:
        return None  # nor are some odd batches a collapse of a model that reads its texts
    return Diagnosis(Verdict.collapsed, snapshot.step, tuple(_collapse_findings(snapshot, limit, rules)))


def _collapse_findings(snapshot: Snapshot, limit: float, rules: VerdictThresholds) -> Iterator[Finding]:
    """What a collapse is seen by."""
    profile, first = snapshot.depth_ratio
    if profile < rules.min_depth_ratio:
        text = (
            f"gradients vanish towards the input (first/last layer {_below(profile, rules.min_depth_ratio)}, {first})"
        )
        yield Finding("depth_ratio", first, profile, rules.min_depth_ratio, snapshot.step, text)
    moved = snapshot.signals.get("update_per_lr/linear", math.inf)
    if moved < rules.min_update_per_lr:
        text = f"the weights barely move (update/learning rate {_below(moved, rules.min_update_per_lr)})"
        yield Finding("update_per_lr/linear", None, moved, rules.min_update_per_lr, snapshot.step, text)
    text = f"every text gets the same logits (standard deviation {_below(snapshot.logit_std, limit)})"
    yield Finding("logit_std", None, snapshot.logit_std, limit, snapshot.step, text)


def _same_logits_limit(history: History, rules: VerdictThresholds, *, collapsed: bool) -> float:
    """The spread of the logits below which a model ignores its texts.

    A threshold without a scale of its own, a share of the spread at step 0, counts too once gradients have vanished
    beyond doubt: wide and pretrained models start with logits that spread a hundred times as much as those of small
    ones. collapsed: the run has been called so, and its gradients have to come back further.
    """
    relative = rules.min_logit_std_ratio * _fresh_spread(history)
    vanished = history.snapshots[-1].depth_ratio[0] < rules.vanished_depth_ratio * (_HYSTERESIS if collapsed else 1.0)
    return max(rules.min_logit_std, relative) if vanished else rules.min_logit_std


def _logits_shrunk(history: History, rules: VerdictThresholds) -> bool:
    """Whether steps were so large that the spread of the logits fell far below that of step 0."""
    return history.snapshots[-1].logit_std < rules.shrunk_logit_std_ratio * _fresh_spread(history)


def _fresh_spread(history: History) -> float:
    """That of the logits at step 0, before the first update; 0 if it was not measured."""
    first = history.snapshots[0]
    return first.logit_std if first.step == 0 and math.isfinite(first.logit_std) else 0.0


def _learned(history: History, rules: VerdictThresholds, before: Diagnosis | None) -> Diagnosis | None:
    """The loss is clearly below what the labels alone would give; once it is, half of that is enough to stay there.

    Clearly: by two standard errors too, since the losses of small batches with few texts of a class scatter.
    """
    loss, error = _smoothed(history)
    has_learned = before is not None and before.verdict is Verdict.healthy
    share = (1 + rules.learned_loss_ratio) / 2 if has_learned else rules.learned_loss_ratio
    chance, step = history.plan.chance_loss, len(history.losses) - 1
    if not (loss < share * chance and loss + 2 * error < chance):
        return None
    text = f"the loss is below chance ({loss:.2f} < {rules.learned_loss_ratio * chance:.2f})"
    return Diagnosis(
        Verdict.healthy, step, (Finding("loss/train", None, loss, rules.learned_loss_ratio * chance, step, text),)
    )


def _blown_up(history: History, rules: VerdictThresholds, before: Diagnosis | None) -> Diagnosis | None:
    """After a good part of the run the loss is far above chance: no plateau, but updates that are far too large."""
    done, (loss, _), chance = len(history.losses), _smoothed(history), history.plan.chance_loss
    limit = rules.max_loss_ratio * chance
    if done < rules.slow_after * len(history.plan) or not history.plan.loss_known or not loss > limit:
        return None
    text = f"after {done} of {len(history.plan)} steps the loss is far above chance ({loss:.3g} > {limit:.3g})"
    return Diagnosis(Verdict.not_learning, done - 1, (Finding("loss/train", None, loss, limit, done - 1, text),))


def _not_learning(history: History, rules: VerdictThresholds, before: Diagnosis | None) -> Diagnosis | None:
    """By the end of the run the logits will barely depend on the texts, even at the best growth to expect."""
    plan, shots = history.plan, history.snapshots
    step, expected = (
        shots[-1].step,
        _predict_final_spread(plan, shots, rules, own_slope=not _logits_shrunk(history, rules)),
    )
    if not plan.effective_lr[: step + 1].any():
        return None  # no weight has moved yet: nothing can be said of the growth
    if not plan.lr_confirmed:
        return None
    stay = _HYSTERESIS if before is not None and before.verdict is Verdict.not_learning else 1.0
    if not expected < rules.min_final_logit_std * stay:
        return None
    text = (
        "the logits barely depend on the text, and at their present growth still will not by the last step "
        f"(standard deviation expected at most {_below(expected, rules.min_final_logit_std)})"
    )
    return Diagnosis(
        Verdict.not_learning,
        step,
        (Finding("logit_std", None, expected, rules.min_final_logit_std, step, text),),
    )


def _predict_final_spread(plan: RunPlan, shots: list[Snapshot], rules: VerdictThresholds, *, own_slope: bool) -> float:
    """The largest spread of the logits to expect at the end of the run; infinite where that cannot be said.

    Off a plateau the spread grows exponentially, and the learning rate is its clock: against the effective learning
    rates added up, its logarithm is a line. Through the latter half of the steps so far it is fitted, and followed to
    the last step at its slope and twice the slope's standard error more, or at a quarter of the growth of the fastest
    run known, since a plateau can end suddenly. Before the clock has run for `min_lr_used` of the whole, where there
    are too few snapshots for a line, and without `own_slope`, that growth itself is assumed.
    """
    clock = np.cumsum(plan.effective_lr)
    first = bisect_left(shots, shots[-1].step / 2, key=lambda shot: shot.step)
    recent = [shot for shot in shots[first :: 1 + (len(shots) - first) // 100] if shot.logit_std > 0]
    times = np.array([clock[shot.step] for shot in recent])
    spreads = np.log([shot.logit_std for shot in recent])
    now, left = clock[shots[-1].step], clock[-1] - clock[shots[-1].step]
    if not recent:
        return math.inf
    apart = times - times.mean()
    if not own_slope or now < rules.min_lr_used * clock[-1] or len(recent) < 3 or not apart.any():
        end = spreads.mean() + rules.max_logit_std_growth * left
    else:
        slope = float(apart @ spreads / (apart @ apart))
        residuals = spreads - spreads.mean() - slope * apart
        error = math.sqrt(float(residuals @ residuals / (len(recent) - 2) / (apart @ apart)))
        end = (
            spreads.mean()
            + slope * (now - times.mean())
            + max(slope + 2 * error, rules.max_logit_std_growth / 4) * left
        )
    return math.exp(min(float(end), 100.0))


def _slow(history: History, rules: VerdictThresholds, before: Diagnosis | None) -> Diagnosis | None:
    """Nothing learned after a good part of the run, and no sign that it is lost.

    A loss that is below chance, but scatters too much to be called learned, is not slow. A run that was slow before
    stays so until it has learned.
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
    """Weights that two updates in a row did not change in any digit, although float32 would have shown the step.

    No verdict rests on it. low_precision: labels of the weights that are stored in fewer than 32 bits.
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
    """Of each weight whether it did not change, though its gradient is well above Adam's epsilon and a hundredth of
    the learning rate well above float32's resolution [L]."""
    rates = shot.effective_lr * np.array(shot.layers.lr_scales or 1.0)
    with np.errstate(invalid="ignore"):
        visible = 1e-2 * rates > 2.0**-24 * shot["weight_rms"]
        unmoved: npt.NDArray[np.bool_] = (shot["update_ratio"] == 0) & (shot["grad_mean"] > 1e-6) & visible
    return unmoved


def _smoothed(history: History) -> tuple[float, float]:
    """Mean loss of the last steps, as far as they were watched, and its standard error."""
    losses = np.array(history.losses[-_window(history) :])
    losses = losses[~np.isnan(losses)]
    if not len(losses):
        return math.nan, math.nan
    return float(losses.mean()), float(losses.std() / math.sqrt(len(losses)))


def _last_spreads(history: History) -> list[float]:
    """Of the logits, as far as they were measured, in the last steps; of three snapshots at least."""
    found: list[float] = []
    for shot in reversed(history.snapshots):
        if len(found) >= 3 and shot.step < len(history.losses) - _window(history):
            break
        if not math.isnan(shot.logit_std):
            found.append(shot.logit_std)
    return found


def _window(history: History) -> int:
    """Steps that a judgement about "now" looks back on: a twentieth of the whole run, and at least 20."""
    return max(20, len(history.plan) // 20)


def _below(value: float, threshold: float) -> str:
    return f"{format_number(value)} < {format_number(threshold)}"
