"""Uncertainty of a score: bootstrap intervals, paired comparisons, Holm's correction, seeds.

Everything works on cached statistics per report (or image), so that no metric is computed twice: a resample is a vector
of counts, and a corpus metric is a function of the summed statistics. Reports of one patient are drawn together.

Seeds are another kind of variation than the choice of test cases: `seed_summary` reports them apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError

Finish = Callable[[np.ndarray], np.ndarray]


_CHUNK = 8_000_000  # draws held in memory at a time


@dataclass(frozen=True)
class Bootstrap:
    """Percentile bootstrap. The draws depend on the seed and the number of cases only: systems scored on the same cases
    share them.

    Attributes:
        resamples: number of resamples.
        level: coverage of the interval.
        seed: seed of the draws.
    """

    resamples: int = 2000
    level: float = 0.95
    seed: int = 0

    def settings(self) -> dict:
        return {"resamples": self.resamples, "level": self.level, "seed": self.seed, "interval": "percentile"}

    def sums(self, values: np.ndarray, clusters: Sequence | None = None) -> np.ndarray:
        """Sums of per-report statistics in each resample, shape (resamples, k).

        Args:
            values: statistics of each report, shape (n, k).
            clusters: patient of each report; whole patients are drawn. None draws reports.

        Raises:
            InputError: there is no report, or not one cluster per report.
        """
        values = np.asarray(values, dtype=np.float64)
        if len(values) == 0:
            raise InputError("no report to resample; at least one is needed")
        if clusters is not None:
            if len(clusters) != len(values):
                raise InputError(f"clusters: {len(clusters)} values for {len(values)} reports; one each is needed")
            _, member = np.unique(np.asarray([str(cluster) for cluster in clusters]), return_inverse=True)
            summed = np.zeros((int(member.max()) + 1, values.shape[1]))
            np.add.at(summed, member, values)
            values = summed
        generator = np.random.default_rng(self.seed)
        items = len(values)
        step = max(1, _CHUNK // items)
        sums = np.empty((self.resamples, values.shape[1]))
        for start in range(0, self.resamples, step):
            count = min(step, self.resamples - start)
            drawn = generator.integers(0, items, size=(count, items), dtype=np.int32)
            drawn += (np.arange(count, dtype=np.int32) * items)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=count * items).reshape(count, items)
            sums[start : start + count] = counts.astype(np.float64) @ values
        return sums

    def interval(self, resampled: np.ndarray) -> list[float]:
        """Lower and upper end of the interval of resampled scores; NaN resamples are left out."""
        resampled = resampled[np.isfinite(resampled)]
        if resampled.size == 0:
            return [float("nan"), float("nan")]
        tail = (1 - self.level) / 2
        return [float(value) for value in np.quantile(resampled, [tail, 1 - tail])]


@dataclass(frozen=True)
class Statistics:
    """Cached per-report statistics of one metric, and how their sum becomes the score.

    Attributes:
        name: name of the metric.
        values: shape (n, k): k additive statistics of each report.
        finish: maps summed statistics of shape (..., k) to scores of shape (...).
        higher_is_better: direction of the metric.
    """

    name: str
    values: np.ndarray
    finish: Finish
    higher_is_better: bool = True

    def score(self) -> float:
        return float(self.finish(self.values.sum(axis=0)))


def mean_statistics(name: str, values, higher_is_better: bool = True) -> Statistics:
    """Statistics of a metric that is the mean of per-report values; NaN values are left out of the mean."""
    values = np.asarray(values, dtype=np.float64)
    defined = np.isfinite(values)
    return Statistics(
        name, np.stack([np.where(defined, values, 0.0), defined.astype(np.float64)], axis=1), ratio, higher_is_better
    )


def ratio(sums: np.ndarray) -> np.ndarray:
    """First statistic divided by the second; NaN where the second is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan)


def _resampled_scores(systems: Sequence[dict[str, Statistics]], bootstrap: Bootstrap, clusters) -> list[dict]:
    """Scores of every metric of every system in the same resamples, in one pass over the draws."""
    flat = [statistics for system in systems for statistics in system.values()]
    ends = np.cumsum([statistics.values.shape[1] for statistics in flat])
    sums = bootstrap.sums(np.concatenate([statistics.values for statistics in flat], axis=1), clusters)
    scores = [statistics.finish(part) for statistics, part in zip(flat, np.split(sums, ends[:-1], axis=1), strict=True)]
    remaining = iter(scores)
    return [{name: next(remaining) for name in system} for system in systems]


def score_all(
    metrics: dict[str, Statistics], bootstrap: Bootstrap, clusters: Sequence | None = None
) -> dict[str, dict]:
    """Score, interval and number of cases of every metric.

    Returns:
        for each metric `{"value", "ci95"}`, and `"n"`, the number of cases it is defined on, for metrics that are
        means.
    """
    resampled = _resampled_scores([metrics], bootstrap, clusters)[0] if metrics else {}
    records = {}
    for name, statistics in metrics.items():
        records[name] = {"value": statistics.score(), "ci95": bootstrap.interval(resampled[name])}
        if statistics.finish is ratio:
            records[name]["n"] = int(np.count_nonzero(statistics.values[:, 1]))
    return records


def compare_all(
    first: dict[str, Statistics],
    second: dict[str, Statistics],
    bootstrap: Bootstrap,
    clusters: Sequence | None = None,
) -> dict[str, dict]:
    """Paired comparison of two systems scored on the same cases in the same order, on every metric that both have.

    Returns:
        for each metric `difference` (first minus second), its `ci95`, `p` and `p_holm`. `p` is the two-sided bootstrap
        p-value (1 + number of centred resampled differences at least as large as the observed one) / (resamples + 1);
        `p_holm` is corrected over the metrics.

    Raises:
        InputError: the two were not scored on the same number of cases.
    """
    shared = [name for name in first if name in second]
    if not shared:
        return {}
    for name in shared:
        if len(first[name].values) != len(second[name].values):
            counts = f"{len(first[name].values)} and {len(second[name].values)}"
            raise InputError(f"{name}: scored on {counts} cases; a paired comparison needs the same cases")
    a, b = _resampled_scores(
        [{name: first[name] for name in shared}, {name: second[name] for name in shared}], bootstrap, clusters
    )
    results = {}
    for name in shared:
        difference = first[name].score() - second[name].score()
        resampled = a[name] - b[name]
        finite = resampled[np.isfinite(resampled)]
        p = float("nan")
        if np.isfinite(difference) and finite.size:
            # A tolerance keeps equal systems at p = 1 when rounding makes resampled differences unequal to 0.
            extreme = np.count_nonzero(np.abs(finite - difference) >= abs(difference) - 1e-12)
            p = float((1 + extreme) / (finite.size + 1))
        results[name] = {"difference": difference, "ci95": bootstrap.interval(resampled), "p": p}
    for name, p in holm({name: result["p"] for name, result in results.items()}).items():
        results[name]["p_holm"] = p
    return results


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's step-down correction over a family of tests; NaN p-values stay NaN and do not count."""
    tested = sorted((p, name) for name, p in p_values.items() if np.isfinite(p))
    corrected = dict.fromkeys(p_values, float("nan"))
    largest = 0.0
    for rank, (p, name) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        corrected[name] = largest
    return corrected


def seed_summary(scores: Sequence[float]) -> dict:
    """Mean and sample standard deviation of a metric over training seeds; the deviation of one seed is NaN."""
    scores = np.asarray(scores, dtype=np.float64)
    deviation = float(scores.std(ddof=1)) if scores.size > 1 else float("nan")
    return {"mean": float(scores.mean()), "sd": deviation, "seeds": int(scores.size)}
