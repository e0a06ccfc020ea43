"""Real chest films of several collections in one table, each with its own licence."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..anatomy import REGION_NAMES
from ..errors import DataError
from ..report_labels import FINDINGS
from .films import film_column
from .record import clip_box, empty_record, label_list
from .splits import split_of_patient
from .writing import Dropped, Source

PERMISSIVE = "permissive"
# Shares of the patients: findings are rare on real films, and what is measured needs more of them than what is chosen.
FILM_SHARES = {"train": 0.6, "validation": 0.1, "test": 0.3}
NIH = "NIH ChestX-ray14"
# The 14 labels of ChestX-ray14 (Wang et al. 2017), text-mined; emphysema, fibrosis and hernia have no counterpart.
NIH_FINDINGS = {
    "No Finding": "No Finding",
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Consolidation": "Consolidation",
    "Edema": "Edema",
    "Effusion": "Pleural Effusion",
    "Infiltration": "Lung Opacity",
    "Mass": "Lung Lesion",
    "Nodule": "Lung Lesion",
    "Pleural_Thickening": "Pleural Other",
    "Pneumonia": "Pneumonia",
    "Pneumothorax": "Pneumothorax",
}
NIH_OTHERS = ("Emphysema", "Fibrosis", "Hernia")
# Opacities by another name: without "Infiltration" such a film is no example of a film without opacity.
OPACITIES = ("Atelectasis", "Consolidation", "Edema", "Mass", "Nodule", "Pneumonia")
BOX_FINDINGS = {
    **{name: finding for name, finding in NIH_FINDINGS.items() if name != "No Finding"},
    "Infiltrate": "Lung Opacity",
    "Ground Glass Opacities": "Lung Opacity",
    "Pleural Effusion": "Pleural Effusion",
    **dict.fromkeys(
        ("Central Venous Line", "Endotracheal Tube", "Monitoring Probes", "Nosogastric Tube", "Tubings"),
        "Support Devices",
    ),
}
BOX_REGIONS = {"Left Lung": "left lung", "Right Lung": "right lung"}
COLUMNS = ("file", "source", "licence", "licence_class", "patient_id", "findings", "boxes_json", "width", "height")


def film_split(patient_id: str) -> str:
    """Split of a patient's films: the same for whoever trains on them and whoever measures."""
    return split_of_patient(patient_id, shares=FILM_SHARES)


@dataclass(frozen=True)
class FilmRow:
    """One film of the table.

    Attributes:
        file: relative to the folder.
        source, licence, licence_class, patient_id, view: as the table says.
        findings: names that the film's collection gives it.
        boxes: (name, where it comes from, (x0, y0, x1, y1) in [0, 1] of the film).
        lung_mask: file of a mask of both lungs, or None.
    """

    file: str
    source: str
    licence: str
    licence_class: str
    patient_id: str
    view: str
    findings: tuple[str, ...]
    boxes: tuple[tuple[str, str, tuple[float, float, float, float]], ...]
    lung_mask: str | None

    @property
    def is_nih(self) -> bool:
        return self.source.startswith(NIH)

    @property
    def image_id(self) -> str:
        return Path(self.file).stem

    @property
    def split(self) -> str:
        return film_split(self.patient_id)

    def labels(self) -> list[int | None]:
        """The 14 labels where the film has ChestX-ray14's; none otherwise."""
        return nih_labels(self.findings) if self.is_nih else []


def nih_labels(findings: tuple[str, ...]) -> list[int | None]:
    """Labels in the order of `FINDINGS` of the names that ChestX-ray14 gives a film; None where it says nothing.

    Raises:
        DataError: a name that it does not have.
    """
    for name in findings:
        if name not in NIH_FINDINGS and name not in NIH_OTHERS:
            raise DataError(f"{name!r} is no label of {NIH}; they are {', '.join((*NIH_FINDINGS, *NIH_OTHERS))}")
    values = dict.fromkeys(NIH_FINDINGS.values(), 0) | {NIH_FINDINGS[one]: 1 for one in findings if one in NIH_FINDINGS}
    if not values["Lung Opacity"] and set(findings) & set(OPACITIES):
        del values["Lung Opacity"]
    return label_list(values)


def read_film_rows(root: str | Path) -> list[FilmRow]:
    """The table `metadata.csv` of a folder of films.

    Raises:
        DataError: there is none, a column is missing, a row cannot be read.
    """
    path = Path(root) / "metadata.csv"
    if not path.is_file():
        raise DataError(f"{path}: no such table")
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{path}: column {missing[0]!r} is missing; the table has {', '.join(COLUMNS)}")
        rows = []
        for number, row in enumerate(reader, start=2):
            try:
                rows.append(film_row(row))
            except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
                raise DataError(f"{path}: line {number} ({row['file']}): {error}") from error
    return rows


def film_row(row: dict[str, str]) -> FilmRow:
    width, height = float(row["width"]), float(row["height"])
    boxes = []
    for one in json.loads(row["boxes_json"] or "[]"):
        x0, y0, x1, y1 = one["box"]
        box = clip_box((x0 / width, y0 / height, x1 / width, y1 / height))
        if box is None:
            raise ValueError(f"box {one['box']} of {one['label']} lies outside the film or has no area")
        boxes.append((one["label"], one.get("src", ""), box))
    return FilmRow(
        file=row["file"],
        source=row["source"],
        licence=row["licence"],
        licence_class=row["licence_class"],
        patient_id=row["patient_id"] or Path(row["file"]).stem,
        view=row.get("view") or "",
        findings=tuple(one for one in row["findings"].split("|") if one),
        boxes=tuple(boxes),
        lung_mask=row.get("lung_mask") or None,
    )


class FilmsSource(Source):
    """Real films of `metadata.csv` whose licence lets weights be trained on them and passed on.

    Patients of the three splits are apart, as `film_split` says. Only ChestX-ray14 has labels of the 14; boxes of
    findings and lungs are kept where a film has them. Films have no reports and no gaze.

    Args:
        root: folder with `metadata.csv` and the films.
        max_side: films with a longer side are made smaller.
    """

    def __init__(self, root: Path, max_side: int | None = None):
        self.root = Path(root)
        self.rows = [row for row in read_film_rows(self.root) if row.licence_class == PERMISSIVE]
        licences = sorted({f"{row.source}: {row.licence}" for row in self.rows})
        super().__init__("films", "; ".join(licences), {"max_side": max_side}, [self.root / "metadata.csv"])

    def items(self) -> list[FilmRow]:
        return self.rows

    def records(self, item: FilmRow) -> Iterator[dict | Dropped]:
        try:
            image, _, _ = film_column(self.root / item.file, self.settings["max_side"])
            record = empty_record(item.image_id, item.patient_id, item.split)
            record.update(image=image, view=item.view or None, labels=item.labels(), terms=list(item.findings))
        except DataError as error:
            yield Dropped(item.file, "the film is missing or broken, or its labels are unknown", detail=str(error))
            return
        regions: list[list[float] | None] = [None] * len(REGION_NAMES)
        for label, _, box in item.boxes:
            if label in BOX_REGIONS:
                regions[REGION_NAMES.index(BOX_REGIONS[label])] = list(box)
            finding = label if label in FINDINGS else BOX_FINDINGS.get(label)
            if finding:
                record["boxes"].append({"label": finding, **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))})
        if any(regions):
            record["regions"] = regions
        yield record


__all__ = ["FILM_SHARES", "FilmRow", "FilmsSource", "film_split", "nih_labels", "read_film_rows"]
