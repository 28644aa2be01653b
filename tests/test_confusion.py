"""Metrics of a confusion matrix, compared with scikit-learn's and scipy's."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest, fisher_exact
from sklearn import metrics as reference

from bertmon.metrics import (
    EvalResult,
    best_evaluation,
    did_not_learn,
    f1_macro,
    guessing_p,
    matthews,
    precision_recall,
)


def predictions(classes, texts, skill, seed=0):
    """Random labels, and predictions: copies of a share of `skill` of the labels, guesses for the rest."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, texts)
    return labels, np.where(rng.random(texts) < skill, labels, rng.integers(0, classes, texts))


@pytest.mark.parametrize(("classes", "texts", "skill"), [(2, 50, 0.3), (4, 200, 0.5), (7, 90, 0.0), (3, 30, 1.0)])
def test_metrics_of_a_confusion_matrix_match_scikit_learn(classes, texts, skill):
    labels, predicted = predictions(classes, texts, skill)
    confusion = reference.confusion_matrix(labels, predicted, labels=range(classes))
    result = EvalResult.from_confusion(3, 1.5, confusion)
    assert (result.step, result.loss) == (3, 1.5)
    assert result.accuracy == reference.accuracy_score(labels, predicted)
    assert result.f1_macro == pytest.approx(reference.f1_score(labels, predicted, average="macro"))
    assert result.mcc == pytest.approx(reference.matthews_corrcoef(labels, predicted))
    expected = reference.precision_recall_fscore_support(labels, predicted, labels=range(classes), zero_division=0)
    for ours, theirs in zip(precision_recall(confusion), expected[:2], strict=True):
        assert ours == pytest.approx(theirs)


def test_metrics_of_constant_predictions_are_those_of_guessing():
    confusion = np.array([[0, 6], [0, 4]])
    assert matthews(confusion) == 0.0
    assert f1_macro(confusion) == pytest.approx((0 + 2 * 4 / 14) / 2)
    assert guessing_p(confusion) == 1.0


@pytest.mark.parametrize(("classes", "texts", "skill"), [(2, 40, 0.2), (2, 400, 0.1), (4, 300, 0.1), (5, 60, 0.6)])
def test_guessing_p_combines_two_exact_tests_corrected_for_their_number(classes, texts, skill):
    labels, predicted = predictions(classes, texts, skill)
    confusion = reference.confusion_matrix(labels, predicted, labels=range(classes))
    right, share = int(np.trace(confusion)), np.bincount(labels).max() / texts
    accuracy = binomtest(right, texts, share, alternative="greater").pvalue
    fishers = [
        fisher_exact(
            reference.confusion_matrix(labels == label, predicted == label, labels=[True, False]), alternative="greater"
        ).pvalue
        for label in range(classes)
    ]
    tests = classes if classes > 2 else 1  # with two classes both of Fisher's tests are the same
    assert guessing_p(confusion) == pytest.approx(min(1.0, 2 * min(accuracy, tests * min(fishers))))


def test_guessing_rarely_passes_for_learning():
    passed = 0
    for seed in range(400):
        labels, predicted = predictions(3, 120, 0.0, seed)
        confusion = reference.confusion_matrix(labels, predicted, labels=range(3))
        passed += not did_not_learn(EvalResult.from_confusion(0, 1.0, confusion), 0.4, 120)
    assert passed <= 6  # 0.5 % of 400 are 2; more than 6 occur once in 200 such trials


@pytest.mark.parametrize(
    ("confusion", "expected"),
    [
        ([[36, 0], [0, 4]], False),  # 100 % on 40 texts of which 90 % are of one class
        ([[36, 0], [4, 0]], True),  # the majority class for every text: 90 %
        ([[190, 0], [6, 4]], False),  # 95 : 5, four of ten rare texts found
        ([[95, 95], [5, 5]], True),  # a coin
        ([[40, 60], [60, 40]], True),  # worse than a coin
        ([[100, 0, 0, 0]] + [[100, 0, 0, 0]] * 3, True),  # a run that collapsed
    ],
)
def test_did_not_learn_is_right_for_imbalanced_and_small_test_sets(confusion, expected):
    matrix = np.array(confusion)
    majority = matrix.sum(axis=1).max() / matrix.sum()
    assert did_not_learn(EvalResult.from_confusion(0, 1.0, matrix), majority, int(matrix.sum())) is expected


def test_best_evaluation_uses_the_metric_and_takes_the_first_of_ties():
    rising = [EvalResult(step, 1.0, accuracy, mcc=mcc) for step, accuracy, mcc in ((1, 0.5, 0.3), (2, 0.6, 0.1))]
    assert best_evaluation(rising, "accuracy").step == 2
    assert best_evaluation(rising, "mcc").step == 1
    assert best_evaluation([*rising, EvalResult(3, 1.0, 0.6)], "accuracy").step == 2
    assert best_evaluation([EvalResult(1, float("nan"), 0.9), *rising], "accuracy").step == 2
    assert best_evaluation([EvalResult(1, 1.0, 0.9)], "f1_macro") is None  # of version 0.1
    for permutation in itertools.permutations(rising):
        assert best_evaluation(permutation, "accuracy").step == 2
