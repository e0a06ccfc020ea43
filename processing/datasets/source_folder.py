"""A folder of films with a table: anybody's own data."""

import json
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError, Gaze2ReportError, InputError
from .films import SUFFIXES, film_column, film_size
from .gaze_formats import GazeOptions, read_gaze
from .label_maps import finding_of_column, label_of_cell
from .record import LIST_COLUMNS, TEXT_COLUMNS, compose_report, empty_record, label_list
from .source_reflacx import load_table, row_dicts
from .splits import canonical_split, split_of_patient
from .writing import Dropped, Source

TABLES = ("metadata.csv", "metadata.jsonl", "data.csv", "data.jsonl", "reports.csv", "reports.jsonl")


class FolderSource(Source):
    """Films in a folder, described by a CSV or JSONL table, or by nothing.

    Columns are those of the record; `image` names the film's file relative to the root. Columns named like findings
    (`Pleural Effusion`, `pleural_effusion`) are labels; `gaze` names a gaze file of any format that `gaze2report
    gaze` reads. JSONL lines may hold the record's lists themselves.

    Args:
        root: folder of the films.
        table: CSV or JSONL; by default the first of metadata.csv, metadata.jsonl, data.*, reports.* in the root;
            without any, every film is a record.
        columns: record column -> the table's column.
        max_side: films with a longer side are made smaller.
    """

    def __init__(
        self, root: Path, table: Path | None = None, columns: dict[str, str] | None = None, max_side: int | None = None
    ):
        self.root, self.columns = Path(root), dict(columns or {})
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder")
        self.table = (
            Path(table) if table else next((self.root / name for name in TABLES if (self.root / name).is_file()), None)
        )
        if self.table and not self.table.is_file():
            raise DataError(f"{self.table}: no such table")
        known = {"image", "gaze", *TEXT_COLUMNS, *LIST_COLUMNS}
        for name in self.columns:
            if name not in known and finding_of_column(name) is None:
                raise DataError(f"--columns {name}: a record has {', '.join(sorted(known))} and the 14 findings")
        super().__init__(
            "folder",
            "the user's own",
            {"columns": self.columns, "max_side": max_side},
            [self.table] if self.table else [],
        )

    def items(self) -> list[dict]:
        if self.table is None:
            films = sorted(path for path in self.root.rglob("*") if path.suffix.lower() in SUFFIXES)
            return [{"image": str(path.relative_to(self.root)), "__line__": "-"} for path in films]
        if self.table.suffix.lower() in (".jsonl", ".json"):
            rows = []
            for number, line in enumerate(self.table.read_text(encoding="utf-8-sig").splitlines(), start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(
                        f"{self.table}: line {number}: no JSON ({error.msg} at column {error.colno})"
                    ) from error
                if not isinstance(row, dict):
                    raise DataError(f"{self.table}: line {number}: must be an object")
                rows.append({**row, "__line__": str(number)})
        else:
            rows = row_dicts(load_table(self.table))
        if rows:
            have = set().union(*rows)
            for name, column in self.columns.items():
                if column not in have:
                    raise DataError(
                        f"{self.table}: column {column!r} (mapped to {name}) is missing; there are "
                        f"{', '.join(sorted(have - {'__line__'}))}"
                    )
            if self.columns.get("image", "image") not in have:
                raise DataError(
                    f"{self.table}: no column image; map one, such as --columns image=FILE; there are "
                    f"{', '.join(sorted(have - {'__line__'}))}"
                )
        return rows

    def _cell(self, row: dict, name: str):
        value = row.get(self.columns.get(name, name))
        return value.strip() or None if isinstance(value, str) else value

    def records(self, item: dict) -> Iterator[dict | Dropped]:
        where = f"{self.table}: row {item['__line__']}" if self.table else str(item["image"])
        name = self._cell(item, "image")
        if not name:
            yield Dropped(where, "no image named", detail="column image is empty")
            return
        path = (self.root / str(name)).resolve()
        if not path.is_relative_to(self.root.resolve()):
            yield Dropped(where, "the image lies outside the root", detail=str(name))
            return
        try:
            image, _, _ = film_column(path, self.settings["max_side"])
            width, height = film_size(path)
        except DataError as error:
            yield Dropped(where, "the film is missing or broken", detail=str(error))
            return
        try:
            image_id = str(self._cell(item, "image_id") or Path(str(name)).with_suffix("").as_posix())
            patient = str(self._cell(item, "patient_id") or self._cell(item, "study_id") or image_id)
            split = self._cell(item, "split")
            record = empty_record(
                image_id, patient, canonical_split(split, where) if split else split_of_patient(patient)
            )
            record["image"] = image
            for column in TEXT_COLUMNS:
                if column not in ("image_id", "patient_id", "split"):
                    value = self._cell(item, column)
                    record[column] = None if value is None else str(value)
            record["report"] = record["report"] or compose_report(record["findings_text"], record["impression"])
            for column in LIST_COLUMNS:
                value = self._cell(item, column)
                if value is None:
                    continue
                value = json.loads(value) if isinstance(value, str) else value
                if not isinstance(value, list):
                    raise DataError(f"{where}, column {column}: must be a list")
                record[column] = value
            values = {}
            back = {column: target for target, column in self.columns.items()}
            for column, cell in item.items():
                finding = finding_of_column(back.get(column, column)) if column != "__line__" else None
                if finding:
                    values[finding] = label_of_cell("" if cell is None else cell, f"{where}, column {column}")
            if values:
                record["labels"] = label_list(values)
            gaze = self._cell(item, "gaze")
            if gaze:
                yield from self._gaze(record, str(gaze), width, height, where)
            yield record
        except (Gaze2ReportError, json.JSONDecodeError, KeyError, TypeError) as error:
            yield Dropped(where, "the row cannot be used", detail=str(error))

    def _gaze(self, record: dict, gaze: str, width: int, height: int, where: str) -> Iterator[Dropped]:
        try:
            found = read_gaze(self.root / gaze, "auto", GazeOptions(width=width, height=height))
        except InputError as error:
            yield Dropped(where, "the gaze file cannot be used", "fixations", str(error))
            return
        own = [s for s in found if s.image_id in (record["image_id"], Path(record["image_id"]).name)] or (
            found if len(found) == 1 else []
        )
        if len(own) != 1:
            yield Dropped(
                where, "the gaze file holds several scanpaths and none or several for this image", "fixations", gaze
            )
            return
        record["fixations"] = own[0].fixations()
        record["reader_id"] = record["reader_id"] or own[0].reader_id
        for note in own[0].notes:
            if "left out" in note:
                yield Dropped(where, "fixations left out", "fixations", note)


__all__ = ["FolderSource"]
