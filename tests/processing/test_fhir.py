"""The FHIR report: valid by fhir.resources, and what it refers to."""

import base64
import json
from datetime import UTC, datetime

import pytest

from modeling_gaze2report.processing.fhir import fhir_report

from .test_dicom_sr import EFFUSION_BOX, IMAGE, SERIES, STUDY, TWO, make_record, save_source

DiagnosticReport = pytest.importorskip("fhir.resources.R4B.diagnosticreport").DiagnosticReport
pydicom = pytest.importorskip("pydicom")

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def path(tmp_path):
    return save_source(tmp_path / "film.dcm")


def valid(report):
    """The report after it went through JSON and the validator."""
    text = json.dumps(report)
    DiagnosticReport.model_validate_json(text)
    return json.loads(text)


def contained(report, kind):
    return [one for one in report["contained"] if one["resourceType"] == kind]


def references(values):
    if isinstance(values, dict):
        for key, value in values.items():
            if key == "reference":
                yield value
            yield from references(value)
    elif isinstance(values, list):
        for value in values:
            yield from references(value)


@pytest.mark.parametrize("seen", [TWO, ()], ids=["findings", "none"])
@pytest.mark.parametrize("has_source", [True, False])
def test_it_is_valid_and_holds_all_that_it_refers_to(path, seen, has_source):
    source = pydicom.dcmread(path) if has_source else None

    report = valid(fhir_report(make_record(path, seen), source, NOW))

    inside = {f"#{one['id']}" for one in report["contained"]}
    assert set(references(report)) == inside
    assert len(contained(report, "Observation")) == max(1, len(seen))


def test_it_is_preliminary_and_says_so(path):
    report = valid(fhir_report(make_record(path), issued=NOW))

    assert report["status"] == "preliminary" and report["issued"] == "2026-01-02T03:04:05+00:00"
    for text in (report["conclusion"], report["text"]["div"], report["contained"][2]["note"][0]["text"]):
        assert "Automated, not verified." in text
    assert report["conclusion"].startswith("Right effusion.")


def test_a_finding_is_an_observation_with_its_place(path):
    (observation,) = contained(valid(fhir_report(make_record(path), issued=NOW)), "Observation")

    assert observation["code"]["text"] == "Pleural Effusion"
    assert observation["code"]["coding"][0]["code"] == "60046008"
    assert observation["valueQuantity"]["value"] == 0.87
    assert observation["bodySite"]["text"] == "right costophrenic angle"
    assert [part["valueQuantity"]["value"] for part in observation["component"]] == EFFUSION_BOX
    assert observation["status"] == "preliminary"


def test_a_dicom_source_is_referred_to_by_its_identifiers(path):
    report = valid(fhir_report(make_record(path), pydicom.dcmread(path), NOW))

    (study,) = contained(report, "ImagingStudy")
    assert study["identifier"][0]["value"] == f"urn:oid:{STUDY}"
    (series,) = study["series"]
    assert (series["uid"], series["instance"][0]["uid"]) == (SERIES, IMAGE)
    assert report["imagingStudy"] == [{"reference": "#image"}]
    assert report["subject"] == {"identifier": {"value": "4711"}}


def test_another_source_is_referred_to_by_its_digest(path):
    record = make_record(path)

    report = valid(fhir_report(record, issued=NOW))

    (media,) = contained(report, "Media")
    kind, _, digest = media["identifier"][0]["value"].partition(";")
    assert kind == "ni:///sha-256"
    assert base64.urlsafe_b64decode(digest + "=").hex() == record["image"]["sha256"]
    assert media["content"]["title"] == "film.dcm"


def test_text_is_escaped_in_the_narrative(path):
    sentences = [{"text": "<script>alert(1)</script> & \x00\udcff"}]

    report = valid(fhir_report(make_record(path, report=sentences[0]["text"], sentences=sentences), issued=NOW))

    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; \ufffd\ufffd" in report["text"]["div"]
