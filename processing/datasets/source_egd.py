"""EGD-CXR (and its copy inside MIMIC-Eye): one radiologist's gaze and dictation on 1,083 films of MIMIC-CXR.

Layout: `master_sheet.csv`, `fixations.csv` (or `eye_gaze.csv`), `bounding_boxes.csv` and
`audio_segmentation_transcripts/<dicom_id>/transcript.json`; the films are in a MIMIC-CXR-JPG folder of their own.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from ..anatomy import NUM_REGIONS
from ..errors import DataError, Gaze2ReportError
from .films import film_column, film_size
from .gaze_formats import GazeOptions, read_egd
from .label_maps import REGION_OF_PLAIN, finding_of_column, label_of_cell, plain
from .record import clip_box, empty_record, label_list
from .source_reflacx import load_table, row_dicts
from .splits import split_of_patient
from .transcripts import sentences_of_words
from .writing import Dropped, Source


class EgdSource(Source):
    """EGD-CXR.

    Args:
        root: folder that holds `master_sheet.csv`.
        images: MIMIC-CXR-JPG folder that holds `files/p10/...`.
        max_side: films with a longer side are made smaller.
    """

    def __init__(self, root: Path, images: Path | None, max_side: int | None = None):
        self.root, self.images = Path(root), Path(images) if images else Path(root)
        sheet = self.root / "master_sheet.csv"
        if not sheet.is_file():
            raise DataError(f"{sheet}: the file is missing; --root must be the folder that holds master_sheet.csv")
        gaze = next(
            (self.root / name for name in ("fixations.csv", "eye_gaze.csv") if (self.root / name).is_file()), None
        )
        if gaze is None:
            raise DataError(f"{self.root}: neither fixations.csv nor eye_gaze.csv is there")
        super().__init__(
            "egd",
            "PhysioNet credentialed access (EGD-CXR, MIMIC-CXR-JPG): not to be passed on",
            {"max_side": max_side, "gaze": gaze.name},
            [sheet, gaze],
        )

    def items(self) -> list[dict]:
        return egd_items(self.root, self.inputs[1], lambda row: self._film(row))

    def _film(self, row: dict) -> Path:
        return film_path(self.images, row["path"])

    def records(self, item: dict) -> Iterator[dict | Dropped]:
        yield from egd_reading(self.root, item, self.settings["max_side"])


def film_path(images: Path, path: str) -> Path:
    """A film of MIMIC-CXR-JPG, from a path that may end in .dcm and may or may not start with `files`."""
    relative = re.sub(r"\.(dcm|jpg)$", ".jpg", path.strip())
    return next((p for p in (images / relative, images / "files" / relative) if p.is_file()), images / relative)


def egd_items(root: Path, gaze: Path, film_of) -> list[dict]:
    """One item for each row of the master sheet, with its film, size, scanpath and region boxes."""
    sheet = load_table(root / "master_sheet.csv")
    sheet.require("dicom_id", "path", "study_id", "patient_id")
    rows = row_dicts(sheet)
    sizes, films, faults = {}, {}, {}
    for row in rows:
        film = films[row["dicom_id"]] = film_of(row)
        try:
            sizes[row["dicom_id"]] = tuple(float(v) for v in film_size(film))
        except DataError as error:
            faults[row["dicom_id"]] = str(error)
    scanpaths = {}
    if sizes:
        text = gaze.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
        scanpaths = {scanpath.image_id: scanpath for scanpath in read_egd(text, gaze, GazeOptions(), sizes)}
    boxes: dict[str, list] = {}
    if (root / "bounding_boxes.csv").is_file():
        table = load_table(root / "bounding_boxes.csv")
        table.require("dicom_id", "bbox_name", "x1", "x2", "y1", "y2")
        corners = [table.numbers(key) for key in ("x1", "y1", "x2", "y2")]
        for k, (dicom, name) in enumerate(zip(table.text("dicom_id"), table.text("bbox_name"), strict=True)):
            boxes.setdefault(dicom, []).append((name, *(float(column[k]) for column in corners)))
    items = []
    for row in sorted(rows, key=lambda row: (row["patient_id"], row["dicom_id"])):
        dicom = row["dicom_id"]
        items.append(
            {
                "row": row,
                "film": films[dicom],
                "size": sizes.get(dicom),
                "fault": faults.get(dicom),
                "scanpath": scanpaths.get(dicom),
                "boxes": boxes.get(dicom, []),
            }
        )
    return items


def egd_reading(root: Path, item: dict, max_side: int | None) -> Iterator[dict | Dropped]:
    """The record of one film of EGD-CXR, preceded by what had to be left out of it."""
    row = item["row"]
    dicom, where = row["dicom_id"], f"{root / 'master_sheet.csv'}: row {row['__line__']}"
    if item["fault"]:
        yield Dropped(dicom, "the film is missing or broken", detail=item["fault"])
        return
    try:
        record = empty_record(dicom, row["patient_id"], split_of_patient(row["patient_id"]))
        record["image"], _, _ = film_column(item["film"], max_side)
        record.update(
            study_id=row["study_id"], reader_id="egd", indication=row.get("cxr_exam_indication", "").strip() or None
        )
        values = {}
        for column, cell in row.items():
            finding = finding_of_column(column) if column.endswith("chx") else None
            if finding:
                values[finding] = label_of_cell(cell, f"{where}, column {column}")
        record["labels"] = label_list(values) if values else []
        scanpath = item["scanpath"]
        if scanpath is None:
            yield Dropped(dicom, "no gaze of this film", "fixations")
        else:
            record["fixations"] = scanpath.fixations()
            for note in scanpath.notes:
                if "left out" in note:
                    yield Dropped(dicom, "fixations off the image or invalid", "fixations", note)
        regions: list = [None] * NUM_REGIONS
        width, height = item["size"]
        for name, x1, y1, x2, y2 in item["boxes"]:
            box = clip_box([min(x1, x2) / width, min(y1, y2) / height, max(x1, x2) / width, max(y1, y2) / height])
            if box is None:
                yield Dropped(dicom, "anatomical box off the image", "regions", name)
            elif plain(name) in REGION_OF_PLAIN:
                regions[REGION_OF_PLAIN[plain(name)]] = list(box)
            else:
                record["boxes"].append({"label": name, "x0": box[0], "y0": box[1], "x1": box[2], "y1": box[3]})
        record["regions"] = regions if any(regions) else []
        transcript = root / "audio_segmentation_transcripts" / dicom / "transcript.json"
        if transcript.is_file():
            record["report"], record["sentences"] = read_transcript(transcript)
            record["findings_text"] = record["report"]
        else:
            yield Dropped(dicom, "no transcript", "report")
        yield record
    except Gaze2ReportError as error:
        yield Dropped(dicom, "the reading is broken", detail=str(error))


def read_transcript(path: Path) -> tuple[str | None, list[dict]]:
    """Full text and timed sentences of a `transcript.json`.

    The timed part is the first list of objects that have a begin and an end time; their text is under `phrase`,
    `text`, `word` or `transcript`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: must be an object with full_transcript and timed phrases")
    words = []
    for entries in content.values():
        if isinstance(entries, list) and entries and isinstance(entries[0], dict) and "begin_time" in entries[0]:
            for number, entry in enumerate(entries):
                text = next(
                    (entry[key] for key in ("phrase", "text", "word", "transcript") if entry.get(key) is not None), None
                )
                if text is None or "end_time" not in entry:
                    raise DataError(
                        f"{path}: timed phrase {number} lacks its text or its end_time; it has {', '.join(entry)}"
                    )
                words.append((str(text), float(entry["begin_time"]), float(entry["end_time"])))
            break
    full = re.sub(r"\s+", " ", str(content.get("full_transcript") or "")).strip()
    sentences = sentences_of_words(words, str(path))
    return full or " ".join(s["text"] for s in sentences) or None, sentences


__all__ = ["EgdSource", "egd_items", "egd_reading", "film_path", "read_transcript"]
