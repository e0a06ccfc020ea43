"""Findings and answers."""

import numpy as np
import pytest

from modeling_gaze2report.processing.errors import InputError
from modeling_gaze2report.processing.metrics.findings import (
    answer_statistics,
    auroc,
    finding_scores,
    finding_statistics,
)
from modeling_gaze2report.processing.metrics.resampling import Bootstrap, score_all


def test_auroc_equals_scikit_learn_with_ties():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    scores, labels = generator.integers(0, 5, 200) / 4, generator.integers(0, 2, 200)

    assert auroc(scores, labels) == pytest.approx(metrics.roc_auc_score(labels, scores))


def test_uncertain_and_unmentioned_labels_are_left_out():
    assert auroc([0.9, 0.1, 0.0, 1.0], [1, 0, -1, np.nan]) == 1


def test_classes_with_one_label_are_left_out_and_counted():
    probabilities = np.array([[0.9, 0.2], [0.1, 0.3], [0.8, 0.1]])
    labels = np.array([[1, 0], [0, 0], [1, 0]])

    result = finding_scores(probabilities, labels, names=("a", "b"))

    assert (result["auroc_macro"], result["auroc_classes"]) == (1, 1)
    assert (result["f1_macro"], result["f1_classes"]) == (1, 1)
    assert np.isnan(result["classes"]["b"]["auroc"])
    assert result["classes"]["b"]["negatives"] == 3


def test_statistics_give_the_same_scores():
    generator = np.random.default_rng(0)
    probabilities = generator.random((80, 14)).round(1)
    labels = generator.choice([1, 0, -1, np.nan], (80, 14))
    labels[:, 3] = 0

    statistics = finding_statistics(probabilities, labels)
    expected = finding_scores(probabilities, labels)

    assert statistics["auroc_macro"].score() == pytest.approx(expected["auroc_macro"])
    assert statistics["f1_macro"].score() == pytest.approx(expected["f1_macro"])


def test_resampled_auroc_equals_auroc_of_repeated_reports():
    generator = np.random.default_rng(1)
    probabilities, labels = generator.random((20, 1)), generator.integers(0, 2, (20, 1))
    weights = generator.integers(0, 4, 20)
    metric = finding_statistics(probabilities, labels)["auroc_macro"]

    repeated = auroc(np.repeat(probabilities[:, 0], weights), np.repeat(labels[:, 0], weights))

    assert metric.score_of_weights(weights[None].astype(float))[0] == pytest.approx(repeated)
    assert score_all({"auroc": metric}, Bootstrap(50))["auroc"]["ci95"][0] < metric.score()


def test_answers_are_compared_without_case_articles_and_punctuation():
    statistics = answer_statistics(["The left lung.", "right", ""], [["left lung"], ["left"], ["yes"]])

    assert statistics["answer_accuracy"].score() == pytest.approx(1 / 3)


def test_a_longer_answer_to_a_yes_no_question_counts_by_its_first_word():
    assert answer_statistics(["No, there is none."], [["no"]])["answer_accuracy"].score() == 1


def test_token_f1_by_hand():
    # "left pleural effusion" and "small left effusion": two of three words each.
    statistics = answer_statistics(["left pleural effusion"], [["small left effusion", "none"]])

    assert statistics["answer_token_f1"].score() == pytest.approx(2 / 3)


def test_an_answer_needs_a_reference():
    with pytest.raises(InputError, match="no reference"):
        answer_statistics(["yes"], [[]])
