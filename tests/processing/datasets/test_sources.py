"""Sources, on folders the tests fabricate: faithful in every column and path, with invented values."""

import gzip
import io
import json
import tarfile
import zipfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from modeling_gaze2report.processing.anatomy import REGION_NAMES
from modeling_gaze2report.processing.datasets.record import check_record
from modeling_gaze2report.processing.datasets.source_egd import EgdSource, read_transcript
from modeling_gaze2report.processing.datasets.source_folder import FolderSource
from modeling_gaze2report.processing.datasets.source_mimic_cxr import MimicCxrSource
from modeling_gaze2report.processing.datasets.source_mimic_eye import MimicEyeSource
from modeling_gaze2report.processing.datasets.source_openi import OpeniSource, parse_report
from modeling_gaze2report.processing.datasets.source_reflacx import ReflacxSource
from modeling_gaze2report.processing.datasets.source_scanpaths import GazeSearchSource, OsieSource
from modeling_gaze2report.processing.datasets.splits import Audit, scanpath_key
from modeling_gaze2report.processing.datasets.writing import Dropped
from modeling_gaze2report.processing.errors import DataError
from modeling_gaze2report.processing.report_labels import FINDINGS


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_film(path, size=(100, 80), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def run(source):
    """Records (checked) and what was dropped."""
    records, dropped = [], list(source.notes())
    for item in source.items():
        for result in source.records(item):
            if isinstance(result, Dropped):
                dropped.append(result)
            else:
                records.append(check_record(result, "test"))
    return records, dropped + [note for note in source.notes() if note not in dropped]


def label(record, name):
    return record["labels"][FINDINGS.index(name)]


# --- REFLACX ----------------------------------------------------------------------------------------------------------

METADATA = (
    "id,split,eye_tracking_data_discarded,image,dicom_id,subject_id,image_size_x,image_size_y,Atelectasis,Consolidation,"
    "Enlarged cardiac silhouette,Pleural effusion,Support devices,Other,Quality issue\n"
)
FIXATIONS = (
    "timestamp_start_fixation,timestamp_end_fixation,x_position,y_position,pupil_area_normalized,"
    "angular_resolution_x_pixels_per_degree,angular_resolution_y_pixels_per_degree,window_width,window_level,"
    "xmin_shown_from_image,ymin_shown_from_image,xmax_shown_from_image,ymax_shown_from_image,"
    "xmin_in_screen_coordinates,ymin_in_screen_coordinates,xmax_in_screen_coordinates,ymax_in_screen_coordinates\n"
    "-0.4,-0.1,50,40,1,10,10,1,0.5,0,0,100,80,0,0,3840,2160\n"
    "0.5,0.9,75,20,1,10,10,1,0.5,0,0,100,80,0,0,3840,2160\n"
    "1.5,1.9,500,20,1,10,10,1,0.5,0,0,100,80,0,0,3840,2160\n"
)
WORDS = "word,timestamp_start_word,timestamp_end_word\nlarge,2.0,2.3\nheart,2.3,2.8\n.,2.8,2.8\n"
ELLIPSES = (
    "xmin,ymin,xmax,ymax,certainty,Enlarged cardiac silhouette,Hiatal hernia\n"
    "30,40,80,72,5,True,False\n10,10,20,20,4,False,True\n10,10,20,20,1,True,False\n"
)


def reflacx_reading(folder):
    write(folder / "fixations.csv", FIXATIONS)
    write(folder / "timestamps_transcription.csv", WORDS)
    write(folder / "transcription.txt", "large heart .")
    write(folder / "anomaly_location_ellipses.csv", ELLIPSES)
    write(folder / "chest_bounding_box.csv", "xmin,ymin,xmax,ymax\n10,8,90,72\n")


@pytest.fixture
def reflacx(tmp_path):
    rows = "P102R000001,validate,False,files/p10/p10000001/s500/d1.dcm,d1,10000001,100,80,0,2,5,,True,,False\n"
    rows += "P102R000002,train,True,files/p10/p10000002/s501/d2.dcm,d2,10000002,100,80,0,0,0,0,False,,False\n"
    rows += "P102R000003,train,False,files/p10/p10000003/s502/d3.dcm,d3,10000003,100,80,0,0,0,0,False,,False\n"
    write(tmp_path / "reflacx/main_data/metadata_phase_1.csv", METADATA + rows)
    for name in ("P102R000001", "P102R000002"):
        reflacx_reading(tmp_path / "reflacx/main_data" / name)
    for number in (1, 2):
        write_film(tmp_path / f"mimic/files/p10/p1000000{number}/s50{number - 1}/d{number}.jpg", seed=number)
    return tmp_path


def test_reflacx_reading_becomes_a_record(reflacx):
    records, _ = run(ReflacxSource(reflacx / "reflacx", reflacx / "mimic"))
    record = records[0]

    assert (record["image_id"], record["patient_id"], record["study_id"]) == ("d1", "10000001", "500")
    assert (record["reader_id"], record["split"]) == ("P102R000001", "validation")
    assert record["fixations"][0] == pytest.approx({"x": 0.5, "y": 0.5, "onset_s": -0.4, "duration_s": 0.3})
    assert len(record["fixations"]) == 2
    assert record["sentences"] == [{"text": "Large heart.", "start_s": 2.0, "end_s": 2.8}]
    assert record["report"] == "large heart ."


def test_reflacx_certainties_become_labels(reflacx):
    records, _ = run(ReflacxSource(reflacx / "reflacx", reflacx / "mimic"))

    assert label(records[0], "Cardiomegaly") == 1  # certainty 5
    assert label(records[0], "Consolidation") == -1  # certainty 2
    assert label(records[0], "Atelectasis") == 0
    assert label(records[0], "Pleural Effusion") is None  # an empty cell
    assert label(records[0], "Pneumothorax") is None  # this phase did not ask
    assert label(records[0], "Support Devices") == 1
    assert label(records[0], "No Finding") == 0
    assert label(records[1], "No Finding") == 1


def test_reflacx_ellipses_become_boxes(reflacx):
    records, dropped = run(ReflacxSource(reflacx / "reflacx", reflacx / "mimic"))

    boxes = {box["label"]: [box[key] for key in ("x0", "y0", "x1", "y1")] for box in records[0]["boxes"]}
    assert boxes == {
        "Cardiomegaly": [0.3, 0.5, 0.8, 0.9],
        "Hiatal hernia": [0.1, 0.125, 0.2, 0.25],
        "chest": [0.1, 0.1, 0.9, 0.9],
    }
    assert Counter(note.lost for note in dropped)["boxes"] == 2  # one ellipse of certainty 1 in each reading


def test_reflacx_says_what_it_dropped(reflacx):
    records, dropped = run(ReflacxSource(reflacx / "reflacx", reflacx / "mimic"))

    assert [record["image_id"] for record in records] == ["d1", "d2"]
    assert records[1]["fixations"] == []
    reasons = {(note.item, note.lost, note.reason) for note in dropped}
    assert ("P102R000003", "record", "the film is missing or broken") in reasons
    assert ("P102R000002", "fixations", "eye-tracking data discarded by the data set's authors") in reasons
    assert ("P102R000001", "fixations", "fixations off the shown image") in reasons


def test_reflacx_without_metadata_says_where_it_should_be(tmp_path):
    with pytest.raises(DataError, match=r"metadata_phase_1\.csv"):
        ReflacxSource(tmp_path, None)


def test_reflacx_unknown_certainty_is_named(reflacx):
    path = reflacx / "reflacx/main_data/metadata_phase_1.csv"
    path.write_text(path.read_text().replace("d1,10000001,100,80,0,2,", "d1,10000001,100,80,0,9,"))

    _, dropped = run(ReflacxSource(reflacx / "reflacx", reflacx / "mimic"))

    assert any("row 2, column Consolidation: '9' is no certainty" in note.detail for note in dropped)


# --- EGD-CXR and MIMIC-Eye --------------------------------------------------------------------------------------------

SHEET = (
    "dicom_id,path,study_id,patient_id,image_top_pad,image_bottom_pad,image_left_pad,image_right_pad,Normal,cardiomegaly__chx,"
    "pleural_effusion__chx,no_finding__chx,cxr_exam_indication\n"
)
GAZE = (
    "SESSION_ID,MEDIA_ID,DICOM_ID,CNT,Time (in "
    "secs),TIMETICK(f=10000000),FPOGX,FPOGY,FPOGS,FPOGD,FPOGID,FPOGV,X_ORIGINAL,Y_ORIGINAL\n"
    "s,0,e1,1,5.0,0,0.5,0.5,5.2,0.3,1,1,50,20\n"
    "s,0,e1,2,5.9,0,0.5,0.5,5.8,0.2,2,1,-2.5,-2.5\n"
    "s,0,e1,3,6.5,0,0.5,0.5,6.4,0.1,3,1,25,60\n"
)


def write_egd(root, film_row="e1,files/p11/p11000001/s700/e1.dcm,700,11000001,0,0,0,0,0,1.0,-1.0,,chest pain\n"):
    write(root / "master_sheet.csv", SHEET + film_row)
    write(root / "fixations.csv", GAZE)
    boxes = "dicom_id,bbox_name,x1,x2,y1,y2\n"
    boxes += "e1,cardiac silhouette,30,80,40,72\ne1,Left Lung,50,90,8,64\ne1,carina,45,55,20,30\n"
    write(root / "bounding_boxes.csv", boxes)
    transcript = {
        "full_transcript": "Large heart. Small effusion.",
        "time_stamped_text": [
            {"phrase": "large", "begin_time": 1.0, "end_time": 1.2},
            {"phrase": "heart.", "begin_time": 1.2, "end_time": 1.8},
            {"phrase": "small effusion.", "begin_time": 3.0, "end_time": 4.0},
        ],
    }
    write(root / "audio_segmentation_transcripts/e1/transcript.json", json.dumps(transcript))


@pytest.fixture
def egd(tmp_path):
    write_egd(tmp_path / "egd")
    write_film(tmp_path / "mimic/files/p11/p11000001/s700/e1.jpg")
    return tmp_path


def test_egd_film_becomes_a_record(egd):
    records, dropped = run(EgdSource(egd / "egd", egd / "mimic"))
    (record,) = records

    assert (record["image_id"], record["patient_id"], record["study_id"]) == ("e1", "11000001", "700")
    assert record["indication"] == "chest pain"
    # onsets count from the first row's time, 5.0 s
    assert record["fixations"][0] == pytest.approx({"x": 0.5, "y": 0.25, "onset_s": 0.2, "duration_s": 0.3})
    assert [f["onset_s"] for f in record["fixations"]] == pytest.approx([0.2, 1.4])
    assert [note.lost for note in dropped] == ["fixations"]
    assert label(record, "Cardiomegaly") == 1
    assert label(record, "Pleural Effusion") == -1
    assert label(record, "No Finding") is None
    assert [s["text"] for s in record["sentences"]] == ["Large heart.", "Small effusion."]
    assert record["report"] == "Large heart. Small effusion."


def test_egd_boxes_become_regions_and_the_rest_stays_boxes(egd):
    (record,), _ = run(EgdSource(egd / "egd", egd / "mimic"))

    assert record["regions"][REGION_NAMES.index("cardiac silhouette")] == pytest.approx([0.3, 0.5, 0.8, 0.9])
    assert record["regions"][REGION_NAMES.index("left lung")] == pytest.approx([0.5, 0.1, 0.9, 0.8])
    assert sum(box is not None for box in record["regions"]) == 2
    assert [box["label"] for box in record["boxes"]] == ["carina"]


def test_egd_without_the_film_is_dropped_and_said(egd):
    (egd / "mimic/files/p11/p11000001/s700/e1.jpg").unlink()

    records, dropped = run(EgdSource(egd / "egd", egd / "mimic"))

    assert records == []
    assert dropped[0].reason == "the film is missing or broken" and "e1.jpg" in dropped[0].detail


def test_transcript_without_end_times_is_named(tmp_path):
    path = write(tmp_path / "transcript.json", json.dumps({"words": [{"phrase": "a", "begin_time": 1.0}]}))

    with pytest.raises(DataError, match="timed phrase 0 lacks its text or its end_time"):
        read_transcript(path)


@pytest.mark.parametrize("layout", ["REFLACX/main_data", "REFLACX"])
def test_mimic_eye_in_both_layouts(tmp_path, layout):
    patient = tmp_path / "mimic-eye/patient_11000001"
    header = METADATA.replace("subject_id,", "subject_id,study_id,")
    row = "P1,train,False,files/x/d1.dcm,d1,11000001,600,100,80,0,0,5,,False,,False\n"
    write(patient / "REFLACX/metadata.csv", header + row)
    reflacx_reading(patient / layout / "P1")
    write_egd(patient / "EyeGaze")
    write_film(patient / "CXR-JPG/s600/d1.jpg")
    write_film(patient / "CXR-JPG/s700/e1.jpg", seed=1)
    write(patient / "CXR-DICOM/s600.txt", " FINDINGS:\n Enlarged heart.\n\n IMPRESSION:\n Cardiomegaly.\n")

    dictated, _ = run(MimicEyeSource(tmp_path))
    clinical, _ = run(MimicEyeSource(tmp_path, report="clinical"))

    assert [(r["image_id"], r["patient_id"], r["study_id"]) for r in dictated] == [
        ("d1", "11000001", "600"),
        ("e1", "11000001", "700"),
    ]
    assert len({r["split"] for r in dictated}) == 1
    assert dictated[0]["report"] == "large heart ."
    assert len(dictated[0]["fixations"]) == len(dictated[1]["fixations"]) == 2
    assert clinical[0]["report"] == "FINDINGS: Enlarged heart. IMPRESSION: Cardiomegaly."


# --- MIMIC-CXR-JPG ----------------------------------------------------------------------------------------------------


@pytest.fixture
def mimic(tmp_path):
    def packed(name, text):
        path = tmp_path / f"mimic-cxr-2.0.0-{name}.csv.gz"
        path.write_bytes(gzip.compress(text.encode()))

    packed(
        "metadata",
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime\n"
        "b,12000001,801,CHEST (PA AND LAT),PA,80,100,21800102,1200.5\n"
        "a,12000001,800,CHEST (PORTABLE AP),AP,80,100,21800101,900.0\n"
        "c,12000001,801,CHEST (PA AND LAT),LATERAL,80,100,21800102,1200.5\n"
        "d,12000002,802,CHEST,PA,80,100,21800103,900.0\n",
    )
    packed(
        "split",
        "dicom_id,study_id,subject_id,split\na,800,12000001,validate\nb,801,12000001,validate\nc,801,12000001,validate\n",
    )
    packed(
        "chexpert",
        "subject_id,study_id,Atelectasis,Cardiomegaly,No Finding,Pleural Effusion\n12000001,801,1.0,-1.0,,0.0\n",
    )
    for name, study in (("a", 800), ("b", 801), ("c", 801)):
        write_film(tmp_path / f"files/p12/p12000001/s{study}/{name}.jpg", seed=ord(name))
    write(
        tmp_path / "files/p12/p12000001/s801.txt",
        " INDICATION: Cough.\n\n FINDINGS: Bibasilar atelectasis.\n\n IMPRESSION: Atelectasis.\n",
    )
    return tmp_path


def test_mimic_cxr_frontal_films_with_reports_labels_and_priors(mimic):
    records, dropped = run(MimicCxrSource(mimic))
    before, now = records

    assert [r["image_id"] for r in records] == ["a", "b"]
    assert now["prior_image_id"] == "a" and before["prior_image_id"] is None
    assert (now["split"], now["view"], now["indication"]) == ("validation", "PA", "Cough.")
    assert now["report"] == "FINDINGS: Bibasilar atelectasis. IMPRESSION: Atelectasis."
    assert [label(now, n) for n in ("Atelectasis", "Cardiomegaly", "No Finding", "Pleural Effusion")] == [
        1,
        -1,
        None,
        0,
    ]
    reasons = {(note.item, note.lost, note.reason) for note in dropped}
    assert reasons == {("a", "report", "the report is missing"), ("d", "record", "not in the split table")}


def test_mimic_cxr_with_lateral_films(mimic):
    records, _ = run(MimicCxrSource(mimic, views="all"))

    assert sorted(r["image_id"] for r in records) == ["a", "b", "c"]


def test_truncated_film_is_dropped_and_said(mimic):
    path = mimic / "files/p12/p12000001/s801/b.jpg"
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])

    _, dropped = run(MimicCxrSource(mimic))

    assert any(note.item == "b" and "broken" in note.detail for note in dropped)


def test_large_films_are_made_smaller_on_request(mimic):
    records, _ = run(MimicCxrSource(mimic, max_side=50))

    assert Image.open(io.BytesIO(records[0]["image"]["bytes"])).size == (50, 40)


# --- Open-i -----------------------------------------------------------------------------------------------------------

XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR7"/><MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText><AbstractText Label="INDICATION">Cough</AbstractText>
<AbstractText Label="FINDINGS"/><AbstractText Label="IMPRESSION">Right effusion.</AbstractText>
</Abstract></Article></MedlineCitation><MeSH><major>Pleural Effusion/right/small</major>
<major>Thickening/pleura/apex</major><automatic>effusion</automatic></MeSH>
<parentImage id="CXR7_IM-1"/><parentImage id="CXR7_IM-2"/></eCitation>"""


def test_openi_report_without_films(tmp_path):
    write(tmp_path / "7.xml", XML)

    (record,), dropped = run(OpeniSource(tmp_path))

    assert dropped == []
    assert (record["image_id"], record["patient_id"], record["image"]) == ("CXR7_IM-1", "CXR7", None)
    assert (record["findings_text"], record["impression"], record["report"]) == (
        None,
        "Right effusion.",
        "Right effusion.",
    )
    assert (record["indication"], record["comparison"]) == ("Cough", "None.")
    assert record["terms"] == ["Pleural Effusion/right/small", "Thickening/pleura/apex"]
    assert [label(record, n) for n in ("Pleural Effusion", "Pleural Other", "Edema")] == [1, 1, None]


def test_openi_report_with_films(tmp_path):
    write(tmp_path / "xml/7.xml", XML)
    write_film(tmp_path / "png/CXR7_IM-2.png")

    (record,), dropped = run(OpeniSource(tmp_path / "xml", tmp_path / "png"))

    assert record["image_id"] == "CXR7_IM-2" and record["image"]["bytes"]
    assert [(note.item, note.lost) for note in dropped] == [("CXR7_IM-1", "image")]


def test_broken_xml_is_dropped_with_its_row(tmp_path):
    write(tmp_path / "7.xml", XML)
    write(tmp_path / "8.xml", XML.replace("</Abstract>", ""))
    write(tmp_path / "9.xml", "<other/>")

    records, dropped = run(OpeniSource(tmp_path))

    assert len(records) == 1
    assert "8.xml: row 5: broken XML" in dropped[0].detail
    assert "no uId" in dropped[1].detail


@pytest.mark.parametrize("name", ["../evil.xml", "/etc/evil.xml", "a/../../evil.xml", "C:\\evil.xml"])
@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_archive_that_leads_out_of_its_folder_is_refused(tmp_path, name, kind):
    path = tmp_path / f"reports.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, XML)
    else:
        with tarfile.open(path, "w:gz") as archive:
            info = tarfile.TarInfo(name)
            info.size = len(XML)
            archive.addfile(info, io.BytesIO(XML.encode()))

    with pytest.raises(DataError, match="leads out of the archive's folder"):
        OpeniSource(path).items()
    assert not list(tmp_path.rglob("evil.xml"))


def test_broken_archive_is_named(tmp_path):
    path = tmp_path / "reports.tgz"
    path.write_bytes(b"no archive at all")

    with pytest.raises(DataError, match=r"reports\.tgz: no archive that can be read"):
        OpeniSource(path).items()


@pytest.mark.shared
def test_all_openi_reports(shared_data):
    records, dropped = run(OpeniSource(shared_data / "openi" / "NLMCXR_reports.tgz"))

    assert dropped == []
    counts = {
        "records": len(records),
        "distinct reports": len({r["study_id"] for r in records}),
        "with findings": sum(r["findings_text"] is not None for r in records),
        "with impression": sum(r["impression"] is not None for r in records),
        "with indication": sum(r["indication"] is not None for r in records),
        "with comparison": sum(r["comparison"] is not None for r in records),
        "without report": sum(r["report"] is None for r in records),
        "with MeSH": sum(bool(r["terms"]) for r in records),
        "normal": sum("normal" in r["terms"] for r in records),
    }
    # counted in the XML text itself: non-empty AbstractText elements by label, and <major> elements
    with tarfile.open(shared_data / "openi" / "NLMCXR_reports.tgz") as archive:
        texts = [archive.extractfile(m).read().decode() for m in archive if m.name.endswith(".xml")]
    has = {
        name: sum(_section(text, name) for text in texts)
        for name in ("FINDINGS", "IMPRESSION", "INDICATION", "COMPARISON")
    }
    assert counts == {
        "records": 3955,
        "distinct reports": 3955,
        "with findings": has["FINDINGS"],
        "with impression": has["IMPRESSION"],
        "with indication": has["INDICATION"],
        "with comparison": has["COMPARISON"],
        "without report": sum(not _section(t, "FINDINGS") and not _section(t, "IMPRESSION") for t in texts),
        "with MeSH": sum("<major>" in text for text in texts),
        "normal": sum("<major>normal</major>" in text for text in texts),
    }


def _section(text, name):
    start = text.index(f'Label="{name}"')
    tag_end = text.index(">", start)
    return text[tag_end - 1] != "/" and bool(text[tag_end + 1 : text.index("<", tag_end)].strip())


def test_report_without_sections_is_still_a_record():
    report = parse_report(b'<eCitation><uId id="CXR1"/></eCitation>', "1.xml")

    assert report["FINDINGS"] is None and report["mesh"] == [] and report["films"] == []


# --- scanpath data sets -----------------------------------------------------------------------------------------------


@pytest.fixture
def gazesearch(tmp_path):
    def entry(name, task, split, x):
        return {
            "name": name,
            "subject": 1,
            "task": task,
            "condition": "present",
            "bbox": [0, 0, 0, 0],
            "X": [x, 50],
            "Y": [20, 60],
            "T": [0.2, 0.3],
            "length": 2,
            "fixOnTarget": True,
            "correct": 1,
            "split": split,
        }

    entries = [entry(f"film{k}.jpg", "edema", "train", k + 1) for k in range(40)]
    entries += [entry(f"film{k}.jpg", "pneumonia", "test", k + 1) for k in range(10)]  # copies under another finding
    entries += [entry(f"film{k}.jpg", "atelectasis", "valid", k + 101) for k in range(20, 30)]
    write(tmp_path / "gazesearch.json", json.dumps(entries))
    return tmp_path


def audit_of(records):
    audit = Audit()
    for r in records:
        audit.add(
            {
                "patient_id": r["patient_id"],
                "image_id": r["image_id"],
                "split": r["split"],
                "film": None,
                "scanpath": scanpath_key(r["fixations"]),
            }
        )
    return audit.result()


def test_gazesearch_split_by_film_does_not_leak(gazesearch):
    records, dropped = run(GazeSearchSource(gazesearch))

    assert audit_of(records)["passed"]
    assert len(records) == 50
    assert sum("merged" in note.reason for note in dropped) == 10
    merged = next(r for r in records if r["image_id"] == "film3")
    assert merged["terms"] == ["edema", "pneumonia"]
    assert label(merged, "Edema") == label(merged, "Pneumonia") == 1
    assert merged["fixations"][0] == pytest.approx({"x": 4 / 224, "y": 20 / 224, "onset_s": 0.0, "duration_s": 0.2})


def test_gazesearch_official_split_is_kept_and_its_leak_found(gazesearch):
    records, _ = run(GazeSearchSource(gazesearch, split="official"))

    audit = audit_of(records)
    assert Counter(r["split"] for r in records) == {"train": 40, "test": 10, "validation": 10}
    assert audit["images_in_two_splits"]["count"] == 20
    assert audit["duplicated_scanpaths"] == {
        "count": 10,
        "across_splits": 10,
        "examples": sorted(f"film{k}" for k in range(10)),
    }


@pytest.mark.shared
def test_osie_has_fifteen_observers_for_every_picture(shared_data):
    source = OsieSource(shared_data / "osie")

    items = source.items()
    assert len(items) == 609
    assert {len(item["entries"]) for item in items} == {15}
    records = [r for r in source.records(items[0]) if not isinstance(r, Dropped)]
    assert len(records) == 15 and len({r["reader_id"] for r in records}) == 15
    # 1002.jpg, observer 0: X 244.6, Y 308.0, T 102.0 and 142.0 ms on 800 x 600
    assert records[0]["fixations"][0] == pytest.approx(
        {"x": 244.6 / 800, "y": 308 / 600, "onset_s": 0.0, "duration_s": 0.102}
    )
    assert records[0]["fixations"][1]["onset_s"] == pytest.approx(0.102)


# --- a folder ---------------------------------------------------------------------------------------------------------


def test_folder_with_a_table_gaze_files_and_a_column_map(tmp_path):
    write_film(tmp_path / "films/one.png")
    write(tmp_path / "gaze/one.csv", "x,y,duration_s\n50,20,0.25\n")
    write(
        tmp_path / "metadata.csv",
        "datei,befund,gaze,patient_id,split,Cardiomegaly,pleural_effusion\nfilms/one.png,Big "
        "heart.,gaze/one.csv,p1,val,1,-1\n",
    )

    (record,), dropped = run(FolderSource(tmp_path, columns={"image": "datei", "report": "befund"}))

    assert dropped == []
    assert (record["image_id"], record["patient_id"], record["split"], record["report"]) == (
        "films/one",
        "p1",
        "validation",
        "Big heart.",
    )
    assert record["fixations"] == [{"x": 0.5, "y": 0.25, "onset_s": 0.0, "duration_s": 0.25}]
    assert [label(record, n) for n in ("Cardiomegaly", "Pleural Effusion", "Edema")] == [1, -1, None]


def test_folder_of_films_alone(tmp_path):
    write_film(tmp_path / "b.png", seed=1)
    write_film(tmp_path / "sub/a.jpg", seed=2)

    records, _ = run(FolderSource(tmp_path))

    assert [r["image_id"] for r in records] == ["b", "sub/a"]


def test_folder_with_jsonl_takes_lists(tmp_path):
    write_film(tmp_path / "a.png")
    line = {
        "image": "a.png",
        "report": "Clear.",
        "boxes": [{"label": "Edema", "x0": 0.1, "y0": 0.1, "x1": 0.5, "y1": 0.5}],
    }
    write(tmp_path / "data.jsonl", json.dumps(line) + "\n")

    (record,), _ = run(FolderSource(tmp_path))

    assert record["boxes"] == line["boxes"]


def test_folder_drops_are_named_with_their_row(tmp_path):
    write_film(tmp_path / "a.png")
    write(tmp_path / "metadata.csv", "image,Edema\na.png,1\nmissing.png,1\n../../outside.png,1\na.png,maybe\n,1\n")

    records, dropped = run(FolderSource(tmp_path))

    assert len(records) == 1
    assert [(note.item.split(": ")[1], note.reason) for note in dropped] == [
        ("row 3", "the film is missing or broken"),
        ("row 4", "the image lies outside the root"),
        ("row 5", "the row cannot be used"),
        ("row 6", "no image named"),
    ]
    assert "column Edema: 'maybe' is no label" in dropped[2].detail


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"report": "befund"}, "column 'befund' .* is missing; there are image, text"),
        ({"colour": "text"}, "--columns colour"),
    ],
)
def test_folder_wrong_map_is_named(tmp_path, columns, message):
    write_film(tmp_path / "a.png")
    write(tmp_path / "metadata.csv", "image,text\na.png,x\n")

    with pytest.raises(DataError, match=message):
        FolderSource(tmp_path, columns=columns).items()
