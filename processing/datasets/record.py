"""The canonical record: one reading of one film, with everything a source knows about it.

Coordinates are in [0, 1] of the original image, times in seconds. Only `image_id`, `patient_id` and `split` are
always there; what a source does not know is None or an empty list, never a made-up value.
"""

import math
from itertools import pairwise

import numpy as np

from ..anatomy import NUM_REGIONS
from ..errors import DataError
from ..report_labels import FINDINGS, NUM_FINDINGS

SPLITS = ("train", "validation", "test")
TEXT_COLUMNS = (
    "image_id",
    "study_id",
    "patient_id",
    "reader_id",
    "split",
    "view",
    "report",
    "findings_text",
    "impression",
    "indication",
    "prior_image_id",
    "comparison",
)
LIST_COLUMNS = ("fixations", "labels", "boxes", "regions", "sentences", "questions", "terms")
COLUMNS = ("image", *TEXT_COLUMNS, *LIST_COLUMNS)


def record_features():
    """The record as `datasets.Features`.

    `labels` holds 14 values in the order of `FINDINGS`: 1 present, 0 absent, -1 uncertain, None not known. `regions`
    holds 17 boxes [x0, y0, x1, y1] in the order of `REGION_NAMES`, with None for a region that the source lacks.
    `terms` holds what else a source
    indexes a film with: MeSH headings, the target of a search.
    """
    from datasets import Features, Image, List, Value

    number, text = Value("float32"), Value("string")
    return Features(
        {
            "image": Image(),
            **dict.fromkeys(TEXT_COLUMNS, text),
            "fixations": List({"x": number, "y": number, "onset_s": number, "duration_s": number}),
            "labels": List(Value("int8")),
            "boxes": List({"label": text, "x0": number, "y0": number, "x1": number, "y1": number}),
            "regions": List(List(number)),
            "sentences": List({"text": text, "start_s": number, "end_s": number}),
            "questions": List({"question": text, "answer": text}),
            "terms": List(text),
        }
    )


def compose_report(findings: str | None, impression: str | None) -> str | None:
    """The report as one text: both sections under their names, or the one that there is; None without either."""
    if findings and impression:
        return f"FINDINGS: {findings} IMPRESSION: {impression}"
    return findings or impression or None


def empty_record(image_id: str, patient_id: str, split: str) -> dict:
    """A record that knows nothing but whose film it is."""
    record = dict.fromkeys(COLUMNS)
    record.update({name: [] for name in LIST_COLUMNS})
    record.update(image_id=image_id, patient_id=patient_id, split=split)
    return record


def check_record(record: dict, where: str) -> dict:
    """The record, if it keeps the promises above.

    Args:
        record: with the columns of `COLUMNS`; `image` may have any form.
        where: what messages call it: the file and the row.

    Raises:
        DataError: naming the column, the value and what would be right.
    """
    unknown = set(record) - set(COLUMNS)
    if unknown:
        raise DataError(f"{where}: unknown column {sorted(unknown)[0]!r}; a record has {', '.join(COLUMNS)}")
    for name in ("image_id", "patient_id", "split"):
        if not record.get(name):
            raise DataError(f"{where}: {name} is empty; every record needs it")
    if record["split"] not in SPLITS:
        raise DataError(f"{where}: split is {record['split']!r}; it must be one of {', '.join(SPLITS)}")
    labels = record["labels"]
    if labels and (len(labels) != NUM_FINDINGS or any(value not in (None, -1, 0, 1) for value in labels)):
        raise DataError(f"{where}: labels must be {NUM_FINDINGS} values of 1, 0, -1 or None, not {labels}")
    if record["regions"] and len(record["regions"]) != NUM_REGIONS:
        raise DataError(f"{where}: regions must be {NUM_REGIONS} boxes, not {len(record['regions'])}")
    for number, box in enumerate(record["regions"]):
        if box is not None:
            _check_box(box, f"{where}: regions[{number}]")
    for number, box in enumerate(record["boxes"]):
        _check_box([box[key] for key in ("x0", "y0", "x1", "y1")], f"{where}: boxes[{number}] ({box['label']})")
    _check_fixations(record["fixations"], where)
    for number, sentence in enumerate(record["sentences"]):
        start, end = sentence["start_s"], sentence["end_s"]
        if start is not None and end is not None and not (math.isfinite(start) and math.isfinite(end) and start <= end):
            raise DataError(
                f"{where}: sentences[{number}] runs from {start} to {end} s; it must not end before it starts"
            )
    return record


def _check_box(box, where: str) -> None:
    if len(box) != 4 or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in box):
        raise DataError(f"{where}: a box is four finite numbers x0, y0, x1, y1, not {list(box)}")
    x0, y0, x1, y1 = box
    if not (0 <= x0 <= x1 <= 1 and 0 <= y0 <= y1 <= 1):
        raise DataError(f"{where}: box {[round(float(v), 4) for v in box]} is not ordered within [0, 1] of the image")


def _check_fixations(fixations: list[dict], where: str) -> None:
    if not fixations:
        return
    values = np.array([[f["x"], f["y"], f["duration_s"]] for f in fixations], dtype=float)
    wrong = ~np.isfinite(values).all(axis=1) | (values[:, :2] < 0).any(axis=1) | (values[:, :2] > 1).any(axis=1)
    wrong |= values[:, 2] <= 0
    if wrong.any():
        number = int(np.argmax(wrong))
        raise DataError(
            f"{where}: fixations[{number}] is x {values[number, 0]}, y {values[number, 1]}, duration "
            f"{values[number, 2]} s; "
            "x and y must be in [0, 1] of the image and the duration positive"
        )
    onsets = [f["onset_s"] for f in fixations]
    if None not in onsets and any(b < a for a, b in pairwise(onsets)):
        raise DataError(f"{where}: fixations are not in the order of their onsets")


def clip_box(box) -> tuple[float, float, float, float] | None:
    """A box cut to [0, 1] of the image; None if nothing of it is left."""
    x0, y0, x1, y1 = (min(1.0, max(0.0, float(value))) for value in box)
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def label_list(values: dict[str, int | None]) -> list[int | None]:
    """A mapping from finding names to labels as the list of 14."""
    unknown = set(values) - set(FINDINGS)
    if unknown:
        raise DataError(f"unknown finding {sorted(unknown)[0]!r}; the findings are {', '.join(FINDINGS)}")
    return [values.get(name) for name in FINDINGS]


__all__ = [
    "COLUMNS",
    "SPLITS",
    "check_record",
    "clip_box",
    "compose_report",
    "empty_record",
    "label_list",
    "record_features",
]
