"""A report with its evidence as a DICOM structured report (TID 1500, Comprehensive SR), for a hospital's archive.

One measurement group for each finding that was seen: its type, the anatomical region with the patient's side, its box
as a closed polyline in pixels of the source image, its certainty in percent, and the algorithm that found it. The
sentences of the report follow as text. The document belongs to the source image's study and patient, is unverified,
partial and preliminary, and says that it was made automatically. Codes are SNOMED CT's and DICOM's own where the DICOM
standard lists one, else this project's.
"""

import hashlib
import uuid
from functools import lru_cache
from pathlib import Path

import numpy as np

from .anatomy import REGION_BY_NAME
from .errors import InputError

NOTICE = "Automated, not verified. Research software. Not for clinical use."
MANUFACTURER = "Gaze2Report"
OWN_SCHEME = "99GAZE2REPORT"

# Code value, scheme and meaning of each finding and region.
FINDING_CODES = {
    "No Finding": ("NOFINDING", OWN_SCHEME, "No finding"),
    "Enlarged Cardiomediastinum": ("CARDIOMEDIAST", OWN_SCHEME, "Enlarged cardiomediastinum"),
    "Cardiomegaly": ("287272002", "SCT", "Cardiomegaly"),
    "Lung Opacity": ("LUNGOPACITY", OWN_SCHEME, "Lung opacity"),
    "Lung Lesion": ("LUNGLESION", OWN_SCHEME, "Lung lesion"),
    "Edema": ("19242006", "SCT", "Pulmonary edema"),
    "Consolidation": ("CONSOLIDATION", OWN_SCHEME, "Consolidation"),
    "Pneumonia": ("PNEUMONIA", OWN_SCHEME, "Pneumonia"),
    "Atelectasis": ("ATELECTASIS", OWN_SCHEME, "Atelectasis"),
    "Pneumothorax": ("36118008", "SCT", "Pneumothorax"),
    "Pleural Effusion": ("60046008", "SCT", "Pleural effusion"),
    "Pleural Other": ("PLEURALOTHER", OWN_SCHEME, "Pleural abnormality other than effusion"),
    "Fracture": ("FRACTURE", OWN_SCHEME, "Fracture"),
    "Support Devices": ("DEVICES", OWN_SCHEME, "Support devices"),
}
REGION_CODES = {
    "lung": ("39607008", "SCT", "Lung"),
    "upper lung zone": ("281392002", "SCT", "Upper zone of lung"),
    "mid lung zone": ("281393007", "SCT", "Middle zone of lung"),
    "lower lung zone": ("281394001", "SCT", "Lower zone of lung"),
    "hilar structures": ("46750007", "SCT", "Hilum of lung"),
    "costophrenic angle": ("COSTOPHRENIC", OWN_SCHEME, "Costophrenic angle"),
    "clavicle": ("51299004", "SCT", "Clavicle"),
    "trachea": ("44567001", "SCT", "Trachea"),
    "upper mediastinum": ("72410000", "SCT", "Mediastinum"),
    "cardiac silhouette": ("80891009", "SCT", "Heart"),
}
SIDE_CODES = {"right": ("24028007", "SCT", "Right"), "left": ("7771000", "SCT", "Left")}
CERTAINTY = ("111012", "DCM", "Certainty of Finding")
PERCENT = ("%", "UCUM", "Percent")

# What the standard lets be empty but not absent in a document of the same study.
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName"),
)
_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


@lru_cache(maxsize=1)
def _libraries():
    """pydicom and the structured reports of highdicom (the `dicom` extra), imported when they are first needed.

    Raises:
        InputError: they are not installed.
    """
    try:
        import pydicom
        from highdicom import sr
    except ImportError as error:
        raise InputError(
            'DICOM structured reports take pydicom and highdicom: pip install "gaze2report[dicom]".'
        ) from error
    return pydicom, sr


def read_dicom_source(path, record: dict):
    """Header of the DICOM file that a record is about, as `pydicom.Dataset` without its pixels.

    Raises:
        InputError: pydicom is missing; the file is no DICOM file or not the one of the record; it lacks what a document
            must refer to.
    """
    name = Path(path).name
    pydicom, _ = _libraries()
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}") from error
    if record["image"]["sha256"] not in (None, hashlib.sha256(data).hexdigest()):
        raise InputError(f"{name} is not the file that the record is about, or was changed since it was read.")
    try:
        source = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        source.decode()
    except Exception as error:  # pydicom raises whatever a broken file makes it stumble over
        raise InputError(f"{name}: its DICOM header cannot be read: {error}") from error
    if "SOPInstanceUID" not in source and "StudyInstanceUID" not in source:
        raise InputError(
            f"{name} is no DICOM file: a structured report refers to a DICOM image of a study. Give the film as DICOM."
        )
    for keyword in _UIDS:
        if not pydicom.uid.UID(str(source.get(keyword, ""))).is_valid:
            raise InputError(
                f"{name}: its {keyword} is {str(source.get(keyword, ''))!r}, which is no UID; a structured report must "
                "refer to the image by it."
            )
    return source


def dicom_report(record: dict, path):
    """The structured report of an evidence record.

    Patient, study and accession number are the source image's own: an archive files the document by them.

    Args:
        record: evidence record, schema `gaze2report.evidence/1`.
        path: the DICOM file that the record is about.

    Returns:
        `highdicom.sr.ComprehensiveSR`, a `pydicom.Dataset`; write it with its `save_as`.

    Raises:
        InputError: as [`read_dicom_source`].
    """
    _, sr = _libraries()
    source = context_of(read_dicom_source(path, record))
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=_observer(record)),
        procedure_reported=sr.CodedConcept("413815006", "SCT", "Chest imaging (procedure)"),
        imaging_measurements=_measurement_groups(record, source),
    )
    texts = [("121106", "Comment", NOTICE), ("121106", "Comment", f"Gaze: {record['gaze']['source']}.")]
    texts += [("121071", "Finding", sentence["text"]) for sentence in record["sentences"]]
    texts += [("121106", "Comment", f"Warning: {warning}") for warning in record["warnings"]]
    for value, meaning, text in texts:
        report[0].ContentSequence.append(
            sr.TextContentItem(
                name=sr.CodedConcept(value, "DCM", meaning),
                value=_text(text),
                relationship_type=sr.RelationshipTypeValues.CONTAINS,
            )
        )
    return sr.ComprehensiveSR(
        evidence=[source],
        content=report[0],
        series_instance_uid=_new_uid(),
        series_number=int(source.get("SeriesNumber") or 0) + 1000,
        sop_instance_uid=_new_uid(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MANUFACTURER,
        software_versions=record["model"]["package_version"] or "unknown",
        device_serial_number="none",
        series_description="Automated, not verified. Not for clinical use.",
        is_complete=False,
        is_final=False,
        is_verified=False,
        specific_character_set="ISO_IR 192",
    )


def context_of(source):
    """What a document takes over from the source image: what it must refer to, and no more of the patient's data.

    A value that breaks the rules of its kind is left empty, for the document must be valid where the image is not.
    """
    pydicom, _ = _libraries()
    context = pydicom.Dataset()
    for keyword in (*_UIDS, "Modality", "SeriesNumber", *_MAY_BE_EMPTY):
        value = source.get(keyword)
        text = "" if value is None else str(value)  # out of the image's own character set
        try:
            pydicom.valuerep.validate_value(pydicom.datadict.dictionary_VR(keyword), text, pydicom.config.RAISE)
        except ValueError:
            text = ""
        setattr(context, keyword, text)
    if context.PatientSex not in ("M", "F", "O"):
        context.PatientSex = ""
    return context


def _observer(record: dict):
    _, sr = _libraries()
    model = _text(record["model"]["name_or_path"] or "unknown")
    version = record["model"]["package_version"] or "unknown"
    # The same model is the same observer in every document.
    identity = uuid.uuid5(uuid.NAMESPACE_URL, f"{MANUFACTURER} {version} {model} {record['model']['revision']}")
    return sr.ObserverContext(
        observer_type=sr.CodedConcept("121007", "DCM", "Device"),
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=f"2.25.{identity.int}", name=MANUFACTURER, manufacturer_name=MANUFACTURER, model_name=model
        ),
    )


def _measurement_groups(record: dict, source) -> list:
    """A group for each finding with a place; where there is none, one that says how sure the model is of that."""
    _, sr = _libraries()
    algorithm = sr.AlgorithmIdentification(
        name=MANUFACTURER,
        version=record["model"]["package_version"] or "unknown",
        parameters=[
            _text(f"model {record['model']['name_or_path']}"),
            f"strategy {record['strategy']}",
            f"gaze {record['gaze']['source']}",
        ],
        manufacturer=MANUFACTURER,
    )
    placed = [finding for finding in record["findings"] if finding["box"]]
    groups = []
    for finding in placed:
        groups.append(
            sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=_tracking(finding),
                referenced_region=_polyline(finding["box"], record["image"], source),
                finding_type=sr.CodedConcept(*FINDING_CODES[finding["name"]]),
                algorithm_id=algorithm,
                finding_sites=_sites(finding["region"]),
                measurements=[_certainty(finding)],
            )
        )
    if not placed:
        nothing = next(finding for finding in record["findings"] if finding["name"] == "No Finding")
        groups.append(
            sr.MeasurementsAndQualitativeEvaluations(
                tracking_identifier=_tracking(nothing),
                finding_type=sr.CodedConcept(*FINDING_CODES["No Finding"]),
                algorithm_id=algorithm,
                measurements=[_certainty(nothing)],
                source_images=[sr.SourceImageForMeasurementGroup(source.SOPClassUID, source.SOPInstanceUID)],
            )
        )
    return groups


def _tracking(finding: dict):
    _, sr = _libraries()
    return sr.TrackingIdentifier(uid=_new_uid(), identifier=finding["name"])


def _certainty(finding: dict):
    _, sr = _libraries()
    return sr.Measurement(
        name=sr.CodedConcept(*CERTAINTY), value=round(100 * finding["probability"], 2), unit=sr.CodedConcept(*PERCENT)
    )


def _polyline(box: list[float], image: dict, source):
    """The box in pixels of the image: (0, 0) is the outer corner of its first pixel, as SCOORD has it."""
    _, sr = _libraries()
    x0, y0, x1, y1 = np.array(box) * np.tile([image["width"], image["height"]], 2)
    return sr.ImageRegion(
        graphic_type=sr.GraphicTypeValues.POLYLINE,
        graphic_data=np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]),
        source_image=sr.SourceImageForRegion(source.SOPClassUID, source.SOPInstanceUID),
    )


def site_codes(region: str) -> tuple[tuple[str, str, str], tuple[str, str, str] | None]:
    """Codes of a region and of the patient's side."""
    side = REGION_BY_NAME[region].side
    return REGION_CODES[region.removeprefix(f"{side} ")], SIDE_CODES.get(side)


def _sites(region: str | None) -> list | None:
    if region is None:
        return None
    _, sr = _libraries()
    location, side = site_codes(region)
    return [sr.FindingSite(sr.CodedConcept(*location), laterality=sr.CodedConcept(*side) if side else None)]


def _new_uid() -> str:
    return f"2.25.{uuid.uuid4().int}"


def _text(text: str) -> str:
    """Text that UTF-8 can carry: a file name may hold bytes that are no characters."""
    return text.encode(errors="backslashreplace").decode()


__all__ = [
    "FINDING_CODES",
    "NOTICE",
    "OWN_SCHEME",
    "dicom_report",
    "read_dicom_source",
    "site_codes",
]
