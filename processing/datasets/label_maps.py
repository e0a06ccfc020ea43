"""Other data sets' label and region names on the 14 findings and the 17 regions."""

import math
import re

from ..anatomy import REGION_NAMES
from ..errors import DataError
from ..report_labels import FINDINGS

# REFLACX, phases 1 to 3; labels without a counterpart among the 14 are left out of `labels` and keep their names in
# `boxes`.
REFLACX_FINDINGS = {
    "atelectasis": "Atelectasis",
    "consolidation": "Consolidation",
    "groundglass opacity": "Lung Opacity",
    "enlarged cardiac silhouette": "Cardiomegaly",
    "wide mediastinum": "Enlarged Cardiomediastinum",
    "abnormal mediastinal contour": "Enlarged Cardiomediastinum",
    "fracture": "Fracture",
    "acute fracture": "Fracture",
    "mass": "Lung Lesion",
    "nodule": "Lung Lesion",
    "lung nodule or mass": "Lung Lesion",
    "pleural effusion": "Pleural Effusion",
    "pleural thickening": "Pleural Other",
    "pleural abnormality": "Pleural Other",
    "pneumothorax": "Pneumothorax",
    "pulmonary edema": "Edema",
    "support devices": "Support Devices",
}
# the certainty scale: 0 not reported, 1 unlikely, 2 less likely, 3 possibly, 4 suspicious for, 5 consistent with
REFLACX_CERTAINTY = {0: 0, 1: 0, 2: -1, 3: -1, 4: 1, 5: 1}
REFLACX_BOX_CERTAINTY = 3  # ellipses below it are left out: the usual filter is "more than 2"

MESH_FINDINGS = {
    "normal": "No Finding",
    "cardiomegaly": "Cardiomegaly",
    "opacity": "Lung Opacity",
    "airspace disease": "Lung Opacity",
    "infiltrate": "Lung Opacity",
    "nodule": "Lung Lesion",
    "mass": "Lung Lesion",
    "pulmonary edema": "Edema",
    "consolidation": "Consolidation",
    "pneumonia": "Pneumonia",
    "pulmonary atelectasis": "Atelectasis",
    "pneumothorax": "Pneumothorax",
    "pleural effusion": "Pleural Effusion",
    "costophrenic angle": None,
    "thickening/pleura": "Pleural Other",
    "fractures, bone": "Fracture",
    "surgical instruments": "Support Devices",
    "medical device": "Support Devices",
    "catheters, indwelling": "Support Devices",
    "implanted medical device": "Support Devices",
    "tube, inserted": "Support Devices",
}


def plain(name: str) -> str:
    """A name in lower case with single spaces for anything that is no letter or digit."""
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()


FINDING_OF_PLAIN = {plain(name): name for name in FINDINGS}
REGION_OF_PLAIN = {plain(name): k for k, name in enumerate(REGION_NAMES)}


def finding_of_column(column: str) -> str | None:
    """The finding a label column is about (`Pleural Effusion`, `pleural_effusion__chx`), or None."""
    return FINDING_OF_PLAIN.get(plain(re.sub(r"__?chx$", "", column)))


def label_of_cell(cell: str, where: str) -> int | None:
    """1, 0, -1 (uncertain) or None of a label cell.

    Raises:
        DataError: anything else.
    """
    text = str(cell).strip().lower()
    if text in ("", "nan", "none", "na"):
        return None
    named = {"true": 1, "false": 0, "yes": 1, "no": 0, "positive": 1, "negative": 0, "uncertain": -1}
    if text in named:
        return named[text]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if value in (-1.0, 0.0, 1.0):
        return int(value)
    raise DataError(f"{where}: {cell!r} is no label; labels are 1, 0, -1 (uncertain) or empty")


def reflacx_label(cell: str, where: str) -> int | None:
    """A REFLACX metadata cell, a certainty of 0 to 5 or a truth value, as a label."""
    text = str(cell).strip().lower()
    if text in ("", "nan"):
        return None
    if text in ("true", "false"):
        return int(text == "true")
    try:
        return REFLACX_CERTAINTY[int(float(text))]
    except (ValueError, KeyError):
        raise DataError(f"{where}: {cell!r} is no certainty of 0 to 5 and no truth value") from None


def merge_labels(first: int | None, second: int | None) -> int | None:
    """One label of two for the same finding: positive beats uncertain beats negative beats unknown."""
    order = {None: 0, 0: 1, -1: 2, 1: 3}
    return max(first, second, key=lambda value: order[value])


def mesh_labels(headings: list[str]) -> dict[str, int | None]:
    """Findings that MeSH headings such as `Opacity/lung/base/left` state; nothing is said of the rest."""
    labels: dict[str, int | None] = {}
    for heading in headings:
        parts = [part.strip().lower() for part in heading.split("/")]
        name = MESH_FINDINGS.get(f"{parts[0]}/pleura") if "pleura" in parts else MESH_FINDINGS.get(parts[0])
        if name:
            labels[name] = 1
    return labels


__all__ = ["finding_of_column", "label_of_cell", "merge_labels", "mesh_labels", "plain", "reflacx_label"]
