"""The studies behind quoted figures, on small inputs and on the real ones."""

import csv
import json

import numpy as np
import pytest

from modeling_gaze2report.processing.errors import DataError
from modeling_gaze2report.processing.metrics.studies import labeler_table, main, openi_reports

REPORT = """<eCitation><uId id="CXR0"/><Abstract><AbstractText Label="INDICATION">Pneumonia?</AbstractText>
<AbstractText Label="FINDINGS">{}</AbstractText><AbstractText
Label="IMPRESSION">Done.</AbstractText></Abstract></eCitation>
"""
CATEGORIES = [
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
    "normal",
]


@pytest.fixture
def small(tmp_path):
    """Three reports and their gold labels: one effusion found, one missed, one nodule found."""
    texts = ["Small effusion.", "Nothing said.", "Lung nodule."]
    for number, text in enumerate(texts, start=1):
        (tmp_path / f"{number}.xml").write_text(REPORT.format(text), encoding="utf-8")
    gold = tmp_path / "gold.csv"
    with gold.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", *CATEGORIES])
        for name, positive in (("CXR1", "Effusion"), ("CXR2", "Effusion"), ("CXR3", "Nodule")):
            writer.writerow([name, *(int(category == positive) for category in CATEGORIES)])
    return tmp_path, gold


def test_findings_and_impression_are_read_and_the_indication_is_not(small):
    assert openi_reports(small[0])["CXR1"] == "Small effusion.\n\nDone."


def test_the_table_counts_by_hand(small):
    folder, gold = small

    rows = {row["finding"]: row for row in labeler_table(gold, openi_reports(folder)) if row["uncertain"] == "negative"}

    effusion, micro = rows["Pleural Effusion"], rows["micro, 8 with Mass and Nodule = Lung Lesion"]
    assert (effusion["tp"], effusion["fp"], effusion["fn"]) == (1, 0, 1)
    assert effusion["f1"] == pytest.approx(2 / 3)
    assert micro["f1"] == pytest.approx(0.8)  # two found, one missed


def test_gold_labels_without_their_reports_are_named(small):
    with pytest.raises(DataError, match="first 'CXR2'"):
        labeler_table(small[1], {"CXR1": "", "CXR3": ""})


@pytest.mark.shared
def test_the_labeler_reaches_the_published_f1_on_open_i(shared_data):
    folder = shared_data / "openi"

    rows = labeler_table(folder / "gold_14labels.csv", openi_reports(folder / "NLMCXR_reports.tgz"))

    micro = [row["f1"] for row in rows if row["finding"].startswith("micro") and row["uncertain"] == "negative"]
    assert len(micro) == 3
    assert min(micro) >= 0.90


def test_the_ceiling_of_identical_observers_is_one(tmp_path, capsys):
    generator = np.random.default_rng(0)
    path = tmp_path / "scanpaths.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for image in range(3):
            x, y = (800 * generator.random(6)).tolist(), (600 * generator.random(6)).tolist()
            for observer in range(3):
                record = {"name": f"{image}.jpg", "subject": observer, "X": x, "Y": y, "T": [200] * 6}
                file.write(json.dumps(record | {"width": 800, "height": 600}) + "\n")

    status = main(["ceiling", "--scanpaths", str(path)])

    page = capsys.readouterr().out
    assert status == 0
    assert "3 images, 3.0 observers each" in page
    assert "| ScanMatch ↑ | 1.000 [1.000, 1.000] |" in page
    assert "| String edit distance ↓ | 0.000 [0.000, 0.000] |" in page


@pytest.mark.shared
def test_the_human_ceiling_of_osie_is_computed(shared_data, capsys):
    status = main(["ceiling", "--scanpaths", str(shared_data / "osie" / "fixations.jsonl.gz"), "--images", "3"])

    page = capsys.readouterr().out
    assert status == 0
    assert "3 images, 15.0 observers each" in page
    for title in ("ScanMatch ↑", "MultiMatch shape ↑", "String edit distance ↓", "Information gain (bit) ↑"):
        assert title in page


@pytest.mark.shared
def test_scanmatch_and_multimatch_are_five_times_faster_than_multimatch_gaze(shared_data, capsys):
    pytest.importorskip("multimatch_gaze")

    main(["speed", "--scanpaths", str(shared_data / "osie" / "fixations.jsonl.gz"), "--pairs", "60"])

    ratios = {
        cells[1].strip(): float(cells[3])
        for cells in (line.split("|") for line in capsys.readouterr().out.splitlines())
        if len(cells) == 5 and "ms/pair" in cells[2]
    }
    assert ratios["MultiMatch"] > 5
    assert ratios["ScanMatch"] > 5


def test_an_unreadable_study_input_is_an_error_without_traceback(tmp_path, capsys):
    assert main(["ceiling", "--scanpaths", str(tmp_path / "none")]) == 2
    assert "none: cannot be read" in capsys.readouterr().err
