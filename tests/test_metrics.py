"""Metrics of an evaluation, next to scipy's and scikit-learn's."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from bertmon.metrics import (
    EvalResult,
    best_evaluation,
    did_not_learn,
    guessing_p,
    precision_recall,
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
def test_did_not_learn_by_accuracy_alone_is_as_written_out(accuracy, majority_share, texts, expected):
    assert did_not_learn(EvalResult(1, 1.0, accuracy), majority_share, texts) is expected


def plain_guessing_p(confusion):
    """The docstring's tests, by scipy."""
    n, labeled, predicted = confusion.sum(), confusion.sum(axis=1), confusion.sum(axis=0)
    accuracy = stats.binom.sf(np.trace(confusion) - 1, n, labeled.max() / n)
    fisher = [stats.hypergeom.sf(confusion[c, c] - 1, n, labeled[c], predicted[c]) for c in range(len(confusion))]
    tests = len(confusion) if len(confusion) > 2 else 1
    return min(1.0, 2 * min(accuracy, tests * min(fisher)))


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("texts", [10, 60, 400])
@pytest.mark.parametrize("skill", [0.0, 0.2, 0.9])
def test_guessing_p_is_that_of_scipys_exact_tests(classes, texts, skill):
    rng = np.random.default_rng(classes * texts)
    shares = rng.dirichlet(np.ones(classes))
    labels = rng.choice(classes, texts, p=shares)
    predictions = np.where(rng.random(texts) < skill, labels, rng.choice(classes, texts, p=shares))
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    assert guessing_p(confusion) == pytest.approx(plain_guessing_p(confusion), rel=1e-6, abs=1e-12)
    evaluation = EvalResult.from_confusion(1, 1.0, confusion)
    assert did_not_learn(evaluation, 0.5, texts) == (plain_guessing_p(confusion) > 0.005)


@pytest.mark.parametrize(
    ("confusion", "expected"),
    [
        ([[36, 0], [4, 0]], True),  # always the majority
        ([[36, 0], [0, 4]], False),  # all right, of which guessing would have got 36
        ([[18, 18], [2, 2]], True),
        ([[950, 10], [20, 20]], False),  # half of the rare class found
    ],
)
def test_did_not_learn_by_confusion_of_imbalanced_classes_is_as_written_out(confusion, expected):
    evaluation = EvalResult.from_confusion(1, 1.0, np.array(confusion))
    assert did_not_learn(evaluation, 0.9, sum(map(sum, confusion))) is expected


@pytest.mark.parametrize("majority_share", [0.25, 0.5, 0.9])
def test_texts_needed_is_the_smallest_number_that_tells_halfway_from_guessing(majority_share):
    needed, halfway = texts_needed(majority_share), (1 + majority_share) / 2
    assert needed > 1
    assert not did_not_learn(EvalResult(1, 1.0, round(halfway * needed) / needed), majority_share, needed)
    for texts in range(1, needed):
        assert did_not_learn(EvalResult(1, 1.0, round(halfway * texts) / texts), majority_share, texts)


# --- metrics of a confusion matrix ---------------------------------------------------------------


@pytest.mark.parametrize("classes", [3, 5])
@pytest.mark.parametrize("missing", [False, True])
def test_eval_result_from_confusion_has_the_metrics_of_scikit_learn(classes, missing):
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes - missing, 80)  # with `missing` the last class has no text
    predictions = np.where(rng.random(80) < 0.5, labels, rng.integers(0, classes - missing, 80))
    confusion = metrics.confusion_matrix(labels, predictions, labels=range(classes))
    result = EvalResult.from_confusion(7, 1.5, confusion)
    assert (result.step, result.loss) == (7, 1.5)
    assert result.accuracy == pytest.approx(metrics.accuracy_score(labels, predictions))
    assert result.f1_macro == pytest.approx(metrics.f1_score(labels, predictions, average="macro"))
    assert result.mcc == pytest.approx(metrics.matthews_corrcoef(labels, predictions))
    precision, recall = precision_recall(confusion)
    expected = metrics.precision_recall_fscore_support(labels, predictions, labels=range(classes), zero_division=0)
    assert precision.tolist() == pytest.approx(expected[0].tolist())
    assert recall.tolist() == pytest.approx(expected[1].tolist())


def test_mcc_of_constant_predictions_is_0():
    assert EvalResult.from_confusion(1, 1.0, np.array([[30, 0], [10, 0]])).mcc == 0.0


def test_best_evaluation_is_the_first_highest_with_a_finite_loss():
    values = [(1, 1.0, 0.5), (2, 0.9, 0.75), (3, 0.8, 0.75), (4, math.nan, 1.0)]
    evaluations = [EvalResult(*value, mcc=-value[2]) for value in values]
    assert best_evaluation(evaluations, "accuracy").step == 2
    assert best_evaluation(evaluations, "mcc").step == 1
    assert best_evaluation(evaluations, "f1_macro") is None  # version 0.1 knew none
    assert best_evaluation([], "accuracy") is None


# --- intervals and JSON --------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "n"), [(0, 1), (1, 1), (0, 20), (3, 20), (20, 20), (137, 1000)])
def test_wilson_interval_is_that_of_scipy(count, n):
    expected = stats.binomtest(count, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(count, n) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_wilson_interval_of_nothing_seen_is_everything():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_eval_result_through_json_is_the_same():
    result = EvalResult.from_confusion(3, 1.5, np.array([[3, 1], [0, 4]]))
    assert EvalResult.from_dict(json.loads(json.dumps(dataclasses.asdict(result)))) == result


def test_eval_result_of_version_0_1_has_nan_for_what_it_did_not_know():
    result = EvalResult.from_dict({"step": 3, "loss": None, "accuracy": 0.5})
    assert (result.step, result.accuracy, result.confusion) == (3, 0.5, None)
    assert all(math.isnan(value) for value in (result.loss, result.f1_macro, result.mcc))
    for missing in ("step", "loss", "accuracy"):
        fields = {"step": 3, "loss": 1.0, "accuracy": 0.5}
        del fields[missing]
        with pytest.raises(KeyError):
            EvalResult.from_dict(fields)
