"""Uncertainty of a score: bootstrap intervals, paired comparisons, Holm's correction, seeds.

Everything works on cached statistics per report (or image), so that no metric is computed twice: a resample is a vector
of counts, and a corpus metric is a function of the summed statistics. Reports of one patient are drawn together.

Seeds are another kind of variation than the choice of test cases: `seed_summary` reports them apart.
"""

from collections.abc import Callable, Iterator, Sequence
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
        member = _cluster_members(len(values), clusters)
        if member is not None:
            summed = np.zeros((int(member.max()) + 1, values.shape[1]))
            np.add.at(summed, member, values)
            values = summed
        return np.concatenate([counts @ values for counts in self._draws(len(values))])

    def apply(self, function: Finish, count: int, clusters: Sequence | None = None) -> np.ndarray:
        """Scores that are no function of sums, in the same resamples.

        Args:
            function: maps weights (resamples, count), how often each report was drawn, to scores (resamples,).
            count: number of reports.
            clusters: as in `sums`.
        """
        member = _cluster_members(count, clusters)
        if member is None:
            return np.concatenate([function(counts) for counts in self._draws(count)])
        return np.concatenate([function(counts[:, member]) for counts in self._draws(int(member.max()) + 1)])

    def _draws(self, items: int) -> Iterator[np.ndarray]:
        """How often each item is drawn in each resample, a chunk of resamples at a time."""
        generator = np.random.default_rng(self.seed)
        step = max(1, _CHUNK // items)
        for start in range(0, self.resamples, step):
            count = min(step, self.resamples - start)
            drawn = generator.integers(0, items, size=(count, items), dtype=np.int32)
            drawn += (np.arange(count, dtype=np.int32) * items)[:, None]
            yield np.bincount(drawn.ravel(), minlength=count * items).reshape(count, items).astype(np.float64)

    def interval(self, resampled: np.ndarray) -> list[float]:
        """Lower and upper end of the interval of resampled scores; NaN resamples are left out."""
        resampled = resampled[np.isfinite(resampled)]
        if resampled.size == 0:
            return [float("nan"), float("nan")]
        tail = (1 - self.level) / 2
        return [float(value) for value in np.quantile(resampled, [tail, 1 - tail])]


def _cluster_members(count: int, clusters: Sequence | None) -> np.ndarray | None:
    """Index of the cluster of each report, or None when each stands for itself."""
    if count == 0:
        raise InputError("no report to resample; at least one is needed")
    if clusters is None:
        return None
    if len(clusters) != count:
        raise InputError(f"clusters: {len(clusters)} values for {count} reports; one each is needed")
    return np.unique(np.asarray([str(cluster) for cluster in clusters]), return_inverse=True)[1]


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

    def __len__(self) -> int:
        return len(self.values)

    def score(self) -> float:
        return float(self.finish(self.values.sum(axis=0)))


@dataclass(frozen=True)
class RankStatistics:
    """A metric that is no function of sums, such as an area under a curve.

    Attributes:
        name: name of the metric.
        count: number of reports.
        score_of_weights: maps weights of shape (resamples, count) to scores (resamples,).
        higher_is_better: direction of the metric.
    """

    name: str
    count: int
    score_of_weights: Finish
    higher_is_better: bool = True

    def __len__(self) -> int:
        return self.count

    def score(self) -> float:
        return float(self.score_of_weights(np.ones((1, self.count)))[0])


Metric = Statistics | RankStatistics


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


def _resampled_scores(systems: Sequence[dict[str, Metric]], bootstrap: Bootstrap, clusters) -> list[dict]:
    """Scores of every metric of every system in the same resamples; metrics of sums share one pass over the draws."""
    results: list[dict[str, np.ndarray]] = [{} for _ in systems]
    places, parts = [], []
    for system, result in zip(systems, results, strict=True):
        for name, metric in system.items():
            if isinstance(metric, RankStatistics):
                result[name] = bootstrap.apply(metric.score_of_weights, metric.count, clusters)
            else:
                places.append((result, name, metric.finish))
                parts.append(metric.values)
    if parts:
        sums = bootstrap.sums(np.concatenate(parts, axis=1), clusters)
        ends = np.cumsum([part.shape[1] for part in parts])[:-1]
        for (result, name, finish), columns in zip(places, np.split(sums, ends, axis=1), strict=True):
            result[name] = finish(columns)
    return results


def score_all(metrics: dict[str, Metric], bootstrap: Bootstrap, clusters: Sequence | None = None) -> dict[str, dict]:
    """Score, interval and number of cases of every metric.

    Returns:
        for each metric `{"value", "ci95"}`, and `"n"`, the number of cases it is defined on, for metrics that are
        means.
    """
    resampled = _resampled_scores([metrics], bootstrap, clusters)[0] if metrics else {}
    records = {}
    for name, statistics in metrics.items():
        records[name] = {"value": statistics.score(), "ci95": bootstrap.interval(resampled[name])}
        if isinstance(statistics, Statistics) and statistics.finish is ratio:
            records[name]["n"] = int(np.count_nonzero(statistics.values[:, 1]))
    return records


def compare_all(
    first: dict[str, Metric],
    second: dict[str, Metric],
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
        if len(first[name]) != len(second[name]):
            counts = f"{len(first[name])} and {len(second[name])}"
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


def compare_runs(
    first: Sequence[dict[str, Metric]],
    second: Sequence[dict[str, Metric]],
    bootstrap: Bootstrap,
    clusters: Sequence | None = None,
) -> dict[str, dict]:
    """Mean difference of two kinds of run over training seeds, all scored on the same cases in the same order.

    The interval resamples the cases and keeps the seeds, so it says how far the test set decides; `sd` is the deviation
    of the difference over the seeds, so it says how far training does.

    Args:
        first, second: metrics of each seed's run; run number i of both had the same seed.

    Returns:
        for each metric `first` and `second` (mean scores), `difference` (first minus second), `ci95`, `sd`, `per_seed`.
    """
    shared = [name for name in first[0] if all(name in run for run in (*first, *second))]
    if not shared:
        return {}
    runs = [{name: run[name] for name in shared} for run in (*first, *second)]
    resampled = _resampled_scores(runs, bootstrap, clusters)
    results = {}
    for name in shared:
        scores = np.array([run[name].score() for run in runs])
        differences = scores[: len(first)] - scores[len(first) :]
        draws = np.mean([a[name] - b[name] for a, b in zip(resampled, resampled[len(first) :], strict=False)], axis=0)
        results[name] = {
            "first": float(scores[: len(first)].mean()),
            "second": float(scores[len(first) :].mean()),
            "difference": float(differences.mean()),
            "ci95": bootstrap.interval(draws),
            "sd": seed_summary(differences)["sd"],
            "per_seed": differences.tolist(),
        }
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
