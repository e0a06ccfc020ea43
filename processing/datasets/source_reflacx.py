"""REFLACX (and its copy inside MIMIC-Eye): films of MIMIC-CXR-JPG, read aloud by radiologists under an eye tracker.

Layout: `main_data/metadata_phase_{1,2,3}.csv` and `main_data/<id>/{fixations.csv, timestamps_transcription.csv,
transcription.txt, chest_bounding_box.csv, anomaly_location_ellipses.csv}`; the films are in a MIMIC-CXR-JPG folder of
their own. The readers are not named in the published tables; a reading's id stands in `reader_id`, so that readings
of one film stay apart.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError, Gaze2ReportError, InputError
from .films import film_column
from .gaze_formats import GazeOptions, Table, read_reflacx, read_table
from .label_maps import REFLACX_BOX_CERTAINTY, REFLACX_FINDINGS, merge_labels, plain, reflacx_label
from .record import clip_box, empty_record, label_list
from .splits import canonical_split, split_of_patient
from .transcripts import sentences_of_words
from .writing import Dropped, Source

NOT_LABELS = {
    "id",
    "split",
    "eye_tracking_data_discarded",
    "image",
    "dicom_id",
    "subject_id",
    "image_size_x",
    "image_size_y",
    "study_id",
}


def load_table(path: Path) -> Table:
    """A CSV file of a data set.

    Raises:
        DataError: it is missing or broken.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        return read_table(text.replace("\r\n", "\n"), path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: the file is missing") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except InputError as error:
        raise DataError(str(error)) from error


def row_dicts(table: Table) -> list[dict[str, str]]:
    """Rows as dictionaries, with the line they stand on under `"__line__"`."""
    return [
        dict(zip(table.header, row, strict=True), __line__=str(line))
        for row, line in zip(table.rows, table.lines, strict=True)
    ]


class ReflacxSource(Source):
    """REFLACX.

    Args:
        root: folder that holds `main_data`.
        images: MIMIC-CXR-JPG folder that holds `files/p10/...`; the film's path there is the metadata's `image` with
            the ending .jpg.
        split: `"official"` (MIMIC-CXR's, as the metadata has it) or `"patient"` (a hash of the subject).
        max_side: films with a longer side are made smaller.
    """

    def __init__(self, root: Path, images: Path | None, split: str = "official", max_side: int | None = None):
        self.root, self.images = Path(root), Path(images) if images else Path(root)
        self.main = self.root / "main_data" if (self.root / "main_data").is_dir() else self.root
        metadata = sorted(self.main.glob("metadata_phase_*.csv"))
        if not metadata:
            raise DataError(
                f"{self.main}: no metadata_phase_1.csv, _2 or _3; --root must be the folder that holds main_data"
            )
        super().__init__(
            "reflacx",
            "PhysioNet restricted access (REFLACX) and credentialed access (MIMIC-CXR-JPG): not to be passed on",
            {"split": split, "max_side": max_side},
            metadata,
        )

    def items(self) -> list[dict]:
        items = []
        for path in self.inputs:
            table = load_table(path)
            table.require("id", "dicom_id", "subject_id", "image", "image_size_x", "image_size_y")
            for row in row_dicts(table):
                items.append({**row, "__file__": str(path)})
        return sorted(items, key=lambda row: (row["subject_id"], row["dicom_id"], row["id"]))

    def records(self, item: dict) -> Iterator[dict | Dropped]:
        where = f"{item['__file__']}: row {item['__line__']}"
        try:
            film = self.images / re.sub(r"\.(dcm|jpg)$", ".jpg", item["image"])
            if not film.is_file() and not str(item["image"]).startswith("files"):
                film = self.images / "files" / re.sub(r"\.(dcm|jpg)$", ".jpg", item["image"])
            image, _, _ = film_column(film, self.settings["max_side"])
        except DataError as error:
            yield Dropped(item["id"], "the film is missing or broken", detail=str(error))
            return
        official = item.get("split", "")
        try:
            if self.settings["split"] == "official" and official:
                split = canonical_split(official, where)
            else:
                split = split_of_patient(item["subject_id"])
            yield from reflacx_reading(self.main / item["id"], item, where, image, split)
        except Gaze2ReportError as error:
            yield Dropped(item["id"], "the reading is broken", detail=str(error))


def reflacx_reading(folder: Path, row: dict, where: str, image: dict, split: str) -> Iterator[dict | Dropped]:
    """The record of one reading, preceded by what had to be left out of it."""
    width, height = _size(row, where)
    record = empty_record(row["dicom_id"], row["subject_id"], split)
    study = re.search(r"s(\d+)", Path(row.get("image", "")).parent.name)
    record.update(image=image, reader_id=row["id"], study_id=study.group(1) if study else None)
    record["labels"] = reflacx_labels(row, where)
    discarded = row.get("eye_tracking_data_discarded", "").strip().lower() in ("true", "1", "1.0")
    path = folder / "fixations.csv"
    if discarded:
        yield Dropped(row["id"], "eye-tracking data discarded by the data set's authors", "fixations")
    elif not path.is_file():
        yield Dropped(row["id"], "fixations.csv is missing", "fixations", str(path))
    else:
        try:
            options = GazeOptions(width=width, height=height)
            scanpath = read_reflacx(path.read_text(encoding="utf-8-sig").replace("\r\n", "\n"), path, options)[0]
            record["fixations"] = scanpath.fixations()
            for note in scanpath.notes:
                if "left out" in note:
                    yield Dropped(row["id"], "fixations off the shown image", "fixations", note)
        except (InputError, UnicodeDecodeError) as error:
            yield Dropped(row["id"], "fixations cannot be used", "fixations", str(error))
    text = folder / "transcription.txt"
    if text.is_file():
        report = re.sub(r"\s+", " ", text.read_text(encoding="utf-8-sig")).strip()
        record["report"] = record["findings_text"] = report or None
    words = folder / "timestamps_transcription.csv"
    if words.is_file():
        table = load_table(words)
        table.require("word", "timestamp_start_word", "timestamp_end_word")
        spoken = zip(
            table.text("word"), table.numbers("timestamp_start_word"), table.numbers("timestamp_end_word"), strict=True
        )
        record["sentences"] = sentences_of_words([(w, float(a), float(b)) for w, a, b in spoken], str(words))
        if not record["report"]:
            record["report"] = record["findings_text"] = " ".join(s["text"] for s in record["sentences"]) or None
    boxes, lost = _boxes(folder, width, height)
    record["boxes"] = boxes
    for note in lost:
        yield Dropped(row["id"], note, "boxes")
    yield record


def _size(row: dict, where: str) -> tuple[float, float]:
    try:
        width, height = float(row["image_size_x"]), float(row["image_size_y"])
    except ValueError as error:
        raise DataError(f"{where}, column image_size_x: {error}") from error
    if not (width > 0 and height > 0):
        raise DataError(f"{where}, column image_size_x: {width:g} x {height:g} is no size of an image")
    return width, height


def reflacx_labels(row: dict, where: str) -> list[int | None]:
    """The 14 labels of a metadata row; findings that this phase did not ask for stay None."""
    values: dict[str, int | None] = {}
    abnormal = False
    for column, cell in row.items():
        if column in NOT_LABELS or column.startswith("__"):
            continue
        finding = REFLACX_FINDINGS.get(plain(column))
        if plain(column) == "other":
            abnormal |= bool(cell.strip())
            continue
        label = reflacx_label(cell, f"{where}, column {column}")
        if plain(column) not in ("quality issue", "support devices"):
            abnormal |= label in (1, -1)
        if finding:
            values[finding] = merge_labels(values.get(finding), label)
    if values:
        values["No Finding"] = 0 if abnormal else 1
    return label_list(values)


def _boxes(folder: Path, width: float, height: float) -> tuple[list[dict], list[str]]:
    boxes, lost = [], []
    ellipses = folder / "anomaly_location_ellipses.csv"
    if ellipses.is_file():
        text = ellipses.read_text(encoding="utf-8-sig").strip()
        if text.count("\n"):
            table = load_table(ellipses)
            table.require("xmin", "ymin", "xmax", "ymax", "certainty")
            for row in row_dicts(table):
                try:
                    certainty = float(row["certainty"])
                    corners = [float(row[key]) for key in ("xmin", "ymin", "xmax", "ymax")]
                except ValueError as error:
                    raise DataError(f"{ellipses}: row {row['__line__']}: {error}") from error
                if certainty < REFLACX_BOX_CERTAINTY:
                    lost.append(f"ellipse of certainty below {REFLACX_BOX_CERTAINTY}")
                    continue
                box = clip_box([corners[0] / width, corners[1] / height, corners[2] / width, corners[3] / height])
                if box is None:
                    lost.append("ellipse off the image")
                    continue
                for column, cell in row.items():
                    if column not in (
                        "xmin",
                        "ymin",
                        "xmax",
                        "ymax",
                        "certainty",
                        "__line__",
                    ) and cell.strip().lower() in ("true", "1", "1.0"):
                        label = REFLACX_FINDINGS.get(plain(column), column)
                        boxes.append({"label": label, "x0": box[0], "y0": box[1], "x1": box[2], "y1": box[3]})
    chest = folder / "chest_bounding_box.csv"
    if chest.is_file():
        table = load_table(chest)
        table.require("xmin", "ymin", "xmax", "ymax")
        corners = [table.numbers(key)[0] for key in ("xmin", "ymin", "xmax", "ymax")]
        box = clip_box([corners[0] / width, corners[1] / height, corners[2] / width, corners[3] / height])
        if box:
            boxes.append({"label": "chest", "x0": box[0], "y0": box[1], "x1": box[2], "y1": box[3]})
    return boxes, lost


__all__ = ["ReflacxSource", "load_table", "reflacx_reading", "row_dicts"]
