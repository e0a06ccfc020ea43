"""A report with its evidence as a FHIR R4 `DiagnosticReport` in JSON, for a hospital's record system.

One resource that holds what it refers to: an `Observation` for each finding that was seen (its probability, region and
box) or else for "No Finding", the `Device` that made them, and the source: an `ImagingStudy` where it is a DICOM image,
else a `Media` with the file's name and its SHA-256 as an RFC 6920 name. Its status is preliminary, and it says that it
was made automatically.
"""

import base64
import html
import re
from datetime import UTC, datetime

from .dicom_sr import FINDING_CODES, NOTICE, OWN_SCHEME, site_codes

_SYSTEMS = {
    "SCT": "http://snomed.info/sct",
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    OWN_SCHEME: "urn:gaze2report:finding",
}
_SIDES = ("x0", "y0", "x1", "y1")
_LOINC_IMAGING = {"system": "http://loinc.org", "code": "18748-4", "display": "Diagnostic imaging study"}
_RADIOLOGY = {"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "RAD", "display": "Radiology"}
# What neither XML nor a FHIR string may hold.
_UNPRINTABLE_RE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def fhir_report(record: dict, source=None, issued: datetime | None = None) -> dict:
    """The `DiagnosticReport` of an evidence record, as plain JSON values.

    Args:
        record: evidence record, schema `gaze2report.evidence/1`.
        source: header of the DICOM image (`pydicom.Dataset`), or `None` where the film is no DICOM file. Its patient
            and study identifiers then stand in the report.
        issued: when the report was made; now when left out.
    """
    subject = _subject(source)
    image = _media(record, subject) if source is None else _imaging_study(source, subject)
    device = {
        "resourceType": "Device",
        "id": "device",
        "deviceName": [{"name": "Gaze2Report", "type": "model-name"}],
        "version": [{"value": _text(record["model"]["package_version"] or "unknown")}],
        "note": [{"text": _text(f"Model: {record['model']['name_or_path']}")}],
    }
    seen = [finding for finding in record["findings"] if finding["box"]]
    # Where nothing was seen, the report says how sure the model is of that.
    seen = seen or [finding for finding in record["findings"] if finding["name"] == "No Finding"]
    observations = [_observation(number, finding, image, subject) for number, finding in enumerate(seen, 1)]
    issued = issued or datetime.now(UTC)
    report = {
        "resourceType": "DiagnosticReport",
        "text": {"status": "generated", "div": _narrative(record)},
        "contained": [device, image, *observations],
        "status": "preliminary",
        "category": [{"coding": [_RADIOLOGY]}],
        "code": {"coding": [_LOINC_IMAGING], "text": "Chest X-ray report, automated, not verified"},
        "subject": subject,
        "issued": issued.isoformat(timespec="seconds"),
        "result": [{"reference": f"#{observation['id']}"} for observation in observations],
        "conclusion": _text(f"{record['report']}\n\n{NOTICE}"),
    }
    if source is None:
        report["media"] = [{"comment": "The film that was read", "link": {"reference": "#image"}}]
    else:
        report["imagingStudy"] = [{"reference": "#image"}]
    return report


def _subject(source) -> dict:
    patient = "" if source is None else str(source.get("PatientID") or "").strip()
    return {"identifier": {"value": _text(patient)}} if patient else {"display": "unknown patient"}


def _imaging_study(source, subject: dict) -> dict:
    modality = {"system": _SYSTEMS["DCM"], "code": str(source.get("Modality") or "OT")}
    return {
        "resourceType": "ImagingStudy",
        "id": "image",
        "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{source.StudyInstanceUID}"}],
        "status": "available",
        "subject": subject,
        "numberOfSeries": 1,
        "numberOfInstances": 1,
        "series": [
            {
                "uid": str(source.SeriesInstanceUID),
                "modality": modality,
                "instance": [
                    {
                        "uid": str(source.SOPInstanceUID),
                        "sopClass": {"system": "urn:ietf:rfc:3986", "code": f"urn:oid:{source.SOPClassUID}"},
                    }
                ],
            }
        ],
    }


def _media(record: dict, subject: dict) -> dict:
    image = record["image"]
    media = {
        "resourceType": "Media",
        "id": "image",
        "status": "completed",
        "subject": subject,
        "width": image["width"],
        "height": image["height"],
        "content": {"title": _text(image["name"]) or "film"},
    }
    if image["sha256"]:
        digest = base64.urlsafe_b64encode(bytes.fromhex(image["sha256"])).decode().rstrip("=")
        media["identifier"] = [{"system": "urn:ietf:rfc:3986", "value": f"ni:///sha-256;{digest}"}]
    return media


def _observation(number: int, finding: dict, image: dict, subject: dict) -> dict:
    observation = {
        "resourceType": "Observation",
        "id": f"finding-{number}",
        "status": "preliminary",
        "code": {"coding": [_coding(FINDING_CODES[finding["name"]])], "text": finding["name"]},
        "subject": subject,
        "valueQuantity": _ratio(finding["probability"]),
        "note": [{"text": NOTICE}],
        "device": {"reference": "#device"},
        "derivedFrom": [{"reference": f"#{image['id']}"}],
    }
    if finding["box"]:
        observation["component"] = [
            {"code": {"text": f"box {side}, in [0, 1] of the image"}, "valueQuantity": _ratio(value)}
            for side, value in zip(_SIDES, finding["box"], strict=True)
        ]
    if finding["region"]:
        location, side = site_codes(finding["region"])
        codings = [_coding(code) for code in (location, side) if code]
        observation["bodySite"] = {"coding": codings, "text": finding["region"]}
    return observation


def _coding(code: tuple[str, str, str]) -> dict:
    value, scheme, meaning = code
    return {"system": _SYSTEMS[scheme], "code": value, "display": meaning}


def _ratio(value: float) -> dict:
    return {"value": value, "unit": "1", "system": "http://unitsofmeasure.org", "code": "1"}


def _narrative(record: dict) -> str:
    sentences = "".join(f"<p>{html.escape(_text(sentence['text']))}</p>" for sentence in record["sentences"])
    warnings = "".join(f"<li>{html.escape(_text(warning))}</li>" for warning in record["warnings"])
    warnings = f"<p>Warnings:</p><ul>{warnings}</ul>" if warnings else ""
    return f'<div xmlns="http://www.w3.org/1999/xhtml"><p><b>{NOTICE}</b></p>{sentences}{warnings}</div>'


def _text(text: str) -> str:
    return _UNPRINTABLE_RE.sub("\ufffd", text)


__all__ = ["fhir_report"]
