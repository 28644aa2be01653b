"""Accuracy against guessing, intervals, and evaluations as JSON; confusion matrices are in test_confusion.py."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from bertmon.metrics import (
    EvalResult,
    did_not_learn,
    texts_needed,
    wilson_interval,
)

# --- did a run learn -----------------------------------------------------------------------------


@pytest.mark.parametrize("texts", [1, 2, 7, 40, 400, 5000])
@pytest.mark.parametrize("majority_share", [0.05, 0.25, 0.5, 0.9, 0.999])
def test_did_not_learn_by_accuracy_alone_is_the_exact_binomial_test(texts, majority_share):
    bound = stats.binom.ppf(0.995, texts, majority_share)
    near = {count for offset in range(-3, 4) if 0 <= (count := int(bound) + offset) <= texts}
    for correct in {0, texts, *near}:
        evaluation = EvalResult(1, 1.0, correct / texts)
        assert did_not_learn(evaluation, majority_share, texts) == (correct <= bound)


@pytest.mark.parametrize(
    ("accuracy", "majority_share", "texts", "expected"),
    [
        (0.25, 0.25, 400, True),
        (0.3075, 0.25, 400, True),  # 123 of 400: the bound itself
        (0.31, 0.25, 400, False),
        (1.0, 0.9, 40, True),  # guessing gets all 40 in more than one of 200 test splits
        (1.0, 0.9, 51, False),
        (1.0, 1.0, 40, True),  # a test split of one class
    ],
)
def test_did_not_learn_by_accuracy_alone_in_known_cases(accuracy, majority_share, texts, expected):
    assert did_not_learn(EvalResult(1, 1.0, accuracy), majority_share, texts) is expected


@pytest.mark.parametrize("majority_share", [0.25, 0.5, 0.9])
def test_texts_needed_is_the_smallest_number_that_tells_halfway_from_guessing(majority_share):
    needed, halfway = texts_needed(majority_share), (1 + majority_share) / 2
    assert needed > 1
    assert not did_not_learn(EvalResult(1, 1.0, round(halfway * needed) / needed), majority_share, needed)
    for texts in range(1, needed):
        assert did_not_learn(EvalResult(1, 1.0, round(halfway * texts) / texts), majority_share, texts)


# --- intervals and JSON --------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "n"), [(0, 1), (1, 1), (0, 20), (3, 20), (20, 20), (137, 1000)])
def test_wilson_interval_matches_scipy(count, n):
    expected = stats.binomtest(count, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(count, n) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_wilson_interval_of_no_trials_is_0_to_1():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_eval_result_is_unchanged_by_json():
    result = EvalResult.from_confusion(3, 1.5, np.array([[3, 1], [0, 4]]))
    assert EvalResult.from_dict(json.loads(json.dumps(dataclasses.asdict(result)))) == result


def test_eval_result_of_version_0_1_has_nan_for_metrics_it_lacked():
    result = EvalResult.from_dict({"step": 3, "loss": None, "accuracy": 0.5})
    assert (result.step, result.accuracy, result.confusion) == (3, 0.5, None)
    assert all(math.isnan(value) for value in (result.loss, result.f1_macro, result.mcc))
    for missing in ("step", "loss", "accuracy"):
        fields = {"step": 3, "loss": 1.0, "accuracy": 0.5}
        del fields[missing]
        with pytest.raises(KeyError):
            EvalResult.from_dict(fields)
