"""Findings and answers: AUROC and F1 that say which classes they rest on, answer accuracy and token F1."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from ..report_labels import FINDINGS
from .resampling import Bootstrap, RankStatistics, Statistics, mean_statistics, score_all


def auroc(scores, labels) -> float:
    """Area under the ROC curve by ranks, ties counting half; NaN when all labels are equal.

    Args:
        scores: higher = more likely, shape (n,).
        labels: 1 or 0; NaN and -1 (not mentioned, uncertain) are left out.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if scores.shape != labels.shape or scores.ndim != 1:
        raise InputError(f"scores and labels: shapes {scores.shape} and {labels.shape}; expected two of (n,)")
    known = np.isin(labels, (0, 1))
    scores, positive = scores[known], labels[known] == 1
    if not np.isfinite(scores).all():
        raise InputError("scores: a value is not finite")
    if positive.all() or not positive.any():
        return float("nan")
    negatives = np.sort(scores[~positive])
    below = np.searchsorted(negatives, scores[positive], side="left")
    not_above = np.searchsorted(negatives, scores[positive], side="right")
    return float((below + not_above).mean() / (2 * len(negatives)))


def finding_scores(probabilities, labels, thresholds=0.5, names: Sequence[str] = FINDINGS) -> dict:
    """AUROC and F1 of each finding, and their macro means over the findings that are defined.

    scikit-learn gives NaN for a class with one label value, torchmetrics gives 0: the macro means then differ without
    a word. Here such classes are left out and counted.

    Args:
        probabilities: (n, classes).
        labels: (n, classes) of 1, 0, and NaN or -1 for what is left out.
        thresholds: one for all classes or one each, chosen on validation data; a finding is called at or above it.
        names: names of the classes.

    Returns:
        `auroc_macro`, `f1_macro`, `auroc_classes` and `f1_classes` (how many they rest on), and `classes`, which
        gives for each name `auroc`, `f1`, `positives` and `negatives`.
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if probabilities.shape != labels.shape or probabilities.ndim != 2 or probabilities.shape[1] != len(names):
        raise InputError(f"shapes {probabilities.shape} and {labels.shape}; expected two of (n, {len(names)})")
    thresholds = np.broadcast_to(np.asarray(thresholds, dtype=np.float64), (len(names),))
    classes = {}
    for index, name in enumerate(names):
        known = np.isin(labels[:, index], (0, 1))
        true, called = labels[known, index] == 1, probabilities[known, index] >= thresholds[index]
        hits, false, missed = (true & called).sum(), (~true & called).sum(), (true & ~called).sum()
        # Without a positive label F1 says nothing about the finding: 0 or undefined whatever is called.
        f1 = 2 * hits / (2 * hits + false + missed) if true.any() else float("nan")
        classes[name] = {
            "auroc": auroc(probabilities[:, index], labels[:, index]),
            "f1": float(f1),
            "positives": int(true.sum()),
            "negatives": int((~true).sum()),
        }
    result = {"classes": classes}
    for metric in ("auroc", "f1"):
        values = np.array([record[metric] for record in classes.values()])
        defined = values[np.isfinite(values)]
        result[f"{metric}_macro"] = float(defined.mean()) if defined.size else float("nan")
        result[f"{metric}_classes"] = int(defined.size)
    return result


def finding_statistics(probabilities, labels, thresholds=0.5) -> dict[str, Statistics | RankStatistics]:
    """`auroc_macro` and `f1_macro` of `finding_scores`, ready for intervals and paired comparisons.

    A class that is not defined in a resample is left out of that resample's mean.
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if probabilities.shape != labels.shape or probabilities.ndim != 2:
        raise InputError(f"shapes {probabilities.shape} and {labels.shape}; expected two of (n, classes)")
    true, known = labels == 1, np.isin(labels, (0, 1))
    called = (probabilities >= thresholds) & known
    counts = np.stack([true & called, ~true & called, true & ~called], axis=2).astype(np.float64)
    orders = [_rank_order(probabilities[:, column]) for column in range(labels.shape[1])]

    def area(weights: np.ndarray) -> np.ndarray:
        areas = np.array(
            [_weighted_auroc(order, true[:, i], known[:, i], weights) for i, order in enumerate(orders)]
        )  # (classes, resamples)
        defined = np.isfinite(areas)
        total = defined.sum(axis=0)
        return np.where(total > 0, np.where(defined, areas, 0).sum(axis=0) / np.maximum(total, 1), np.nan)

    return {
        "auroc_macro": RankStatistics("auroc_macro", len(labels), area),
        "f1_macro": Statistics("f1_macro", counts.reshape(len(labels), -1), _f1_of_present_classes),
    }


def finding_table(
    probabilities,
    labels,
    thresholds=0.5,
    bootstrap: Bootstrap | None = None,
    clusters: Sequence | None = None,
    fewest: int = 1,
) -> dict[str, dict]:
    """Every finding by itself: `positives` and `negatives` (films), `auroc` and `f1` with `value` and `ci95`.

    A finding with fewer than `fewest` films of either kind has its numbers of films alone. Other arguments as in
    `finding_scores` and `score_all`.
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    thresholds = np.broadcast_to(np.asarray(thresholds, dtype=np.float64), (len(FINDINGS),))
    result = {}
    for index, name in enumerate(FINDINGS):
        column = slice(index, index + 1)
        positives, negatives = (int((labels[:, index] == value).sum()) for value in (1, 0))
        result[name] = {"positives": positives, "negatives": negatives}
        if min(positives, negatives) >= fewest:
            one = finding_statistics(probabilities[:, column], labels[:, column], thresholds[column])
            scores = score_all(one, bootstrap or Bootstrap(), clusters)
            result[name] |= {metric: scores[f"{metric}_macro"] for metric in ("auroc", "f1")}
    return result


def calibration_statistics(probabilities, labels, bins: int = 15) -> Statistics:
    """`ece` of films, ready for intervals: expected calibration error (Guo et al. 2017) over bins of equal width.

        sum_b n_b / n |mean probability of b - share of positive labels in b|

    Args:
        probabilities: (n, classes) in [0, 1].
        labels: (n, classes); 1 or 0, NaN and -1 are left out.
        bins: bins over [0, 1]; the classes share them.
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if probabilities.shape != labels.shape or probabilities.ndim != 2:
        raise InputError(f"shapes {probabilities.shape} and {labels.shape}; expected two of (n, classes)")
    known = np.isin(labels, (0, 1))
    place = np.minimum((np.where(known, probabilities, 0) * bins).astype(int), bins - 1)
    values = np.zeros((len(labels), bins + 1))
    rows = np.broadcast_to(np.arange(len(labels))[:, None], labels.shape)
    np.add.at(values, (rows[known], place[known]), (probabilities - labels)[known])
    values[:, -1] = known.sum(axis=1)
    return Statistics("ece", values, _calibration_error, higher_is_better=False)


def _calibration_error(sums: np.ndarray) -> np.ndarray:
    """Bins of summed differences, and how many labels there are, in (..., bins + 1)."""
    total = sums[..., -1]
    return np.where(total > 0, np.abs(sums[..., :-1]).sum(axis=-1) / np.maximum(total, 1), np.nan)


def _rank_order(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order of the scores; for each place in it the first place of the same score, and one past the last."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    return order, np.searchsorted(ordered, ordered, side="left"), np.searchsorted(ordered, ordered, side="right")


def _weighted_auroc(order, true: np.ndarray, known: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of reports drawn `weights` (resamples, n) times; NaN where one label value is
    missing.
    """
    index, first, past = order
    positive = weights[:, index] * (true & known)[index]
    negative = weights[:, index] * (~true & known)[index]
    below = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(negative, axis=1)], axis=1)
    ranked = (below[:, first] + below[:, past]) / 2
    total = positive.sum(axis=1) * negative.sum(axis=1)
    return np.where(total > 0, (positive * ranked).sum(axis=1) / np.where(total > 0, total, 1), np.nan)


def _f1_of_present_classes(sums: np.ndarray) -> np.ndarray:
    """Mean F1 over the classes with at least one positive label; counts in (..., 3 * classes)."""
    counts = sums.reshape(*sums.shape[:-1], -1, 3)
    present = counts[..., 0] + counts[..., 2] > 0
    scores = 2 * counts[..., 0] / np.maximum(2 * counts[..., 0] + counts[..., 1] + counts[..., 2], 1)
    total = present.sum(axis=-1)
    return np.where(total > 0, (scores * present).sum(axis=-1) / np.maximum(total, 1), np.nan)


_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))


def normalise_answer(answer: str) -> str:
    """An answer in lower case without articles, punctuation and runs of white space."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def answer_statistics(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Statistics]:
    """`answer_accuracy` (normalised exact match) and `answer_token_f1`, the best of several references counting.

    Two answers without words are equal. For yes/no questions, the first word of a longer prediction counts.
    """
    exact, overlap = [], []
    for prediction, group in zip(predictions, references, strict=True):
        if not group:
            raise InputError("an answer has no reference")
        said = normalise_answer(prediction)
        best = 0.0
        right = False
        for reference in group:
            true = normalise_answer(reference)
            answer = said.split()[0] if true in ("yes", "no") and said else said
            right |= answer == true
            best = max(best, _token_f1(said, true))
        exact.append(float(right))
        overlap.append(best)
    return {
        "answer_accuracy": mean_statistics("answer_accuracy", exact),
        "answer_token_f1": mean_statistics("answer_token_f1", overlap),
    }


def _token_f1(said: str, true: str) -> float:
    first, second = said.split(), true.split()
    if not first and not second:
        return 1.0
    shared = sum((Counter(first) & Counter(second)).values())
    return 2 * shared / (len(first) + len(second))
