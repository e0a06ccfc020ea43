"""Real films with licences: which may be trained on, whose they are, and what their labels and boxes say."""

import csv
import json

import pytest
from PIL import Image

from modeling_gaze2report.processing.anatomy import REGION_NAMES
from modeling_gaze2report.processing.datasets.source_films import (
    COLUMNS,
    FilmsSource,
    film_split,
    nih_labels,
    read_film_rows,
)
from modeling_gaze2report.processing.datasets.writing import Dropped
from modeling_gaze2report.processing.errors import DataError
from modeling_gaze2report.processing.report_labels import FINDINGS

NIH = "NIH ChestX-ray14 (NIH Clinical Center)"


def labelled(*findings: str) -> dict[str, int | None]:
    return dict(zip(FINDINGS, nih_labels(findings), strict=True))


def write_table(folder, *rows: dict) -> None:
    names = [*COLUMNS, "view", "lung_mask"]
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for row in rows:
            defaults = {
                "source": NIH,
                "licence": "free",
                "licence_class": "permissive",
                "findings": "No Finding",
                "width": "200",
                "height": "100",
            }
            writer.writerow({name: (defaults | row).get(name, "") for name in names})


def write_film(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").resize((200, 100)).save(path)


def test_labels_of_chestxray14_become_findings():
    labels = labelled("Effusion", "Nodule", "Hernia")

    assert labels["Pleural Effusion"] == 1 and labels["Lung Lesion"] == 1
    assert labels["No Finding"] == 0 and labels["Cardiomegaly"] == 0 and labels["Pneumothorax"] == 0
    assert labels["Fracture"] is None and labels["Support Devices"] is None  # it has no such labels


def test_a_film_with_an_opacity_by_another_name_is_no_film_without_opacity():
    assert labelled("Pneumonia")["Lung Opacity"] is None
    assert labelled("Pneumonia", "Infiltration")["Lung Opacity"] == 1
    assert labelled("Cardiomegaly")["Lung Opacity"] == 0


def test_an_unknown_label_is_an_error():
    with pytest.raises(DataError, match=r"'Scoliosis'.*ChestX-ray14"):
        nih_labels(("Scoliosis",))


def test_the_split_is_of_the_patient_alone_in_the_stated_shares():
    splits = [film_split(f"patient-{number}") for number in range(3000)]

    assert splits.count("train") / 3000 == pytest.approx(0.6, abs=0.03)
    assert splits.count("validation") / 3000 == pytest.approx(0.1, abs=0.03)
    assert splits.count("test") / 3000 == pytest.approx(0.3, abs=0.03)
    assert splits[:5] == [film_split(f"patient-{number}") for number in range(5)]


def test_boxes_are_read_in_shares_of_the_film(tmp_path):
    boxes = [{"label": "Mass", "box": [50, 25, 100, 75], "src": "NIH BBox_List_2017"}]
    write_table(tmp_path, {"file": "images/a.jpg", "patient_id": "p", "boxes_json": json.dumps(boxes)})

    (row,) = read_film_rows(tmp_path)

    assert row.boxes == (("Mass", "NIH BBox_List_2017", (0.25, 0.25, 0.5, 0.75)),)
    assert row.is_nih and row.image_id == "a" and row.split == film_split("p")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"boxes_json": '[{"label": "Mass", "box": [300, 0, 400, 50]}]'}, r"line 2 \(a.jpg\).*outside the film"),
        ({"boxes_json": "[{"}, r"line 2 \(a.jpg\)"),
        ({"width": "wide"}, r"line 2 \(a.jpg\).*wide"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(row, words, tmp_path):
    write_table(tmp_path, {"file": "a.jpg", "patient_id": "p"} | row)

    with pytest.raises(DataError, match=words):
        read_film_rows(tmp_path)


def test_a_missing_column_is_named(tmp_path):
    (tmp_path / "metadata.csv").write_text("file,source\na.jpg,x\n", encoding="utf-8")

    with pytest.raises(DataError, match="column 'licence' is missing"):
        read_film_rows(tmp_path)


def test_only_permissive_films_are_prepared_with_their_labels_boxes_and_lungs(tmp_path):
    write_film(tmp_path / "images/a.jpg")
    boxes = [
        {"label": "Infiltrate", "box": [20, 10, 60, 50], "src": "NIH"},
        {"label": "Right Lung", "box": [10, 5, 90, 80], "src": "x"},
        {"label": "Airways", "box": [90, 5, 110, 80], "src": "x"},
    ]
    write_table(
        tmp_path,
        {
            "file": "images/a.jpg",
            "patient_id": "p",
            "findings": "Infiltration|Fibrosis",
            "boxes_json": json.dumps(boxes),
            "view": "AP",
        },
        {"file": "images/b.jpg", "patient_id": "q", "licence_class": "nc-sa"},
    )
    source = FilmsSource(tmp_path)

    (item,) = source.items()
    (record,) = source.records(item)

    assert record["patient_id"] == "p" and record["view"] == "AP" and record["split"] == film_split("p")
    assert record["labels"][FINDINGS.index("Lung Opacity")] == 1
    assert record["boxes"] == [{"label": "Lung Opacity", "x0": 0.1, "y0": 0.1, "x1": 0.3, "y1": 0.5}]
    assert record["regions"][REGION_NAMES.index("right lung")] == [0.05, 0.05, 0.45, 0.8]
    assert sum(region is not None for region in record["regions"]) == 1
    assert record["terms"] == ["Infiltration", "Fibrosis"] and record["report"] is None


def test_films_of_other_collections_have_no_labels(tmp_path):
    write_film(tmp_path / "a.jpg")
    write_table(tmp_path, {"file": "a.jpg", "patient_id": "p", "source": "elsewhere", "findings": "COVID-19"})
    source = FilmsSource(tmp_path)

    (record,) = source.records(source.items()[0])

    assert record["labels"] == [] and record["terms"] == ["COVID-19"]


def test_a_film_that_is_missing_is_dropped_by_name(tmp_path):
    write_table(tmp_path, {"file": "gone.jpg", "patient_id": "p"})
    source = FilmsSource(tmp_path)

    (dropped,) = source.records(source.items()[0])

    assert isinstance(dropped, Dropped) and dropped.item == "gone.jpg"


@pytest.mark.shared
def test_the_shared_films_are_split_by_patient(shared_data):
    rows = read_film_rows(shared_data / "cxr")
    permissive = FilmsSource(shared_data / "cxr").items()

    assert len(rows) == 1766
    assert sum(row.is_nih for row in rows) == 1352 and all(row in permissive for row in rows if row.is_nih)
    patients = {name: {row.patient_id for row in permissive if row.split == name} for name in ("train", "test")}
    assert not patients["train"] & patients["test"]
    assert all(len(row.labels()) == 14 for row in rows if row.is_nih)
    assert sum(bool(row.lung_mask) for row in rows) == 104
