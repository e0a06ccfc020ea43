"""Scanpath data sets without reports: GazeSearch (and COCO-Search18's layout) and OSIE."""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError, Gaze2ReportError
from .films import SUFFIXES, film_column
from .gaze_formats import read_gaze
from .label_maps import FINDING_OF_PLAIN, plain
from .record import empty_record, label_list
from .scanpath import Scanpath, check_scanpath
from .splits import canonical_split, scanpath_key, split_of_patient
from .writing import Dropped, Source


class GazeSearchSource(Source):
    """GazeSearch: six fixations per film and finding sought.

    The published split separates (film, finding) pairs, so that most films of its test part are in its training part
    too. By default all scanpaths of a film stay in one split, and copies of a scanpath filed under another finding
    become one record that names both findings. `split="official"` keeps the published split and every copy; the audit
    then says what leaks.

    Args:
        root: folder with the JSON file or files, or one file.
        images: folder with the films, named by `name`; without it records have no image.
        split: `"image"` or `"official"`.
        max_side: films with a longer side are made smaller.
    """

    def __init__(self, root: Path, images: Path | None = None, split: str = "image", max_side: int | None = None):
        self.root, self.images = Path(root), Path(images) if images else None
        files = [self.root] if self.root.is_file() else sorted(self.root.glob("*.json"))
        if not files:
            raise DataError(f"{self.root}: no JSON file of scanpaths")
        if split not in ("image", "official"):
            raise DataError(f"gazesearch: --split must be image or official, not {split!r}")
        super().__init__(
            "gazesearch",
            "derived from credentialed data (REFLACX, EGD-CXR): not to be passed on",
            {"split": split, "max_side": max_side, "images": bool(images)},
            files,
        )
        self._merged: list[Dropped] = []

    def items(self) -> list[dict]:
        films = defaultdict(list)
        for path in self.inputs:
            for scanpath in read_gaze(path, "gazesearch"):
                films[scanpath.image_id].append(scanpath)
        self._merged, items = [], []
        for name in sorted(films):
            groups: dict = {}
            for number, scanpath in enumerate(films[name]):
                key = (
                    number
                    if self.settings["split"] == "official"
                    else (scanpath.reader_id, scanpath_key(scanpath.fixations()))
                )
                groups.setdefault(key, []).append(scanpath)
            for same in groups.values():
                tasks = sorted({str(s.extra.get("task", "")) for s in same} - {""})
                if len(same) > 1:
                    self._merged.append(
                        Dropped(name, "copies of one scanpath under several findings, merged", detail=", ".join(tasks))
                    )
                items.append({"name": name, "scanpath": same[0], "tasks": tasks})
        return items

    def notes(self) -> list[Dropped]:
        return self._merged

    def records(self, item: dict) -> Iterator[dict | Dropped]:
        scanpath, name = item["scanpath"], Path(item["name"]).stem
        if self.settings["split"] == "official":
            if "split" not in scanpath.extra:
                yield Dropped(name, "no official split in the file")
                return
            split = canonical_split(scanpath.extra["split"], f"{self.root}: {name}")
        else:
            split = split_of_patient(name)
        record = empty_record(name, name, split)
        if self.images:
            path = next(
                (
                    p
                    for p in [self.images / item["name"], *(self.images / f"{name}{s}" for s in SUFFIXES)]
                    if p.is_file()
                ),
                None,
            )
            try:
                if path is None:
                    raise DataError(f"{self.images / item['name']}: the image is missing")
                record["image"], _, _ = film_column(path, self.settings["max_side"])
            except DataError as error:
                yield Dropped(name, "the film is missing or broken", detail=str(error))
                return
        record.update(reader_id=scanpath.reader_id, fixations=scanpath.fixations(), terms=item["tasks"])
        if item["tasks"]:
            record["indication"] = f"Search for {' and '.join(task.lower() for task in item['tasks'])}."
        values = {}
        for task in item["tasks"]:
            finding = FINDING_OF_PLAIN.get(plain(task))
            condition = str(scanpath.extra.get("condition", "")).lower()
            if finding and condition in ("present", "absent"):
                values[finding] = int(condition == "present")
        record["labels"] = label_list(values) if values else []
        yield record


class OsieSource(Source):
    """OSIE: 15 observers' free viewing of photographs; a check of scanpath code, not of films or radiologists.

    Args:
        root: folder with `fixations.jsonl.gz` (or `.jsonl`) and `stimuli/`.
        max_side: pictures with a longer side are made smaller.
    """

    def __init__(self, root: Path, max_side: int | None = None):
        self.root = Path(root)
        path = next(
            (self.root / n for n in ("fixations.jsonl.gz", "fixations.jsonl") if (self.root / n).is_file()), None
        )
        if path is None:
            raise DataError(f"{self.root}: no fixations.jsonl.gz or fixations.jsonl")
        super().__init__("osie", "MIT (NUS-VIP, predicting-human-gaze-beyond-pixels)", {"max_side": max_side}, [path])

    def items(self) -> list[dict]:
        path = self.inputs[0]
        data = path.read_bytes()
        lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8").splitlines()
        films = defaultdict(list)
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    entry = json.loads(line)
                    films[entry["name"]].append((number, entry))
                except (json.JSONDecodeError, KeyError, TypeError) as error:
                    raise DataError(f"{path}: line {number}: no scanpath with a name: {error}") from error
        return [{"name": name, "entries": films[name]} for name in sorted(films)]

    def records(self, item: dict) -> Iterator[dict | Dropped]:
        name = item["name"]
        try:
            image, _, _ = film_column(self.root / "stimuli" / name, self.settings["max_side"])
        except DataError as error:
            yield Dropped(name, "the picture is missing or broken", detail=str(error))
            return
        for number, entry in item["entries"]:
            where = f"{self.inputs[0]}: line {number}"
            try:
                seconds = np.array(entry["T"], dtype=float) / 1000.0
                onset = np.concatenate([[0.0], np.cumsum(seconds)[:-1]])
                scanpath = Scanpath(
                    name,
                    str(entry["subject"]),
                    float(entry["width"]),
                    float(entry["height"]),
                    np.array(entry["X"], dtype=float),
                    np.array(entry["Y"], dtype=float),
                    onset,
                    seconds,
                )
                check_scanpath(scanpath, where)
            except (Gaze2ReportError, KeyError, TypeError, ValueError) as error:
                yield Dropped(
                    f"{name}, observer {entry.get('subject')}", "the scanpath cannot be used", detail=str(error)
                )
                continue
            stem = Path(name).stem
            record = empty_record(stem, stem, split_of_patient(stem))
            record.update(image=image, reader_id=scanpath.reader_id, fixations=scanpath.fixations())
            for note in scanpath.notes:
                yield Dropped(f"{name}, observer {entry['subject']}", "fixations off the picture", "fixations", note)
            yield record


__all__ = ["GazeSearchSource", "OsieSource"]
