"""Verdicts on synthetic histories, each with one thing wrong."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from bertmon import optimizer, schedule
from bertmon.config import Decay, OptimizerConfig, ScheduleConfig, VerdictThresholds
from bertmon.monitor.diagnosis import Diagnosis, Verdict, diagnose, divergence
from bertmon.monitor.history import STATISTICS, History, RunPlan, Snapshot, WeightTable
from bertmon.training.task import setting_names

THRESHOLDS = VerdictThresholds()
CHANCE = math.log(4)
LAYERS = WeightTable(
    ("word", *(f"enc.l.{depth}.{name}" for depth in range(4) for name in ("query", "output.dense")), "classifier"),
    ("embedding", *["linear"] * 8, "linear"),
    (None, *(depth for depth in range(4) for _ in range(2)), None),
)


def plan(steps=600, lr=1e-3, warmup_frac=0.1, bias_correction=True):
    rates = lr * np.array(
        [schedule.lr_factor(step, decay="linear", warmup_frac=warmup_frac, total_steps=steps) for step in range(steps)]
    )
    config = OptimizerConfig(bias_correction=bias_correction)
    factors = np.array([optimizer.bias_correction_gain(config, step) for step in range(steps)])
    return RunPlan(rates, rates * factors, CHANCE, warmup_frac, bias_correction)


def snapshot(plan, step, *, logit_std=1e-3, depth_ratio=1.0, per_lr=0.2, layers=LAYERS):
    """A measurement with the given signals: gradients grow evenly from the first to the last encoder layer."""
    values = np.ones((len(layers), len(STATISTICS)))
    depths = np.array([3 if depth is None else depth for depth in layers.depths])
    values[:, STATISTICS.index("grad_mean")] = 1e-3 * depth_ratio ** ((3 - depths) / 3)
    values[:, STATISTICS.index("weight_rms")] = 0.02
    values[:, STATISTICS.index("update_ratio")] = per_lr * plan.effective_lr[step] / 0.02
    return Snapshot(step, plan.lr[step], plan.effective_lr[step], logit_std, layers, values)


def history(plan, *snapshots, loss=CHANCE):
    steps = snapshots[-1].step + 1
    losses = loss if isinstance(loss, list) else [loss] * steps
    return History(plan, losses, [1.0] * steps, list(snapshots))


def constant(plan, until, every=30, **signals):
    return [snapshot(plan, step, **signals) for step in range(0, until + 1, every)]


def test_snapshot_has_the_signals_that_it_was_made_with():
    steps = plan()
    signals = snapshot(steps, 30, logit_std=2e-3, depth_ratio=1e-4, per_lr=0.3).signals
    assert signals == pytest.approx(
        {"logit_std": 2e-3, "depth_ratio": 1e-4, "update_per_lr/embedding": 0.3, "update_per_lr/linear": 0.3}
    )
    assert set(snapshot(steps, 0).signals) == {"logit_std", "depth_ratio"}  # the rate is 0
    one_layer = WeightTable(("enc.l.0.query", "classifier"), ("linear", "linear"), (0, None))
    assert "depth_ratio" not in snapshot(steps, 30, layers=one_layer).signals


def test_depth_ratio_comes_from_the_worst_group_of_matrices():
    shot = snapshot(plan(), 30)
    shot.values[LAYERS.labels.index("enc.l.0.output.dense"), 0] = 1e-7
    value, label = shot.depth_ratio
    assert value == pytest.approx(1e-4)
    assert label == "enc.l.0.output.dense"

    again = snapshot(plan(), 30, depth_ratio=1e-2)
    again.values[LAYERS.labels.index("enc.l.3.output.dense"), 0] = 0  # no ratio there
    assert again.depth_ratio == (pytest.approx(1e-2), "enc.l.0.query")


def test_plateau_is_undecided_at_first_and_slow_later():
    steps = plan(warmup_frac=0.7)
    growing = [snapshot(steps, step, logit_std=1e-3 * math.exp(step / 100)) for step in range(0, 600, 30)]
    early, late = history(steps, *growing[:4]), history(steps, *growing[:8])
    assert diagnose(early, THRESHOLDS) == Diagnosis(Verdict.undecided, 90)
    diagnosis = diagnose(late, THRESHOLDS)
    assert diagnosis.verdict is Verdict.slow
    assert not diagnosis.verdict.doomed
    assert str(diagnosis) == (
        "step 210: slow - after 211 of 600 steps the loss is no better than chance (1.39, chance 1.39)."
    )
    assert diagnosis.findings[0].threshold == pytest.approx(0.95 * CHANCE)


def test_loss_below_chance_is_healthy_regardless_of_earlier_verdicts():
    steps = plan()
    run = history(steps, *constant(steps, 300, logit_std=1e-3), loss=1.2)
    diagnosis = diagnose(run, THRESHOLDS)
    assert str(diagnosis) == "step 300: healthy - the loss is below 0.95 of chance (1.20 < 1.32)."
    young = Diagnosis(Verdict.undecided, 0)
    assert diagnose(run, THRESHOLDS, young) == diagnosis  # it has learned by now
    assert diagnose(run, THRESHOLDS, diagnosis) is diagnosis


def test_few_losses_below_chance_are_not_healthy():
    low = 0.8 * CHANCE
    for count, verdict in ((1, Verdict.undecided), (9, Verdict.undecided), (10, Verdict.healthy)):
        run = history(plan(), *constant(plan(), 0))
        run.losses[:], run.grad_norms[:] = [low] * count, [1.0] * count
        assert diagnose(run, THRESHOLDS).verdict is verdict


def test_noisy_losses_below_chance_are_neither_healthy_nor_slow():
    steps = plan()
    losses = [0.0, 2.6] * 150 + [0.0]  # mean 1.3, standard error 0.24
    diagnosis = diagnose(history(steps, *constant(steps, 300, logit_std=1e-2), loss=losses), THRESHOLDS)
    assert diagnosis.verdict is Verdict.undecided
    slow = Diagnosis(Verdict.slow, 100)
    assert diagnose(history(steps, *constant(steps, 300, logit_std=1e-2), loss=losses), THRESHOLDS, slow) is slow


def test_loss_around_the_threshold_does_not_make_the_verdict_flip():
    steps = plan()
    shots = [snapshot(steps, step, logit_std=1e-2 * math.exp(step / 50)) for step in range(0, 301, 30)]
    diagnosis = diagnose(history(steps, *shots), THRESHOLDS)
    assert diagnosis.verdict is Verdict.slow
    assert diagnose(history(steps, *shots, loss=0.96 * CHANCE), THRESHOLDS, diagnosis) is diagnosis
    diagnosis = diagnose(history(steps, *shots, loss=0.94 * CHANCE), THRESHOLDS, diagnosis)
    assert diagnosis.verdict is Verdict.healthy
    assert diagnose(history(steps, *shots, loss=0.96 * CHANCE), THRESHOLDS, diagnosis) is diagnosis
    assert diagnose(history(steps, *shots, loss=0.98 * CHANCE), THRESHOLDS, diagnosis).verdict is Verdict.slow


def test_run_that_has_learned_stays_healthy_while_no_other_rule_applies():
    steps = plan()
    shots = constant(steps, 90, logit_std=1e-2)
    diagnosis = diagnose(history(steps, *shots, loss=1.2), THRESHOLDS)
    assert diagnosis.verdict is Verdict.healthy
    assert diagnose(history(steps, *shots), THRESHOLDS).verdict is Verdict.undecided
    assert diagnose(history(steps, *shots), THRESHOLDS, diagnosis) is diagnosis


COLLAPSED = {"logit_std": 1e-6, "depth_ratio": 1e-4, "per_lr": 5e-3}


def test_collapse_is_found_at_its_first_snapshot_with_all_findings():
    steps = plan(bias_correction=False)
    diagnosis = diagnose(history(steps, *constant(steps, 60), snapshot(steps, 90, **COLLAPSED)), THRESHOLDS)
    assert diagnosis.verdict is Verdict.collapsed
    assert diagnosis.verdict.doomed
    assert diagnosis.since_step == 90
    assert [(f.signal, f.layer, f.threshold, f.step) for f in diagnosis.findings] == [
        ("depth_ratio", "enc.l.0.query", 3e-2, 90),
        ("update_per_lr/linear", None, 1e-2, 90),
        ("logit_std", None, 3e-5, 90),
    ]
    assert [f.value for f in diagnosis.findings] == pytest.approx([1e-4, 5e-3, 1e-6])
    assert str(diagnosis) == (
        "step 90: collapsed - gradients vanish towards the input (first/last layer 1e-4 < 0.03, enc.l.0.query), "
        "the weights barely move (update/learning rate 5e-3 < 0.01), "
        "every text gets the same logits (standard deviation 1e-6 < 3e-5). "
        "Likely cause: an effective learning rate of 4.1e-3 at step 60, 4.1x the nominal rate of that step "
        "(no bias correction, warm-up 0.1). "
        "Try schedule.warmup_frac=0.7 or optimizer.bias_correction=true."
    )


@pytest.mark.parametrize(
    "signals",
    [
        {"logit_std": 1e-6},  # normal gradients and updates: a new, narrow model
        {"depth_ratio": 1e-4},  # logits that depend on the text: no collapse
        {"per_lr": 5e-3},
        {"logit_std": math.nan, "depth_ratio": 1e-4},  # batches of one text have no standard deviation
    ],
)
def test_one_abnormal_signal_is_not_a_collapse(signals):
    steps = plan()
    shots = [*constant(steps, 60), snapshot(steps, 90, **signals)]
    assert diagnose(history(steps, *shots), THRESHOLDS).verdict is Verdict.undecided


@pytest.mark.parametrize("signals", [{"depth_ratio": 1e-4}, {"per_lr": 5e-3}])
def test_equal_logits_and_one_more_signal_are_a_collapse(signals):
    steps = plan()
    shots = [*constant(steps, 60), snapshot(steps, 90, logit_std=1e-6, **signals)]
    assert diagnose(history(steps, *shots), THRESHOLDS).verdict is Verdict.collapsed


def test_collapse_of_a_run_that_has_learned_takes_more_than_one_unusual_batch():
    steps = plan()
    shots = [*constant(steps, 300, logit_std=0.9, depth_ratio=1e-2), snapshot(steps, 330, **COLLAPSED)]
    diagnosis = diagnose(history(steps, *shots[:-1], loss=1.1), THRESHOLDS)
    assert diagnose(history(steps, *shots, loss=1.1), THRESHOLDS, diagnosis) is diagnosis
    assert diagnose(history(steps, *shots, loss=CHANCE), THRESHOLDS, diagnosis).verdict is Verdict.collapsed
    for step in (360, 390):  # three batches in a row are no outliers, whatever the loss
        assert diagnose(history(steps, *shots, loss=1.1), THRESHOLDS, diagnosis) is diagnosis
        shots.append(snapshot(steps, step, **COLLAPSED))
    assert diagnose(history(steps, *shots, loss=1.1), THRESHOLDS, diagnosis).verdict is Verdict.collapsed


def test_collapse_is_withdrawn_when_the_logits_have_recovered():
    steps = plan()
    shots = [*constant(steps, 60), snapshot(steps, 90, **COLLAPSED)]
    diagnosis = diagnose(history(steps, *shots), THRESHOLDS)
    for step in (120, 150):
        shots.append(snapshot(steps, step, logit_std=1e-2))
        assert diagnose(history(steps, *shots), THRESHOLDS, diagnosis) is diagnosis
    shots.append(snapshot(steps, 180, logit_std=1e-2))
    assert diagnose(history(steps, *shots), THRESHOLDS, diagnosis).verdict is Verdict.slow


@pytest.mark.parametrize("initial_std", [0.02, 1.0])
def test_collapse_with_a_large_initial_logit_std_is_relative_to_it(initial_std):
    """A pretrained MiniLM starts at 0.02: values of a plateau in a small model are a collapse there."""
    steps = plan()
    start = snapshot(steps, 0, logit_std=initial_std)
    shrunk = {"logit_std": 0.029 * initial_std, "depth_ratio": 0.014}
    diagnosis = diagnose(history(steps, start, snapshot(steps, 30, **shrunk)), THRESHOLDS)
    assert diagnosis.verdict is Verdict.collapsed
    assert diagnosis.findings[-1].threshold == pytest.approx(0.03 * initial_std)
    for signals in ({"logit_std": 0.031 * initial_std}, {"depth_ratio": 0.016, "per_lr": 0.005}):
        run = history(steps, start, snapshot(steps, 30, **(shrunk | signals)))
        assert diagnose(run, THRESHOLDS).verdict is Verdict.undecided
    late = history(steps, snapshot(steps, 30, logit_std=initial_std), snapshot(steps, 60, **shrunk))
    assert diagnose(late, THRESHOLDS).verdict is Verdict.undecided  # step 0 was not measured


@pytest.mark.parametrize(("depth_ratio", "stays"), [(0.14, True), (0.16, False)])
def test_collapse_relative_to_the_initial_logits_is_withdrawn_when_gradients_have_recovered(depth_ratio, stays):
    steps = plan()
    shots = [snapshot(steps, 0, logit_std=0.02), snapshot(steps, 60, logit_std=5e-4, depth_ratio=0.014)]
    diagnosis = diagnose(history(steps, *shots), THRESHOLDS)
    assert diagnosis.verdict is Verdict.collapsed
    shots += [snapshot(steps, step, logit_std=5e-4, depth_ratio=depth_ratio) for step in (90, 120, 150)]
    assert (diagnose(history(steps, *shots), THRESHOLDS, diagnosis) is diagnosis) is stays


def test_slope_of_logits_that_have_shrunk_is_not_used():
    """A BERT-base on a plateau that ended: 0.01 of the initial standard deviation, gradients that vanish in part."""
    steps = plan(lr=1e-4)
    shots = [snapshot(steps, step, logit_std=2e-4, depth_ratio=0.016) for step in range(30, 600, 30)]
    shrunk = history(steps, snapshot(steps, 0, logit_std=2e-2), *shots[:9])
    assert diagnose(shrunk, THRESHOLDS).verdict is Verdict.slow
    flat = history(steps, snapshot(steps, 0, logit_std=2e-4), *shots[:9])
    assert diagnose(flat, THRESHOLDS).verdict is Verdict.not_learning
    late = history(steps, snapshot(steps, 0, logit_std=2e-2), *shots)
    diagnosis = diagnose(late, THRESHOLDS)
    assert diagnosis.verdict is Verdict.not_learning  # not even the fastest known growth would suffice now
    assert "too large" in diagnosis.cause  # larger or more steps would not help
    assert "too small" in diagnose(flat, THRESHOLDS).cause


def test_trend_of_logits_that_have_recovered_starts_at_their_recovery():
    """A BERT-base at the end of its plateau: 0.05 of the initial standard deviation, then 0.105."""
    steps = plan(lr=5e-5)
    _, *plateau = constant(steps, 330, logit_std=1e-3)
    later = [snapshot(steps, step, logit_std=2.1e-3) for step in (360, 390, 420, 450)]
    first = snapshot(steps, 0, logit_std=2e-2)
    assert diagnose(history(steps, first, *plateau, later[0]), THRESHOLDS).verdict is Verdict.slow
    assert diagnose(history(steps, first, *plateau, *later), THRESHOLDS).verdict is Verdict.not_learning
    never_shrunk = snapshot(steps, 0, logit_std=9e-3)
    assert diagnose(history(steps, never_shrunk, *plateau, later[0]), THRESHOLDS).verdict is Verdict.not_learning


@pytest.mark.parametrize("every", [1, 5, 10])
def test_logits_measured_at_every_tenth_step_only_give_the_same_verdicts(every):
    steps = plan(steps=1000, lr=1e-5)
    shots, diagnosis, changes = [], None, []
    for step in range(0, 1000, every):
        logit_std = math.nan if step % 10 else 1e-3 if step else 2e-2  # 5 % of the value at step 0
        shots.append(snapshot(steps, step, logit_std=logit_std))
        previous, diagnosis = diagnosis, diagnose(history(steps, *shots), THRESHOLDS, diagnosis)
        if previous is None or previous.verdict is not diagnosis.verdict:
            changes.append((diagnosis.verdict, diagnosis.since_step // 10, diagnosis.cause))
    assert [verdict for verdict, *_ in changes] == [Verdict.undecided, Verdict.slow, Verdict.not_learning]
    assert changes[-1][1] in (42, 43)
    assert "too large" in changes[-1][2]


def test_collapse_measured_at_every_step_is_not_withdrawn_sooner():
    steps = plan()
    window = len(steps) // 20
    assert window > 20
    diagnosis = diagnose(history(steps, snapshot(steps, 0), snapshot(steps, 60, **COLLAPSED)), THRESHOLDS)
    shots = [snapshot(steps, 0), snapshot(steps, 60, **COLLAPSED)]
    for step in range(61, 61 + window):
        shots.append(snapshot(steps, step, logit_std=1e-2 if step % 10 == 1 else math.nan))  # measured every tenth step
        later = diagnose(history(steps, *shots), THRESHOLDS, diagnosis)
        assert (later is diagnosis) == (step < 60 + window)
    assert later.verdict is Verdict.undecided


def test_advice_is_a_rate_if_no_other_key_lowers_it():
    steps = plan(lr=1e-3, bias_correction=True, warmup_frac=0.7)
    diagnosis = diagnose(history(steps, *constant(steps, 390), snapshot(steps, 420, **COLLAPSED)), THRESHOLDS)
    assert diagnosis.cause == "a learning rate of 1e-3 at step 419 is too large for this model"
    assert diagnosis.advice == "optimizer.lr=3.3e-4"
    early = diagnose(history(steps, snapshot(steps, 0), snapshot(steps, 43, **COLLAPSED)), THRESHOLDS)
    assert early.advice == "optimizer.lr=3.3e-5"  # it broke at a tenth of the peak


@pytest.mark.parametrize("total_steps", [2, 20, 100, 600, 3000, 10_000])
@pytest.mark.parametrize("warmup_frac", [0.0, 0.1, 0.3, 0.6])
def test_longer_warm_up_is_advised_where_it_halves_the_peak(total_steps, warmup_frac):
    short, long = (plan(total_steps, warmup_frac=frac, bias_correction=False) for frac in (warmup_frac, 0.7))
    run = history(short, snapshot(short, 0), snapshot(short, total_steps - 1, **COLLAPSED))
    advice = diagnose(run, THRESHOLDS).advice or ""
    assert ("warmup_frac=0.7" in advice) == (long.effective_lr.max() < short.effective_lr.max() / 2)


@pytest.mark.parametrize(
    ("keys", "advice"),
    [
        (ScheduleConfig(), "schedule.warmup_frac=0.7 or optimizer.bias_correction=true"),
        (ScheduleConfig(warmup_steps=60), "schedule.warmup_steps=420 or optimizer.bias_correction=true"),
        (ScheduleConfig(function="math.fmod"), "optimizer.bias_correction=true"),
        (
            ScheduleConfig(decay=Decay.warmup_stable_decay, end_factor=0.0, decay_frac=0.5),
            "optimizer.bias_correction=true",
        ),
    ],
)
def test_advice_uses_the_keys_that_take_effect(keys, advice):
    steps = plan(bias_correction=False)
    run = history(steps, snapshot(steps, 0), snapshot(steps, 90, **COLLAPSED))
    assert diagnose(run, THRESHOLDS, setting_names=setting_names(keys)).advice == advice


def test_weight_that_was_not_measured_at_step_0_does_not_hide_the_cause():
    steps = plan(lr=1e-5)
    shots = constant(steps, 150)
    shots[0].values[1] = math.nan
    assert diagnose(history(steps, *shots), THRESHOLDS).advice == "optimizer.lr=3.3e-4 or more steps"


def test_slope_is_unknown_if_the_rate_is_0():
    steps = plan(lr=1e-4)
    steps.effective_lr[100:] = 0
    assert diagnose(history(steps, *constant(steps, 400)), THRESHOLDS).verdict is Verdict.not_learning


def test_cause_before_the_first_update_is_unknown():
    steps = plan(warmup_frac=0.0)
    diagnosis = diagnose(history(steps, snapshot(steps, 0, **COLLAPSED)), THRESHOLDS)
    assert (diagnosis.verdict, diagnosis.cause, diagnosis.advice) == (Verdict.collapsed, None, None)


def test_not_learning_with_too_small_a_rate_is_found_after_a_share_of_the_rates():
    steps = plan(lr=1e-5)
    share = np.cumsum(steps.effective_lr) / steps.effective_lr.sum()
    assert share[120] < 0.3 < share[150]
    assert diagnose(history(steps, *constant(steps, 120)), THRESHOLDS).verdict is Verdict.undecided
    diagnosis = diagnose(history(steps, *constant(steps, 150)), THRESHOLDS)
    assert diagnosis.verdict is Verdict.not_learning
    assert diagnosis.verdict.doomed
    assert str(diagnosis) == (
        "step 150: not learning - the logits barely depend on the text, and even at the fastest growth to be expected "
        "will not by the last step (standard deviation expected at most 1.3e-3 < 3e-3). Likely cause: a learning rate "
        "of 1e-5 is too small: all 600 steps together change the weights by 3 %. Try optimizer.lr=3.3e-4 or more steps."
    )


def test_not_learning_even_at_the_fastest_growth_is_found_at_the_first_update():
    steps = plan(lr=1e-6)
    assert diagnose(history(steps, snapshot(steps, 0)), THRESHOLDS).verdict is Verdict.undecided
    diagnosis = diagnose(history(steps, snapshot(steps, 0), snapshot(steps, 1)), THRESHOLDS)
    assert diagnosis.verdict is Verdict.not_learning
    remaining = steps.effective_lr[2:].sum()
    assert diagnosis.findings[0].value == pytest.approx(1e-3 * math.exp(600 * remaining))
    assert diagnosis.advice == "optimizer.lr=3.3e-4 or more steps"
    shots = [snapshot(steps, 0)]  # too few for a line: without new evidence the verdict stays
    for step in (100, 200, 300):
        shots.append(snapshot(steps, step))
        assert diagnose(history(steps, *shots), THRESHOLDS, diagnosis) is diagnosis


def test_advice_is_never_a_rate_that_mostly_fails():
    steps = plan(steps=100, lr=1e-5)
    diagnosis = diagnose(history(steps, *constant(steps, 40, every=5)), THRESHOLDS)
    assert (diagnosis.verdict, diagnosis.advice) == (Verdict.not_learning, "more steps")


def test_not_learning_with_a_noisy_logit_std_is_not_found():
    steps = plan(lr=1e-4)
    shots = [snapshot(steps, 30 * number, logit_std=2e-4 * math.exp(2 * (-1) ** number)) for number in range(10)]
    assert diagnose(history(steps, *shots), THRESHOLDS).verdict is Verdict.slow
    assert diagnose(history(steps, *constant(steps, 270, logit_std=2e-4)), THRESHOLDS).verdict is Verdict.not_learning


def test_logit_std_that_grows_fast_enough_is_undecided():
    steps = plan(lr=2e-5)
    lr_sum = np.cumsum(steps.effective_lr)
    for target, verdict in ((1e-3, Verdict.not_learning), (1.0, Verdict.undecided)):
        rate = math.log(target / 1e-4) / lr_sum[-1]
        shots = [snapshot(steps, step, logit_std=1e-4 * math.exp(rate * lr_sum[step])) for step in range(0, 170, 10)]
        assert diagnose(history(steps, *shots), THRESHOLDS).verdict is verdict


def test_not_learning_with_large_steps_blames_too_large_a_rate():
    steps = plan(lr=1e-2)
    diagnosis = diagnose(history(steps, *constant(steps, 590, every=10)), THRESHOLDS)
    assert diagnosis.verdict is Verdict.not_learning
    assert diagnosis.cause == "a learning rate of 0.01 is too large"


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.inf)])
def test_non_finite_loss_or_gradient_norm_is_a_divergence(loss, norm):
    steps = plan()
    shots = constant(steps, 60)
    shots[-1].values[-3:, STATISTICS.index("grad_max")] = math.inf
    run = history(steps, *shots)
    run.losses[-1], run.grad_norms[-1] = loss, norm
    diagnosis = diagnose(run, THRESHOLDS)
    assert diagnosis.verdict is Verdict.diverged
    assert diagnosis.verdict.doomed
    assert diagnosis.findings[0].layer == "classifier"
    start = "loss/train is" if not math.isfinite(loss) else "grad_norm is"
    assert str(diagnosis).startswith(f"step 60: diverged - {start} ")
    assert str(diagnosis).endswith("too large. Try optimizer.lr=9.8e-5.")


def test_advice_after_a_divergence_is_below_the_rate_that_broke_it():
    steps = plan(lr=1e6, warmup_frac=1.0)
    diagnosis = diagnose(History(steps, [1.0] * 12 + [math.nan], [1.0] * 13), THRESHOLDS)
    evidence = "small models learn at peak effective rates up to about 1e-3 (docs/article.md)"
    assert diagnosis.cause == f"a learning rate of 1.8e4 is too large: {evidence}"
    assert diagnosis.advice == "optimizer.lr=1e-3"  # a tenth of the rate is not known to work for any model


def test_divergence_at_a_tiny_rate_has_no_cause():
    steps = plan(lr=2e-5)
    diagnosis = diagnose(History(steps, [CHANCE, CHANCE, math.nan], [1.0, 1.0, math.nan]), THRESHOLDS)
    assert (diagnosis.verdict, diagnosis.cause, diagnosis.advice) == (Verdict.diverged, None, None)


def test_divergence_at_the_first_step_has_no_cause():
    diagnosis = diagnose(History(plan(), [math.nan], [math.nan]), THRESHOLDS)
    assert str(diagnosis) == "step 0: diverged - loss/train is nan."


def test_thresholds_decide_the_verdict():
    steps = plan()
    run = history(steps, *constant(steps, 30, logit_std=1e-3))
    strict = dataclasses.replace(THRESHOLDS, min_logit_std=1e-2, min_depth_ratio=2.0)
    assert diagnose(run, THRESHOLDS).verdict is Verdict.undecided
    assert diagnose(run, strict).verdict is Verdict.collapsed


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("warmup_frac", [0.0, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("lr", [1e-5, 1e-3, 1e-1])
@pytest.mark.parametrize("step", [1, 30, 300, 599])
def test_advice_is_an_override_that_hydra_parses(bias_correction, warmup_frac, lr, step):
    steps = plan(lr=lr, warmup_frac=warmup_frac, bias_correction=bias_correction)
    diagnosis = diagnose(history(steps, snapshot(steps, 0), snapshot(steps, step, **COLLAPSED)), THRESHOLDS)
    assert diagnosis.verdict is Verdict.collapsed
    if diagnosis.advice is None:
        assert not steps.effective_lr[:step].any()
        return
    for advice in diagnosis.advice.split(" or "):
        override = OverridesParser.create().parse_override(advice)
        if override.key_or_group == "optimizer.lr":
            assert 0 < override.value() < lr


# --- stored diagnoses ----------------------------------------------------------------------------


def stored(diagnosis):
    """A diagnosis as in a JSON file, with null for values that JSON lacks."""
    text = json.dumps(dataclasses.asdict(diagnosis)).replace("NaN", "null").replace("Infinity", "null")
    return json.loads(text)


def test_diagnosis_is_unchanged_by_json():
    steps = plan(bias_correction=False)
    collapse = diagnose(history(steps, *constant(steps, 60), snapshot(steps, 90, **COLLAPSED)), THRESHOLDS)
    learned = diagnose(history(steps, *constant(steps, 300), loss=1.2), THRESHOLDS)
    for diagnosis in (collapse, learned, Diagnosis(Verdict.undecided, 3)):
        assert Diagnosis.from_dict(stored(diagnosis)) == diagnosis
    diverged = divergence(steps, "loss/test", math.nan, 30)
    again = Diagnosis.from_dict(stored(diverged))
    assert str(again) == str(diverged)
    assert math.isnan(again.findings[0].value)
    assert again.findings[0].threshold == math.inf


def test_diagnosis_of_version_0_1_gets_the_current_names():
    finding = {"layer": None, "value": 1e-6, "threshold": 3e-5, "step": 60, "words": "every text gets the same logits"}
    fields = {"verdict": "collapsed", "since_step": 60, "cause": "too large a rate", "advice": "optimizer.lr=1e-4"}
    old = fields | {"findings": [finding | {"signal": name} for name in ("depth_profile", "logit_spread", "grad_norm")]}
    diagnosis = Diagnosis.from_dict(old)
    assert [finding.signal for finding in diagnosis.findings] == ["depth_ratio", "logit_std", "grad_norm"]
    assert diagnosis.findings[0].text == "every text gets the same logits"
    assert (diagnosis.verdict, diagnosis.cause, diagnosis.advice) == (
        Verdict.collapsed,
        "too large a rate",
        "optimizer.lr=1e-4",
    )
    healthy = {"verdict": "healthy", "since_step": 0, "findings": [], "cause": None, "advice": None}
    assert Diagnosis.from_dict(healthy) == Diagnosis(Verdict.undecided, 0)  # 0.1 had no separate verdict for it


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"verdict": "rosy", "since_step": 1},
        {"verdict": "slow", "since_step": "soon"},
        {"verdict": "slow", "since_step": 1, "findings": [{"signal": "loss/train"}]},
    ],
)
def test_diagnosis_of_invalid_fields_raises_an_error_that_readers_catch(fields):
    with pytest.raises((KeyError, TypeError, ValueError)):
        Diagnosis.from_dict(fields)


def test_doomed_verdicts_are_collapsed_diverged_and_not_learning():
    assert [verdict for verdict in Verdict if verdict.doomed] == [
        Verdict.collapsed,
        Verdict.diverged,
        Verdict.not_learning,
    ]


def test_loss_far_above_chance_late_in_the_run_is_not_a_plateau():
    steps = plan()
    early = history(steps, *constant(steps, 150), loss=50.0)
    assert diagnose(early, THRESHOLDS).verdict is Verdict.undecided
    diagnosis = diagnose(history(steps, *constant(steps, 210), loss=50.0), THRESHOLDS)
    assert diagnosis.verdict is Verdict.not_learning
    assert "the loss is far above chance (50 > 13.9)" in str(diagnosis)
    assert diagnosis.advice.startswith("optimizer.lr=")
    at_chance = history(steps, *constant(steps, 210), loss=CHANCE)
    assert diagnose(at_chance, THRESHOLDS).verdict is Verdict.slow
