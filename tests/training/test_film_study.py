"""The study on real films: every figure beside its chance, on patients that the training part does not have."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from modeling_gaze2report.processing.anatomy import REGION_NAMES
from modeling_gaze2report.processing.datasets.source_films import FilmRow, film_split
from modeling_gaze2report.processing.report_labels import FINDINGS
from modeling_gaze2report.training import film_study
from modeling_gaze2report.training.film_study import (
    GRID,
    area_of_boxes,
    boxes_of_findings,
    boxes_study,
    centre_weights,
    chosen_rows,
    dwell_share,
    findings_study,
    gaze_study,
    hull,
    main,
    mean_boxes,
    overlaps,
    views_study,
)

from ..processing.datasets.test_source_films import write_film, write_table
from ..tiny_export import export_tiny_model


def film(name: str, patient: str | None = None, findings=("No Finding",), boxes=(), lung_mask=None) -> FilmRow:
    source = "NIH ChestX-ray14 (NIH Clinical Center)"
    return FilmRow(name, source, "free", "permissive", patient or name, "PA", findings, tuple(boxes), lung_mask)


def answer(probabilities=None, regions=None, findings=None, fixations=()) -> dict:
    whole = [0.0, 0.0, 1.0, 1.0]
    region_boxes, finding_boxes = [whole] * len(REGION_NAMES), [whole] * len(FINDINGS)
    for name, box in (regions or {}).items():
        region_boxes[REGION_NAMES.index(name)] = box
    for name, box in (findings or {}).items():
        finding_boxes[FINDINGS.index(name)] = box
    return {
        "probabilities": [0.5] * len(FINDINGS) if probabilities is None else probabilities,
        "region_boxes": region_boxes,
        "finding_boxes": finding_boxes,
        "fixations": list(fixations),
    }


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return export_tiny_model(tmp_path_factory)


@pytest.fixture
def films(tmp_path):
    """Two films of patients of the test part, one of the training part, two with another licence."""
    names = [f"p{number}" for number in range(100)]
    test, train = (
        [name for name in names if film_split(name) == "test"],
        [name for name in names if film_split(name) == "train"],
    )
    mass = json.dumps([{"label": "Mass", "box": [50, 25, 100, 75], "src": "NIH BBox_List_2017"}])
    lung = json.dumps([{"label": "Left Lung", "box": [100, 10, 190, 90], "src": "GeneralBlockchain"}])
    for number in range(5):
        write_film(tmp_path / f"{number}.jpg")
    write_table(
        tmp_path,
        {"file": "0.jpg", "patient_id": test[0], "view": "PA", "findings": "Mass", "boxes_json": mass},
        {"file": "1.jpg", "patient_id": test[1], "view": "AP", "boxes_json": mass},
        {"file": "2.jpg", "patient_id": train[0]},
        {
            "file": "3.jpg",
            "patient_id": train[1],
            "source": "elsewhere",
            "licence_class": "nc-sa",
            "boxes_json": lung,
            "lung_mask": "mask.png",
        },
        {
            "file": "4.jpg",
            "patient_id": train[2],
            "source": "elsewhere",
            "licence_class": "nc-sa",
            "boxes_json": lung,
        },
    )
    mask = np.zeros((100, 200), dtype=bool)
    mask[:, 100:] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path


# -- parts ------------------------------------------------------------------------------------------------------------


def test_films_of_training_patients_are_left_out_unless_asked_for(films):
    assert [row.file for row in chosen_rows(films, "test")] == ["0.jpg", "1.jpg", "3.jpg", "4.jpg"]
    assert [row.file for row in chosen_rows(films, "all")] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg"]


# -- findings ---------------------------------------------------------------------------------------------------------


def test_findings_are_scored_by_class_where_there_are_films_enough():
    rows = [film(str(k), findings=("Effusion",) if k < 6 else ("No Finding",)) for k in range(12)]
    effusion, none = FINDINGS.index("Pleural Effusion"), FINDINGS.index("No Finding")
    answers = []
    for k in range(12):
        probabilities = np.full(len(FINDINGS), 0.5)
        probabilities[effusion] = 0.9 if k < 6 else 0.1  # right
        probabilities[none] = 0.8 if k < 6 else 0.2  # the wrong way round
        answers.append(answer(probabilities.tolist()))

    found = findings_study(rows, answers, [0.5] * len(FINDINGS))

    assert found["classes"]["Pleural Effusion"]["value"] == 1.0
    assert found["classes"]["No Finding"]["value"] == 0.0
    assert found["classes"]["Pleural Effusion"]["positives"] == 6
    assert "value" not in found["classes"]["Pneumothorax"]  # nobody has one
    assert found["auroc_macro"]["value"] == pytest.approx(0.5) and found["macro_over"] == 2


# -- boxes ------------------------------------------------------------------------------------------------------------


def test_views_are_compared_with_the_commonest_of_other_patients():
    views = {"a": "PA", "b": "PA", "c": "AP Supine", "d": "AP", "e": "LATERAL", "f": "PA"}
    rows = [replace(film(name), view=view) for name, view in views.items()]
    said = ["PA", "AP", "AP", "AP", "PA", None]  # of the last film nothing is told

    found = views_study(rows, [answer() | {"view": view} for view in said])

    assert found["cases"] == 4 and found["scores"]["model"]["value"] == pytest.approx(3 / 4)
    # Without their own film two of the other three are of the other view.
    assert found["scores"]["commonest"]["value"] == 0
    assert views_study(rows, [answer()] * 6) == {}
    assert views_study(rows[:1], [answer() | {"view": "PA"}]) == {}  # there are no others


def test_the_hull_holds_all_boxes():
    assert hull([[0.1, 0.5, 0.2, 0.6], [0.15, 0.1, 0.4, 0.55]]) == [0.1, 0.1, 0.4, 0.6]


def test_the_mean_box_leaves_out_the_films_of_the_same_patient():
    boxes = [[0, 0, 0.2, 0.2], [0, 0, 0.4, 0.4], [0, 0, 0.8, 0.8]]

    means = mean_boxes(boxes, ["a", "a", "b"], ["x"] * 3)

    np.testing.assert_allclose(means, [[0, 0, 0.8, 0.8], [0, 0, 0.8, 0.8], [0, 0, 0.3, 0.3]])
    assert np.isnan(mean_boxes(boxes[:2], ["a", "a"], ["x"] * 2)).all()


def test_the_mean_box_is_of_the_same_finding():
    boxes = [[0, 0, 0.2, 0.2], [0, 0, 0.4, 0.4], [0, 0, 0.8, 0.8]]

    means = mean_boxes(boxes, ["a", "b", "c"], ["x", "x", "y"])

    np.testing.assert_allclose(means, [[0, 0, 0.4, 0.4], [0, 0, 0.2, 0.2], [np.nan] * 4])


def test_overlaps_are_of_boxes_in_pairs():
    first, second = [[0, 0, 0.5, 1], [0, 0, 1, 1]], [[0, 0, 1, 1], [np.nan] * 4]

    np.testing.assert_allclose(overlaps(first, second), [0.5, np.nan])


def test_boxes_are_compared_with_the_mean_of_other_patients_and_the_table():
    left = ("Left Lung", "x", (0.5, 0.0, 1.0, 1.0))
    half = ("Left Lung", "x", (0.5, 0.0, 1.0, 0.5))
    rows = [film("a", boxes=[left]), film("b", boxes=[half])]
    answers = [answer(regions={"left lung": [0.5, 0.0, 1.0, 1.0]})] * 2

    (found,) = boxes_study(rows, answers).values()

    assert found["cases"] == 2
    assert found["scores"]["model"]["value"] == pytest.approx((1.0 + 0.5) / 2)
    assert found["scores"]["mean_box"]["value"] == pytest.approx(0.5)  # each is shown the other's box
    assert found["differences"]["mean_box"]["difference"] == pytest.approx(0.25)
    assert 0 < found["scores"]["typical_box"]["value"] < 1


def test_boxes_of_a_finding_are_taken_together_and_devices_left_out():
    row = film(
        "a",
        boxes=[
            ("Nodule", "NIH", (0.1, 0.1, 0.2, 0.2)),
            ("Mass", "NIH", (0.3, 0.3, 0.4, 0.4)),
            ("Tubings", "GeneralBlockchain", (0.0, 0.0, 0.4, 0.4)),
            ("Right Lung", "GeneralBlockchain", (0.0, 0.0, 0.4, 0.4)),
            ("Consolidation", "GeneralBlockchain", (0.5, 0.5, 0.6, 0.6)),
        ],
    )

    assert boxes_of_findings(row) == {
        "Lung Lesion": [(0.1, 0.1, 0.2, 0.2), (0.3, 0.3, 0.4, 0.4)],
        "Consolidation": [(0.5, 0.5, 0.6, 0.6)],
    }
    assert set(boxes_of_findings(row, "NIH")) == {"Lung Lesion"}


def test_a_case_without_chance_level_is_left_out_for_the_model_too():
    rows = [
        film("a", boxes=[("Mass", "NIH", (0.0, 0.0, 0.5, 1.0))]),
        film("b", boxes=[("Mass", "NIH", (0.0, 0.0, 0.5, 1.0))]),
        film("c", boxes=[("Effusion", "NIH", (0.0, 0.0, 0.5, 1.0))]),  # the only one of its kind
    ]
    answers = [answer(findings={"Lung Lesion": [0.0, 0.0, 0.5, 1.0], "Pleural Effusion": [0.5, 0.0, 1.0, 1.0]})] * 3

    found = boxes_study(rows, answers)["findings"]

    assert found["cases"] == 2
    assert found["scores"]["model"]["value"] == 1.0 and found["differences"]["mean_box"]["difference"] == 0.0


# -- gaze -------------------------------------------------------------------------------------------------------------


def test_areas_and_dwell_by_hand():
    area = area_of_boxes([[0, 0, 0.5, 1], [0.25, 0, 0.5, 0.5]])

    assert area.shape == (GRID, GRID) and area.mean() == 0.5
    assert dwell_share(np.array([[0.25, 0.5, 0.3], [0.75, 0.5, 0.1]]), area) == pytest.approx(0.75)
    assert np.isnan(dwell_share(np.zeros((0, 3)), area))


def test_the_gaussian_is_a_density_around_the_centre():
    weights = centre_weights()

    assert weights.sum() == pytest.approx(1.0)
    assert weights[area_of_boxes([[0, 0, 0.5, 1]])].sum() == pytest.approx(0.5)
    # 0.68 of each axis lies within one deviation.
    assert weights[area_of_boxes([[0.3, 0.3, 0.7, 0.7]])].sum() == pytest.approx(0.683**2 / 0.9876**2, abs=0.01)


def test_gaze_inside_boxes_stands_beside_area_centre_and_the_gaze_on_other_films(tmp_path):
    mass = ("Mass", "NIH BBox_List_2017", (0.0, 0.0, 0.25, 1.0))
    rows = [film("a", "p", boxes=[mass]), film("b", "p"), film("c", "q")]
    answers = [
        answer(fixations=[[0.1, 0.5, 0.3], [0.9, 0.5, 0.1]]),
        answer(fixations=[[0.1, 0.5, 9.0]]),  # the same patient: no chance level
        answer(fixations=[[0.1, 0.5, 0.1], [0.9, 0.5, 0.4]]),
    ]

    found = gaze_study(tmp_path, rows, answers)

    assert list(found) == ["NIH boxes of findings"]
    scores = found["NIH boxes of findings"]["scores"]
    assert scores["model"]["value"] == pytest.approx(0.75)
    assert scores["area"]["value"] == pytest.approx(0.25)
    assert scores["other_films"]["value"] == pytest.approx(0.2)
    assert 0 < scores["centre"]["value"] < 0.25


# -- study ------------------------------------------------------------------------------------------------------------


def test_a_study_of_a_checkpoint_shows_everything_beside_chance(films, tiny_model, tmp_path, monkeypatch):
    out = tmp_path / "out"
    arguments = ["--cxr", str(films), "--out", str(out), "--model", str(tiny_model), "--batch-size", "2"]
    assert main(arguments) == 0
    text = (out / "results.md").read_text()
    results = json.loads((out / "results.json").read_text())

    assert results["films"] == 4 and results["findings"]["films"] == 2
    assert set(results["boxes"]) == {"left lung", "findings"}
    assert set(results["gaze"]) == {"NIH boxes of findings", "Lungs"}
    assert set(results["gaze"]["Lungs"]["scores"]) == {"model", "area", "centre", "other_films"}
    assert results["gaze"]["Lungs"]["scores"]["area"]["value"] == pytest.approx(0.5)
    assert set(results["view"]["scores"]) == {"model", "commonest"}
    for words in ("chance is 0.5", "Mean box of others", "Share of the area", "Not for clinical use"):
        assert words in text

    # What was predicted is kept: the model is not needed again.
    monkeypatch.setattr(film_study, "load_reader", lambda *_: pytest.fail("the model was loaded again"))
    (out / "results.md").unlink()
    assert main(arguments) == 0
    assert (out / "results.md").read_text() == text


def test_predictions_of_another_part_are_not_mixed_in(films, tiny_model, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    kept = {"model": str(tiny_model), "part": "all", "files": [], "thresholds": [], "answers": []}
    (out / "predictions.json").write_text(json.dumps(kept))

    assert main(["--cxr", str(films), "--out", str(out), "--model", str(tiny_model)]) == 2
    message = capsys.readouterr().err
    assert "predictions.json" in message and "another part" in message


@pytest.mark.parametrize("option", ["--batch-size", "--max-films"])
def test_numbers_below_one_are_refused(option, films, tmp_path, capsys):
    assert main(["--cxr", str(films), "--out", str(tmp_path / "out"), option, "0"]) == 2
    assert "at least 1" in capsys.readouterr().err


def test_a_training_patients_other_films_are_left_out_too(films):
    table = films / "metadata.csv"
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    rows[4]["patient_id"] = rows[2]["patient_id"]
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)

    assert [row.file for row in chosen_rows(films, "test")] == ["0.jpg", "1.jpg", "3.jpg"]


def test_a_folder_without_a_table_is_an_error(tmp_path, capsys):
    assert main(["--cxr", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "metadata.csv" in capsys.readouterr().err


@pytest.mark.shared
def test_the_shared_films_have_something_for_every_table(shared_data):
    rows = chosen_rows(shared_data / "cxr", "test")

    assert sum(row.is_nih for row in rows) > 300
    assert sum(bool(row.lung_mask) for row in rows) > 80
    assert sum(bool(boxes_of_findings(row, "GeneralBlockchain")) for row in rows) > 30
    assert all(film_split(row.patient_id) == "test" for row in rows if row.is_nih)
