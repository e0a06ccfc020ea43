"""The DICOM structured report: what it says and refers to, and what Debian's dciodvfy and dsrdump make of it."""

import hashlib
import re
import shutil
import subprocess

import numpy as np
import pytest

from modeling_gaze2report.processing.anatomy import REGION_NAMES
from modeling_gaze2report.processing.dicom_sr import FINDING_CODES, REGION_CODES, SIDE_CODES, dicom_report, site_codes
from modeling_gaze2report.processing.errors import InputError
from modeling_gaze2report.processing.report_labels import FINDINGS

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

STUDY, SERIES, IMAGE = "1.2.3.4.1", "1.2.3.4.2", "1.2.3.4.3"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
EFFUSION_BOX = [0.1, 0.7, 0.4, 0.9]


def save_source(path, **values):
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = DX, IMAGE
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = DX, IMAGE
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, SERIES
    dataset.Modality, dataset.PatientID, dataset.PatientName = "DX", "4711", "Doe^Jane"
    dataset.AccessionNumber, dataset.StudyDate, dataset.PatientSex = "A1", "20200229", "F"
    dataset.PatientAge, dataset.PatientComments = "041Y", "a secret"
    dataset.Rows, dataset.Columns = 300, 200
    for keyword, value in values.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def source(tmp_path):
    return save_source(tmp_path / "film.dcm")


def make_record(path, seen=(("Pleural Effusion", 0.87, "right costophrenic angle", EFFUSION_BOX),), **values):
    placed = {name: (probability, region, box) for name, probability, region, box in seen}
    findings = []
    for name in FINDINGS:
        probability, region, box = placed.get(name, (0.25, None, None))
        findings.append({"name": name, "probability": probability, "region": region, "box": box})
    return {
        "image": {
            "name": path.name,
            "width": 200,
            "height": 300,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        },
        "model": {"name_or_path": "a/model", "revision": None, "package_version": "0.1.0"},
        "strategy": "direct",
        "gaze": {"source": "predicted", "fixations": []},
        "report": "Right effusion. Herz groß, 心臓.",
        "sentences": [{"text": "Right effusion."}, {"text": "Herz groß, 心臓 \udcff."}],
        "findings": findings,
        "warnings": ["Look again."],
    } | values


def items(report):
    """All content items, by the meaning of their name."""
    found = {}

    def collect(item):
        if "ConceptNameCodeSequence" in item:
            found.setdefault(item.ConceptNameCodeSequence[0].CodeMeaning, []).append(item)
        for child in item.get("ContentSequence", ()):
            collect(child)

    collect(report)
    return found


def saved(report, tmp_path):
    report.save_as(tmp_path / "film.sr.dcm", enforce_file_format=True)
    return pydicom.dcmread(tmp_path / "film.sr.dcm")


def test_a_finding_is_a_group_with_its_place_and_certainty(source, tmp_path):
    found = items(saved(dicom_report(make_record(source), source), tmp_path))

    (group,) = found["Measurement Group"]
    (finding, *_) = [one for one in found["Finding"] if "ConceptCodeSequence" in one]
    assert finding.ConceptCodeSequence[0].CodeMeaning == "Pleural effusion"
    (site,) = found["Finding Site"]
    assert site.ConceptCodeSequence[0].CodeMeaning == "Costophrenic angle"
    assert found["Laterality"][0].ConceptCodeSequence[0].CodeMeaning == "Right"
    value = found["Certainty of Finding"][0].MeasuredValueSequence[0]
    assert (float(value.NumericValue), value.MeasurementUnitsCodeSequence[0].CodeValue) == (87, "%")
    assert found["Algorithm Name"][0].TextValue == "Gaze2Report"
    assert found["Algorithm Version"][0].TextValue == "0.1.0"
    (region,) = found["Image Region"]
    # Of 200 x 300 pixels: columns 20 to 80, rows 210 to 270; the outline is closed.
    outline = [(20, 210), (80, 210), (80, 270), (20, 270), (20, 210)]
    assert region.GraphicType == "POLYLINE"
    np.testing.assert_allclose(np.reshape(region.GraphicData, (-1, 2)), outline, rtol=1e-6)
    image = region.ContentSequence[0].ReferencedSOPSequence[0]
    assert (image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID) == (DX, IMAGE)
    assert group.ContentSequence


def test_it_belongs_to_the_images_study_and_patient_and_is_unverified(source, tmp_path):
    report = saved(dicom_report(make_record(source), source), tmp_path)

    assert (report.StudyInstanceUID, report.PatientID, str(report.PatientName)) == (STUDY, "4711", "Doe^Jane")
    assert (report.AccessionNumber, report.StudyDate, report.PatientSex) == ("A1", "20200229", "F")
    assert report.SeriesInstanceUID not in (SERIES, "") and report.SOPInstanceUID != IMAGE
    assert report.Modality == "SR"
    flags = (report.VerificationFlag, report.CompletionFlag, report.PreliminaryFlag)
    assert flags == ("UNVERIFIED", "PARTIAL", "PRELIMINARY")
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0]
    assert evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == IMAGE
    # No more of the patient than the standard asks for.
    assert "PatientAge" not in report and "PatientComments" not in report


def test_the_text_stands_in_it_with_the_notice(source, tmp_path):
    found = items(saved(dicom_report(make_record(source), source), tmp_path))

    sentences = [one.TextValue for one in found["Finding"] if "TextValue" in one]
    assert sentences == ["Right effusion.", "Herz groß, 心臓 \\udcff."]
    comments = [one.TextValue for one in found["Comment"]]
    assert comments[0].startswith("Automated, not verified.") and "Warning: Look again." in comments


def test_two_reports_are_two_documents_of_one_observer(source):
    reports = [dicom_report(make_record(source), source) for _ in range(2)]

    assert reports[0].SOPInstanceUID != reports[1].SOPInstanceUID
    observers = {items(report)["Device Observer UID"][0].UID for report in reports}
    assert len(observers) == 1


def test_a_film_without_findings_is_a_group_of_its_own(source):
    found = items(dicom_report(make_record(source, seen=()), source))

    assert len(found["Measurement Group"]) == 1 and "Image Region" not in found
    assert float(found["Certainty of Finding"][0].MeasuredValueSequence[0].NumericValue) == 25


def test_codes_of_the_standard_are_those_that_the_standard_lists():
    from pydicom.sr.codedict import codes

    for value, scheme, meaning in (*FINDING_CODES.values(), *REGION_CODES.values(), *SIDE_CODES.values()):
        assert len(value) <= 16 and len(scheme) <= 16 and len(meaning) <= 64
        if scheme == "SCT":
            keyword = "".join(word[0].upper() + word[1:] for word in meaning.split())
            assert getattr(codes.SCT, keyword).value == value


def test_every_finding_and_region_has_a_code():
    assert set(FINDING_CODES) == set(FINDINGS)
    for name in REGION_NAMES:
        location, side = site_codes(name)
        assert location[2] and (side is None) == (name.split()[0] not in ("left", "right"))


# -- what cannot be referred to ---------------------------------------------------------------------------------------


def test_a_picture_is_no_source(tmp_path):
    path = tmp_path / "film.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))

    with pytest.raises(InputError, match=r"film\.png.*DICOM"):
        dicom_report(make_record(path), path)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
@pytest.mark.parametrize("value", [None, "1.2.abc"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_source_without_its_identifiers_is_named(tmp_path, keyword, value):
    path = save_source(tmp_path / "film.dcm", **{keyword: value})

    with pytest.raises(InputError, match=rf"film\.dcm: its {keyword} is"):
        dicom_report(make_record(path), path)


def test_a_record_of_another_file_is_refused(source):
    record = make_record(source)
    record["image"]["sha256"] = "0" * 64

    with pytest.raises(InputError, match="not the file that the record is about"):
        dicom_report(record, source)


# -- Debian's readers -------------------------------------------------------------------------------------------------


def program(name, package, path):
    if shutil.which(name) is None:
        pytest.skip(f"needs {name} of Debian's {package}")
    return subprocess.run([name, str(path)], capture_output=True, text=True, errors="replace")


SOURCES = {
    "whole": {},
    "sparse": {"PatientID": None, "PatientName": None, "AccessionNumber": None, "StudyDate": None, "PatientSex": None},
    "Latin": {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jörg"},
    "broken": {"PatientAge": "62", "PatientSex": "X", "StudyDate": "29.02.2020", "PatientBirthDate": "unknown"},
}
TWO = (
    ("Pleural Effusion", 0.87, "right costophrenic angle", EFFUSION_BOX),
    ("Pneumonia", 1.0, None, [0.0, 0.0, 1.0, 1.0]),
)


@pytest.mark.debian
@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("seen", [TWO, ()], ids=["findings", "none"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_validators_find_no_error_and_read_it(tmp_path, kind, seen):
    path = save_source(tmp_path / "film.dcm", **SOURCES[kind])
    report = dicom_report(make_record(path, seen), path)
    report.save_as(tmp_path / "film.sr.dcm", enforce_file_format=True)

    faults = program("dciodvfy", "dicom3tools", tmp_path / "film.sr.dcm")
    dump = program("dsrdump", "dcmtk", tmp_path / "film.sr.dcm")

    assert "ComprehensiveSR" in faults.stderr and not re.findall(r"(?m)^Error.*", faults.stderr)
    assert dump.returncode == 0
    assert "Comprehensive SR Document" in dump.stdout and "UNVERIFIED" in dump.stdout
    assert dump.stdout.count("Certainty of Finding") == max(1, len(seen))
