"""Evaluating predictors on phantoms: the controls tell a model that uses gaze from one that does not."""

import json

import numpy as np
import pytest

from modeling_gaze2report.processing.datasets.phantom import generate_phantom, generate_readings
from modeling_gaze2report.processing.errors import DataError
from modeling_gaze2report.processing.metrics.controls import GAZE_SOURCES
from modeling_gaze2report.processing.metrics.evaluation import (
    Prediction,
    evaluate_dataset,
    record_fixations,
    write_evaluation,
)
from modeling_gaze2report.processing.metrics.findings import finding_scores
from modeling_gaze2report.processing.metrics.resampling import Bootstrap
from modeling_gaze2report.processing.metrics.scanpaths import ScanMatch
from modeling_gaze2report.processing.report_labels import FINDINGS

BOOTSTRAP = Bootstrap(200)
WITHOUT_JAVA = ["meteor"]


@pytest.fixture(scope="module")
def phantoms():
    return [generate_phantom(seed=0, index=index, image_size=64) for index in range(24)]


def gaze_ignoring(records, gaze_source, gaze):
    """A deliberately broken model: looks at nothing and says what is usually right."""
    reading = np.array([[0.4, 0.4, 0.3], [0.6, 0.4, 0.3], [0.5, 0.6, 0.3]])
    return [
        Prediction("The lungs are clear. No pleural effusion.", reading, np.linspace(0.1, 0.9, 14)) for _ in records
    ]


def gaze_using(records, gaze_source, gaze):
    """Reports rightly when it predicts its gaze, or is given the reader's."""
    predictions = []
    for record, given in zip(records, gaze, strict=True):
        recorded = record_fixations(record)
        right = gaze_source == "predicted" or (given is not None and np.array_equal(given, recorded))
        report = record["report"] if right else "The lungs are clear."
        answers = [question["answer"] if right else "maybe" for question in record["questions"]]
        predictions.append(Prediction(report, recorded, answers=answers))
    return predictions


def with_findings(records, gaze_source, gaze):
    """Probabilities that know the labels, but not well."""
    noise = np.random.default_rng(0).uniform(size=(len(records), len(FINDINGS)))
    labels = np.array([record["labels"] for record in records], dtype=float)
    chances = 0.4 * (labels == 1) + 0.6 * noise
    return [Prediction("", finding_probabilities=row.tolist()) for row in chances]


def test_a_model_that_ignores_gaze_shows_no_difference_between_rows(phantoms):
    results, _ = evaluate_dataset(gaze_ignoring, phantoms, GAZE_SOURCES, bootstrap=BOOTSTRAP, skip=WITHOUT_JAVA)

    rows = results.extra["controls"]["rows"]
    assert list(rows) == list(GAZE_SOURCES)
    differences = [
        record for row in rows.values() for record in row.get("differences", {}).values() if np.isfinite(record["p"])
    ]
    assert len(differences) > 6 * 10
    assert all(record["difference"] == 0 and record["p_holm"] == 1 for record in differences)
    assert "nothing here shows that the gaze is used" in results.to_markdown()


def test_a_model_that_uses_gaze_is_worse_without_it(phantoms):
    results, _ = evaluate_dataset(gaze_using, phantoms, GAZE_SOURCES, skip=WITHOUT_JAVA)

    rows = results.extra["controls"]["rows"]
    assert rows["recorded"]["differences"]["rouge_l"]["difference"] == 0
    for source in ("none", "centre-bias", "uniform", "other-image", "order-shuffled"):
        for name in ("rouge_l", "answer_accuracy"):
            assert rows[source]["differences"][name]["difference"] < 0
            assert rows[source]["differences"][name]["ci95"][1] < 0
    page = results.to_markdown()
    assert "these metrics: none, centre-bias, uniform, other-image, order-shuffled." in page


def test_scanpaths_are_scored_where_the_system_predicts_them(phantoms):
    results, _ = evaluate_dataset(
        gaze_using, phantoms[:8], ["predicted", "none"], bootstrap=BOOTSTRAP, skip=WITHOUT_JAVA
    )

    assert results.metrics["scanmatch"]["value"] == pytest.approx(1)
    assert results.metrics["centroid_icc_x"]["value"] == pytest.approx(1)
    assert "scanmatch" not in results.extra["controls"]["rows"]["none"]["metrics"]


def test_readers_of_one_film_are_compared_with_each_other():
    readings = [one for index in range(2) for one in generate_readings(0, index, 3, image_size=64)]

    results, _ = evaluate_dataset(gaze_ignoring, readings, bootstrap=BOOTSTRAP, skip=WITHOUT_JAVA)

    ceiling = results.extra["human_ceiling"]
    assert ceiling["n"] == 2
    # By hand: every reader of a film against each of the other two, the mean over them, then over films.
    metrics, size = ScanMatch(), (64.0, 64.0)
    by_film = [[record_fixations(one) for one in readings[first : first + 3]] for first in (0, 3)]
    expected = np.mean(
        [[metrics(first, second, size) for first in film for second in film if first is not second] for film in by_film]
    )
    assert ceiling["metrics"]["scanmatch"]["value"] == pytest.approx(expected)
    assert "Human ceiling" in results.to_markdown()


def test_an_evaluation_is_written_as_promised(phantoms, tmp_path):
    records = [*phantoms[:4], phantoms[0]]  # one film read twice
    results, predictions = evaluate_dataset(gaze_using, records, bootstrap=BOOTSTRAP, skip=WITHOUT_JAVA)

    write_evaluation(results, predictions["predicted"], records, tmp_path)

    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert len({line["id"] for line in lines}) == 5
    assert {"id", "prediction", "reference", "patient_id"} <= set(lines[0])
    assert (metrics["n"], metrics["settings"]["clusters"]) == (5, len({r["patient_id"] for r in records}))
    assert metrics["metrics"]["bleu_4"]["value"] == pytest.approx(1)
    assert (tmp_path / "metrics.md").read_text(encoding="utf-8").startswith("# Evaluation")


def test_records_without_a_report_do_not_count_for_text(phantoms):
    silent = phantoms[1] | {"report": None}

    results, _ = evaluate_dataset(gaze_using, [phantoms[0], silent], bootstrap=BOOTSTRAP, skip=WITHOUT_JAVA)

    assert results.metrics["rouge_l"]["n"] == 1
    assert results.metrics["rouge_l"]["value"] == pytest.approx(1)


def test_controls_need_recorded_gaze(phantoms):
    blind = [record | {"fixations": []} for record in phantoms[:2]]

    with pytest.raises(DataError, match="has no recorded gaze"):
        evaluate_dataset(gaze_ignoring, blind, ["predicted", "uniform"], skip=WITHOUT_JAVA)
    with pytest.raises(DataError, match="no record to evaluate"):
        evaluate_dataset(gaze_ignoring, [])
    with pytest.raises(DataError, match="gave 0 predictions for 2 records"):
        evaluate_dataset(lambda *_: [], blind)


def test_boxes_and_labels_are_scored_where_both_sides_have_them(phantoms):
    def perfect(records, gaze_source, gaze):
        return [
            Prediction(
                record["report"],
                finding_probabilities=np.array([1.0 if label == 1 else 0.0 for label in record["labels"]]),
                finding_boxes={
                    label: [[b["x0"], b["y0"], b["x1"], b["y1"]] for b in record["boxes"] if b["label"] == label]
                    for label in {box["label"] for box in record["boxes"]}
                },
            )
            for record in records
        ]

    results, _ = evaluate_dataset(perfect, phantoms, bootstrap=BOOTSTRAP, skip=WITHOUT_JAVA)

    for name in ("miou", "hit_rate_iou_50", "auroc_macro", "f1_macro"):
        assert results.metrics[name]["value"] == pytest.approx(1)


def test_every_finding_has_a_row_of_its_own(phantoms):
    results, predictions = evaluate_dataset(
        with_findings, phantoms, bootstrap=BOOTSTRAP, skip=WITHOUT_JAVA, thresholds=0.6
    )

    labels = np.array([record["labels"] for record in phantoms], dtype=float)
    probabilities = np.array([one.finding_probabilities for one in predictions["predicted"]])
    expected = finding_scores(probabilities, labels, 0.6)["classes"]
    rows = results.extra["findings"]
    assert list(rows) == list(FINDINGS)
    for name, row in rows.items():
        assert (row["positives"], row["negatives"]) == (expected[name]["positives"], expected[name]["negatives"])
        for metric in ("auroc", "f1"):
            if row["positives"] and row["negatives"]:
                assert row[metric]["value"] == pytest.approx(expected[name][metric])
                assert row[metric]["ci95"][0] <= row[metric]["value"] <= row[metric]["ci95"][1]
            else:
                assert metric not in row
    page = results.to_markdown()
    name = max(rows, key=lambda one: rows[one]["positives"])
    assert f"| {name} | {rows[name]['positives']} | {rows[name]['auroc']['value']:.3f} [" in page
    # The mean of the findings is the metric of all.
    areas = [row["auroc"]["value"] for row in rows.values() if "auroc" in row]
    assert np.mean(areas) == pytest.approx(results.metrics["auroc_macro"]["value"])
