"""Verdicts on histories that were made up, each with one thing wrong."""

import dataclasses
import math

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from bertmon import optimizer, schedule
from bertmon.config import OptimizerConfig, VerdictThresholds
from bertmon.monitor.diagnosis import Diagnosis, Verdict, diagnose
from bertmon.monitor.history import STATISTICS, History, RunPlan, Snapshot, WeightTable

RULES = VerdictThresholds()
CHANCE = math.log(4)
LAYERS = WeightTable(
    ("word", *(f"enc.l.{depth}.{name}" for depth in range(4) for name in ("query", "output.dense")), "classifier"),
    ("embedding", *["linear"] * 8, "linear"),
    (None, *(depth for depth in range(4) for _ in range(2)), None),
)


def plan(steps=600, lr=1e-3, warmup_frac=0.1, bias_correction=True):
    rates = lr * np.array(
        [schedule.lr_factor(step, shape="linear", warmup_frac=warmup_frac, total_steps=steps) for step in range(steps)]
    )
    config = OptimizerConfig(bias_correction=bias_correction)
    factors = np.array([optimizer.bias_correction_gain(config, step) for step in range(steps)])
    return RunPlan(rates, rates * factors, CHANCE, warmup_frac, bias_correction)


def snapshot(plan, step, *, logit_std=1e-3, profile=1.0, per_lr=0.2, layers=LAYERS):
    """A measurement with the given signals: gradients grow evenly from the first to the last encoder layer."""
    values = np.ones((len(layers), len(STATISTICS)))
    depths = np.array([3 if depth is None else depth for depth in layers.depths])
    values[:, STATISTICS.index("grad_mean")] = 1e-3 * profile ** ((3 - depths) / 3)
    values[:, STATISTICS.index("weight_rms")] = 0.02
    values[:, STATISTICS.index("update_ratio")] = per_lr * plan.effective_lr[step] / 0.02
    return Snapshot(step, plan.lr[step], plan.effective_lr[step], logit_std, layers, values)


def history(plan, *snapshots, loss=CHANCE):
    done = snapshots[-1].step + 1
    losses = loss if isinstance(loss, list) else [loss] * done
    return History(plan, losses, [1.0] * done, list(snapshots))


def constant(plan, until, every=30, **signals):
    return [snapshot(plan, step, **signals) for step in range(0, until + 1, every)]


def test_signals_are_what_they_say():
    steps = plan()
    signals = snapshot(steps, 30, logit_std=2e-3, profile=1e-4, per_lr=0.3).signals
    assert signals == pytest.approx(
        {"logit_std": 2e-3, "depth_ratio": 1e-4, "update_per_lr/embedding": 0.3, "update_per_lr/linear": 0.3}
    )
    assert set(snapshot(steps, 0).signals) == {"logit_std", "depth_ratio"}  # the rate is 0
    one_layer = WeightTable(("enc.l.0.query", "classifier"), ("linear", "linear"), (0, None))
    assert "depth_ratio" not in snapshot(steps, 30, layers=one_layer).signals


def test_the_depth_ratio_is_that_of_the_worst_family():
    shot = snapshot(plan(), 30)
    shot.values[LAYERS.labels.index("enc.l.0.output.dense"), 0] = 1e-7
    value, label = shot.depth_ratio
    assert value == pytest.approx(1e-4)
    assert label == "enc.l.0.output.dense"

    again = snapshot(plan(), 30, profile=1e-2)
    again.values[LAYERS.labels.index("enc.l.3.output.dense"), 0] = 0  # no ratio there
    assert again.depth_ratio == (pytest.approx(1e-2), "enc.l.0.query")


def test_a_plateau_is_healthy_at_first_and_slow_later():
    steps = plan(warmup_frac=0.7)
    growing = [snapshot(steps, step, logit_std=1e-3 * math.exp(step / 100)) for step in range(0, 600, 30)]
    early, late = history(steps, *growing[:4]), history(steps, *growing[:8])
    assert diagnose(early, RULES).verdict is Verdict.healthy
    said = diagnose(late, RULES)
    assert said.verdict is Verdict.slow
    assert not said.verdict.doomed
    assert str(said) == (
        "step 210: slow - after 211 of 600 steps the loss is no better than chance (1.39, chance 1.39)."
    )
    assert said.findings[0].threshold == pytest.approx(0.95 * CHANCE)


def test_a_loss_below_chance_is_healthy_whatever_else():
    steps = plan()
    found = history(steps, *constant(steps, 300, logit_std=1e-3), loss=1.2)
    said = diagnose(found, RULES)
    assert str(said) == "step 300: healthy - the loss is below chance (1.20 < 1.32)."
    young = Diagnosis(Verdict.healthy, 0)
    assert diagnose(found, RULES, young) == said  # it has learned by now
    assert diagnose(found, RULES, said) is said


def test_losses_that_scatter_have_not_learned():
    steps = plan()
    losses = [0.0, 2.6] * 150 + [0.0]  # mean 1.3, standard error 0.24
    said = diagnose(history(steps, *constant(steps, 300, logit_std=1e-2), loss=losses), RULES)
    assert said.verdict is Verdict.slow


def test_what_has_learned_a_little_does_not_go_to_and_fro():
    steps = plan()
    shots = [snapshot(steps, step, logit_std=1e-2 * math.exp(step / 50)) for step in range(0, 301, 30)]
    said = diagnose(history(steps, *shots), RULES)
    assert said.verdict is Verdict.slow
    assert diagnose(history(steps, *shots, loss=0.96 * CHANCE), RULES, said) is said
    said = diagnose(history(steps, *shots, loss=0.94 * CHANCE), RULES, said)
    assert said.verdict is Verdict.healthy
    assert diagnose(history(steps, *shots, loss=0.96 * CHANCE), RULES, said) is said
    assert diagnose(history(steps, *shots, loss=0.98 * CHANCE), RULES, said).verdict is Verdict.slow


COLLAPSED = {"spread": 1e-6, "profile": 1e-4, "per_lr": 5e-3}


def test_a_collapsed_run_is_called_so_at_its_first_snapshot_with_all_that_was_seen():
    steps = plan(bias_correction=False)
    said = diagnose(history(steps, *constant(steps, 60), snapshot(steps, 90, **COLLAPSED)), RULES)
    assert said.verdict is Verdict.collapsed
    assert said.verdict.doomed
    assert said.since_step == 90
    assert [(f.signal, f.layer, f.threshold, f.step) for f in said.findings] == [
        ("depth_ratio", "enc.l.0.query", 3e-2, 90),
        ("update_per_lr/linear", None, 1e-2, 90),
        ("logit_std", None, 3e-5, 90),
    ]
    assert [f.value for f in said.findings] == pytest.approx([1e-4, 5e-3, 1e-6])
    assert str(said) == (
        "step 90: collapsed - gradients vanish towards the input (first/last layer 1e-4 < 0.03, enc.l.0.query), "
        "weights hardly move (steps 5e-3 < 0.01 of the learning rate), "
        "every text gets the same logits (spread 1e-6 < 3e-5). "
        "Likely cause: an effective learning rate of 4.1e-3 at step 60, 4.1x the nominal one "
        "(no bias correction, warm-up 0.1). Try schedule.warmup_frac=0.7 or optimizer.bias_correction=true."
    )


@pytest.mark.parametrize(
    "signals",
    [
        {"spread": 1e-6},  # gradients and steps as they should be: a fresh, narrow model
        {"profile": 1e-4},  # logits that depend on the text: not lost
        {"per_lr": 5e-3},
        {"spread": math.nan, "profile": 1e-4},  # batches of one text have no spread
    ],
)
def test_one_odd_signal_is_no_collapse(signals):
    steps = plan()
    assert diagnose(history(steps, *constant(steps, 60), snapshot(steps, 90, **signals)), RULES).verdict is (
        Verdict.healthy
    )


@pytest.mark.parametrize("signals", [{"profile": 1e-4}, {"per_lr": 5e-3}])
def test_the_same_logits_and_one_more_sign_are_a_collapse(signals):
    steps = plan()
    shots = [*constant(steps, 60), snapshot(steps, 90, logit_std=1e-6, **signals)]
    assert diagnose(history(steps, *shots), RULES).verdict is Verdict.collapsed


def test_an_odd_batch_is_no_collapse_of_a_run_that_has_learned():
    steps = plan()
    shots = [*constant(steps, 300, logit_std=0.9, profile=1e-2), snapshot(steps, 330, **COLLAPSED)]
    said = diagnose(history(steps, *shots[:-1], loss=1.1), RULES)
    assert diagnose(history(steps, *shots, loss=1.1), RULES, said) is said
    assert diagnose(history(steps, *shots, loss=CHANCE), RULES, said).verdict is Verdict.collapsed
    for step in (360, 390):  # the loss cannot have said all: three batches in a row are not odd
        assert diagnose(history(steps, *shots, loss=1.1), RULES, said) is said
        shots.append(snapshot(steps, step, **COLLAPSED))
    assert diagnose(history(steps, *shots, loss=1.1), RULES, said).verdict is Verdict.collapsed


def test_a_collapse_is_withdrawn_when_the_logits_have_come_back_for_good():
    steps = plan()
    shots = [*constant(steps, 60), snapshot(steps, 90, **COLLAPSED)]
    said = diagnose(history(steps, *shots), RULES)
    for step in (120, 150):
        shots.append(snapshot(steps, step, logit_std=1e-2))
        assert diagnose(history(steps, *shots), RULES, said) is said
    shots.append(snapshot(steps, 180, logit_std=1e-2))
    assert diagnose(history(steps, *shots), RULES, said).verdict is Verdict.slow


def test_a_collapse_is_not_withdrawn_sooner_because_it_is_watched_more_closely():
    steps = plan()
    window = len(steps) // 20
    assert window > 20
    said = diagnose(history(steps, snapshot(steps, 0), snapshot(steps, 60, **COLLAPSED)), RULES)
    shots = [snapshot(steps, 0), snapshot(steps, 60, **COLLAPSED)]
    for step in range(61, 61 + window):
        shots.append(snapshot(steps, step, logit_std=1e-2 if step % 10 == 1 else math.nan))  # a pass every tenth step
        kept = diagnose(history(steps, *shots), RULES, said)
        assert (kept is said) == (step < 60 + window)
    assert kept.verdict is Verdict.healthy


def test_the_advice_is_a_rate_where_no_other_way_keeps_it_small():
    steps = plan(lr=1e-3, bias_correction=True, warmup_frac=0.7)
    said = diagnose(history(steps, *constant(steps, 390), snapshot(steps, 420, **COLLAPSED)), RULES)
    assert said.cause == "a learning rate of 1e-3 at step 419 is too large for this model"
    assert said.advice == "optimizer.lr=3.3e-4"
    early = diagnose(history(steps, snapshot(steps, 0), snapshot(steps, 43, **COLLAPSED)), RULES)
    assert early.advice == "optimizer.lr=3.3e-5"  # it broke at a tenth of the peak


def test_no_rate_is_blamed_before_the_first_update():
    steps = plan(warmup_frac=0.0)
    said = diagnose(history(steps, snapshot(steps, 0, **COLLAPSED)), RULES)
    assert (said.verdict, said.cause, said.advice) == (Verdict.collapsed, None, None)


def test_a_rate_that_is_too_small_is_told_when_enough_of_it_has_been_used():
    steps = plan(lr=1e-5)
    share = np.cumsum(steps.effective_lr) / steps.effective_lr.sum()
    assert share[120] < 0.3 < share[150]
    assert diagnose(history(steps, *constant(steps, 120)), RULES).verdict is Verdict.healthy
    said = diagnose(history(steps, *constant(steps, 150)), RULES)
    assert said.verdict is Verdict.not_learning
    assert said.verdict.doomed
    assert str(said) == (
        "step 150: not learning - the logits hardly depend on the text, nor will they by the last step "
        "(largest spread to expect 1.3e-3 < 3e-3). Likely cause: a learning rate of 1e-5 is too small: "
        "all 600 steps move the weights by 3 %. Try optimizer.lr=3.3e-4 or more steps."
    )


def test_a_rate_that_would_be_too_small_for_the_fastest_run_is_told_with_the_first_update():
    steps = plan(lr=1e-6)
    assert diagnose(history(steps, snapshot(steps, 0)), RULES).verdict is Verdict.healthy
    said = diagnose(history(steps, snapshot(steps, 0), snapshot(steps, 1)), RULES)
    assert said.verdict is Verdict.not_learning
    left = steps.effective_lr[2:].sum()
    assert said.findings[0].value == pytest.approx(1e-3 * math.exp(600 * left))
    assert said.advice == "optimizer.lr=3.3e-4 or more steps"
    shots = [snapshot(steps, 0)]  # too few for a line: nothing new is known, so nothing is taken back
    for step in (100, 200, 300):
        shots.append(snapshot(steps, step))
        assert diagnose(history(steps, *shots), RULES, said) is said


def test_no_rate_is_advised_that_mostly_fails():
    steps = plan(steps=100, lr=1e-5)
    said = diagnose(history(steps, *constant(steps, 40, every=5)), RULES)
    assert (said.verdict, said.advice) == (Verdict.not_learning, "more steps")


def test_a_noisy_spread_has_the_benefit_of_the_doubt():
    steps = plan(lr=1e-4)
    shots = [snapshot(steps, 30 * number, logit_std=2e-4 * math.exp(2 * (-1) ** number)) for number in range(10)]
    assert diagnose(history(steps, *shots), RULES).verdict is Verdict.slow
    assert diagnose(history(steps, *constant(steps, 270, logit_std=2e-4)), RULES).verdict is Verdict.not_learning


def test_a_spread_that_grows_fast_enough_is_given_its_time():
    steps = plan(lr=2e-5)
    clock = np.cumsum(steps.effective_lr)
    for target, verdict in ((1e-3, Verdict.not_learning), (1.0, Verdict.healthy)):
        rate = math.log(target / 1e-4) / clock[-1]
        shots = [snapshot(steps, step, logit_std=1e-4 * math.exp(rate * clock[step])) for step in range(0, 170, 10)]
        assert diagnose(history(steps, *shots), RULES).verdict is verdict


def test_steps_that_are_large_and_lead_nowhere():
    steps = plan(lr=1e-2)
    said = diagnose(history(steps, *constant(steps, 590, every=10)), RULES)
    assert said.verdict is Verdict.not_learning
    assert said.cause == "a learning rate of 0.01 is too large"


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.inf)])
def test_what_is_not_finite_has_diverged(loss, norm):
    steps = plan()
    shots = constant(steps, 60)
    shots[-1].values[-3:, STATISTICS.index("grad_max")] = math.inf
    found = history(steps, *shots)
    found.losses[-1], found.grad_norms[-1] = loss, norm
    said = diagnose(found, RULES)
    assert said.verdict is Verdict.diverged
    assert said.verdict.doomed
    assert said.findings[0].layer == "classifier"
    what = "loss/train is" if not math.isfinite(loss) else "grad_norm is"
    assert str(said).startswith(f"step 60: diverged - {what} ")
    assert str(said).endswith("too large. Try optimizer.lr=9.8e-5.")


def test_the_advice_after_a_divergence_is_below_the_rate_that_broke_it():
    steps = plan(lr=1e6, warmup_frac=1.0)
    said = diagnose(History(steps, [1.0] * 12 + [math.nan], [1.0] * 13), RULES)
    assert said.cause == "a learning rate of 1.8e4 is too large"
    assert said.advice == "optimizer.lr=1.8e3"


def test_diverged_at_the_very_first_step_has_no_snapshot_and_no_cause():
    said = diagnose(History(plan(), [math.nan], [math.nan]), RULES)
    assert str(said) == "step 0: diverged - loss/train is nan."


def test_thresholds_are_settings():
    steps = plan()
    found = history(steps, *constant(steps, 30, logit_std=1e-3))
    strict = dataclasses.replace(RULES, logit_std=1e-2, depth_ratio=2.0)
    assert diagnose(found, RULES).verdict is Verdict.healthy
    assert diagnose(found, strict).verdict is Verdict.collapsed


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("warmup_frac", [0.0, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("lr", [1e-5, 1e-3, 1e-1])
@pytest.mark.parametrize("step", [1, 30, 300, 599])
def test_advice_can_be_typed(bias_correction, warmup_frac, lr, step):
    steps = plan(lr=lr, warmup_frac=warmup_frac, bias_correction=bias_correction)
    said = diagnose(history(steps, snapshot(steps, 0), snapshot(steps, step, **COLLAPSED)), RULES)
    assert said.verdict is Verdict.collapsed
    if said.advice is None:
        assert not steps.effective_lr[:step].any()
        return
    for advice in said.advice.split(" or "):
        override = OverridesParser.create().parse_override(advice)
        if override.key_or_group == "optimizer.lr":
            assert 0 < override.value() < lr
