"""Intervals, paired comparisons, Holm's correction."""

import numpy as np
import pytest

from modeling_gaze2report.processing.errors import InputError
from modeling_gaze2report.processing.metrics.resampling import (
    Bootstrap,
    RankStatistics,
    Statistics,
    compare_all,
    compare_runs,
    holm,
    mean_statistics,
    ratio,
    score_all,
    seed_summary,
)


def test_the_interval_of_a_mean_is_that_of_normal_theory():
    values = np.random.default_rng(0).normal(size=2000)

    record = score_all({"mean": mean_statistics("mean", values)}, Bootstrap())["mean"]

    half = 1.96 * values.std() / np.sqrt(len(values))
    assert record["value"] == pytest.approx(values.mean())
    assert record["ci95"] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.005)


def test_patients_are_drawn_whole():
    # Ten patients, all of whose hundred reports have one value: as uncertain as ten reports, not a thousand.
    patients = np.repeat(np.arange(10), 100)
    values = np.repeat(np.random.default_rng(0).normal(size=10), 100)
    metric = {"mean": mean_statistics("mean", values)}

    alone = score_all(metric, Bootstrap())["mean"]["ci95"]
    clustered = score_all(metric, Bootstrap(), patients)["mean"]["ci95"]

    assert (clustered[1] - clustered[0]) / (alone[1] - alone[0]) == pytest.approx(10, rel=0.1)


def test_scores_of_sums_and_scores_of_weights_share_their_draws():
    values = np.random.default_rng(0).random(50)
    patients = np.arange(50) // 3
    of_sums = mean_statistics("mean", values)
    of_weights = RankStatistics("mean", 50, lambda weights: weights @ values / weights.sum(axis=1))

    records = score_all({"a": of_sums, "b": of_weights}, Bootstrap(200), patients)

    assert records["a"]["ci95"] == pytest.approx(records["b"]["ci95"])
    assert of_sums.score() == pytest.approx(of_weights.score())


def test_a_system_does_not_differ_from_itself():
    metric = {"mean": mean_statistics("mean", np.random.default_rng(0).random(100))}

    result = compare_all(metric, metric, Bootstrap(500))["mean"]

    assert result == {"difference": 0, "ci95": [0, 0], "p": 1, "p_holm": 1}


def test_a_small_paired_difference_is_found_in_large_noise():
    generator = np.random.default_rng(0)
    difficulty = generator.normal(0, 10, 300)
    better = {"score": mean_statistics("score", difficulty + generator.normal(0.5, 1, 300))}
    worse = {"score": mean_statistics("score", difficulty)}

    result = compare_all(better, worse, Bootstrap(1000))["score"]

    assert result["p"] < 0.01
    assert 0 < result["ci95"][0] < 0.5 < result["ci95"][1] < 1


def test_holm_by_hand():
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": float("nan")})

    assert corrected["a"] == pytest.approx(0.03)  # 3 x 0.01
    assert corrected["c"] == pytest.approx(0.06)  # 2 x 0.03
    assert corrected["b"] == pytest.approx(0.06)  # 1 x 0.04, but not below the one before
    assert np.isnan(corrected["d"])


def test_undefined_reports_are_left_out_and_counted():
    metric = mean_statistics("m", [1.0, np.nan, 0.0])

    record = score_all({"m": metric}, Bootstrap(100))["m"]

    assert (record["value"], record["n"]) == (0.5, 2)


def test_a_corpus_metric_is_resampled_from_sums():
    statistics = Statistics("ratio", np.array([[1.0, 2.0], [3.0, 4.0]]), ratio)

    resampled = ratio(Bootstrap(200).sums(statistics.values))

    assert statistics.score() == pytest.approx(4 / 6)
    assert {round(value, 6) for value in resampled} == {0.5, 0.666667, 0.75}


def test_wrong_inputs_are_named():
    with pytest.raises(InputError, match="2 values for 3 reports"):
        Bootstrap(10).sums(np.zeros((3, 1)), ["a", "b"])
    with pytest.raises(InputError, match="at least one"):
        Bootstrap(10).sums(np.zeros((0, 1)))
    with pytest.raises(InputError, match="3 and 2 cases"):
        compare_all({"m": mean_statistics("m", [1, 2, 3])}, {"m": mean_statistics("m", [1, 2])}, Bootstrap(10))


def test_seeds_are_summarised_apart():
    assert seed_summary([1.0, 2.0, 3.0]) == {"mean": 2, "sd": 1, "seeds": 3}
    assert np.isnan(seed_summary([1.0])["sd"])


def test_runs_are_compared_seed_by_seed():
    def run(*values):
        return {"share": mean_statistics("share", values)}

    with_it, without = [run(1, 1, 1, 1), run(1, 1, 0, 0)], [run(0, 0, 0, 0), run(0, 0, 0, 0)]

    result = compare_runs(with_it, without, Bootstrap(resamples=50))["share"]

    # Differences of 1 and 0.5: mean 0.75, deviation 0.25 x sqrt(2).
    assert (result["first"], result["second"], result["difference"]) == (0.75, 0.0, 0.75)
    assert result["per_seed"] == [1.0, 0.5]
    assert result["sd"] == pytest.approx(0.25 * 2**0.5)
    assert 0.5 <= result["ci95"][0] <= 0.75 <= result["ci95"][1] <= 1.0
