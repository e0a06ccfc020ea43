"""Temperatures and thresholds against values by hand."""

import json

import numpy as np
import pytest
from datasets import Dataset
from safetensors.numpy import load_file

from modeling_gaze2report.processing.metrics.findings import calibration_statistics
from modeling_gaze2report.processing.report_labels import FINDINGS
from modeling_gaze2report.training.calibration import MIN_EXAMPLES, calibrate, fit, fit_temperature, fit_threshold, main

from ..tiny_export import build_tiny_model, export_tiny_model
from .toy import write_phantoms


def test_the_temperature_undoes_overconfidence():
    # Of films with logit 4 three quarters have the finding, of films with -4 one quarter: the likeliest logit is ln 3.
    logits = np.repeat([4.0, -4.0], 40)
    is_present = np.tile([True, True, True, False, False, False, False, True], 10).reshape(20, 4)
    is_present = np.concatenate([is_present[::2].ravel(), is_present[1::2].ravel()])

    assert fit_temperature(logits, is_present) == pytest.approx(4 / np.log(3), rel=1e-6)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_threshold_is_half_of_the_highest_f1_that_can_be_expected(power):
    # Lipton et al. 2014 (arXiv 1402.1892): where probabilities are right, the best threshold is half of the best F1.
    generator = np.random.default_rng(0)
    true = generator.beta(0.3, 2.0, 40_000)
    is_present = generator.random(40_000) < true
    # Probabilities that are wrong by a power of their odds: the curve finds back.
    odds = (true / (1 - true)) ** power
    ranked = np.sort(true)[::-1]
    best = (2 * np.cumsum(ranked) / (np.arange(1, 40_001) + ranked.sum())).max()

    threshold = fit_threshold(odds / (1 + odds), is_present)

    assert (threshold / (1 - threshold)) ** (1 / power) == pytest.approx(best / 2 / (1 - best / 2), rel=0.05)


def test_the_threshold_follows_no_chance_of_single_films():
    generator = np.random.default_rng(1)
    thresholds, counted = [], []
    for _ in range(20):
        true = generator.beta(0.3, 2.0, 500)
        is_present = generator.random(500) < true
        thresholds.append(fit_threshold(true, is_present))
        called = true[None] >= np.sort(true)[:, None]
        scores = 2 * (called & is_present).sum(1) / (called.sum(1) + is_present.sum())
        counted.append(np.sort(true)[scores.argmax()])

    assert np.std(thresholds) < np.std(counted) / 2


def test_equal_probabilities_are_all_called_or_none():
    probabilities = np.array([0.2] * 10 + [0.6] * 10)
    is_present = np.array([False] * 8 + [True] * 3 + [False] + [True] * 8)

    assert fit_threshold(probabilities, is_present) == pytest.approx(0.4)


def test_labels_that_are_told_apart_without_error_have_their_threshold_between_them():
    probabilities = np.array([0.001] * 30 + [0.999] * 10)

    assert fit_threshold(probabilities, probabilities > 0.5) == pytest.approx(0.5)


def test_classes_with_few_examples_stay_as_they_are():
    logits, labels = np.full((20, 14), 3.0), np.zeros((20, 14))
    labels[: MIN_EXAMPLES - 1] = 1

    result = fit(logits, labels, threshold=0.4)

    assert result.fitted == []
    assert result.temperatures == [1.0] * 14 and result.thresholds == [0.4] * 14


def test_uncertain_and_unknown_labels_do_not_count():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(60, 14))
    labels = (generator.random((60, 14)) < 0.5).astype(float)
    more = np.where(generator.random((40, 14)) < 0.5, -1.0, np.nan)

    first = fit(logits, labels)
    second = fit(np.concatenate([logits, np.full((40, 14), 50.0)]), np.concatenate([labels, more]))

    assert first.temperatures == second.temperatures and first.ece_after == second.ece_after


def test_calibration_error_is_the_distance_of_probability_and_frequency():
    # Two bins: 0.2 said and 1/2 true, 0.9 said and 1/2 true; (2 x 0.3 + 2 x 0.4) / 4.
    statistics = calibration_statistics([[0.2], [0.2], [0.9], [0.9]], [[0], [1], [0], [1]])

    assert statistics.score() == pytest.approx(0.35)


def test_the_processor_keeps_what_was_fitted(tmp_path):
    model, processor = build_tiny_model()
    generator = np.random.default_rng(0)
    records = [
        {
            "image": generator.integers(0, 255, (64, 64), dtype=np.uint8),
            "image_id": str(number),
            "labels": [number % 2] * 14,
        }
        for number in range(2 * MIN_EXAMPLES)
    ]

    result = calibrate(model, processor, records, batch_size=8)
    processor.save_pretrained(tmp_path)
    back = type(processor).from_pretrained(tmp_path)

    assert len(result.fitted) == 14
    assert back.finding_temperatures == result.temperatures
    assert back.thresholds == result.thresholds
    assert "16 films" in str(result)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return export_tiny_model(tmp_path_factory)


def test_a_checkpoint_is_calibrated_on_other_films(checkpoint, tmp_path, capsys):
    data, out = write_phantoms(tmp_path, num_validation=60), tmp_path / "calibrated"

    assert main(["--model", str(checkpoint), "--data", str(data), "--out", str(out), "--device", "cpu"]) == 0

    assert "calibration on 60 films" in capsys.readouterr().out
    before, after = (json.loads((one / "processor_config.json").read_text()) for one in (checkpoint, out))
    index = FINDINGS.index("No Finding")
    assert before["finding_temperatures"] is None or before["finding_temperatures"][index] == 1.0
    assert after["finding_temperatures"][index] != 1.0 and after["finding_thresholds"][index] != 0.5
    weights = [load_file(one / "model.safetensors") for one in (checkpoint, out)]
    assert weights[0].keys() == weights[1].keys()
    assert all(np.array_equal(value, weights[1][name]) for name, value in weights[0].items())


def test_films_without_labels_calibrate_nothing(checkpoint, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "calibrated"
    data.mkdir()
    Dataset.from_dict({"image": ["a.png"], "labels": [None]}).to_parquet(data / "validation-00000.parquet")

    assert main(["--model", str(checkpoint), "--data", str(data), "--out", str(out)]) == 2

    assert "no film of the split validation has labels" in capsys.readouterr().err
    assert not out.exists()


def test_nothing_but_a_model_is_written_over(checkpoint, tmp_path, capsys):
    data, notes = write_phantoms(tmp_path), tmp_path / "notes"
    notes.mkdir()
    (notes / "mine.txt").write_text("keep")

    assert main(["--model", str(checkpoint), "--data", str(data), "--out", str(notes)]) == 2

    assert [one.name for one in notes.iterdir()] == ["mine.txt"]
    assert "notes" in capsys.readouterr().err
