"""MIMIC-CXR-JPG with its free-text reports: films, official split, CheXpert labels, sections, prior films."""

import gzip
import io
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError, InputError
from .films import film_column
from .gaze_formats import Table, read_table
from .label_maps import finding_of_column, label_of_cell
from .record import compose_report, empty_record, label_list
from .source_reflacx import row_dicts
from .splits import canonical_split
from .transcripts import report_sections
from .writing import Dropped, Source

FRONTAL = ("AP", "PA")


class MimicCxrSource(Source):
    """MIMIC-CXR-JPG.

    Args:
        root: folder with `mimic-cxr-2.x.x-{metadata,split,chexpert}.csv[.gz]` and `files/p10/...`.
        reports: folder with the reports (`files/p10/p<subject>/s<study>.txt`); by default the root.
        views: `"frontal"` (AP and PA) or `"all"`.
        max_side: films with a longer side are made smaller.
    """

    def __init__(self, root: Path, reports: Path | None = None, views: str = "frontal", max_side: int | None = None):
        self.root = Path(root)
        self.reports = Path(reports) if reports else self.root
        if views not in ("frontal", "all"):
            raise DataError(f"mimic-cxr: --views must be frontal or all, not {views!r}")
        self.tables = {name: self._find(name) for name in ("metadata", "split", "chexpert")}
        for name in ("metadata", "split"):
            if self.tables[name] is None:
                raise DataError(f"{self.root}: no mimic-cxr-*-{name}.csv or .csv.gz")
        super().__init__(
            "mimic-cxr",
            "PhysioNet credentialed access (MIMIC-CXR, MIMIC-CXR-JPG): not to be passed on",
            {"views": views, "max_side": max_side},
            [path for path in self.tables.values() if path],
        )

    def _find(self, name: str) -> Path | None:
        found = sorted(self.root.glob(f"mimic-cxr-*-{name}.csv")) + sorted(self.root.glob(f"mimic-cxr-*-{name}.csv.gz"))
        return found[0] if found else None

    def items(self) -> list[dict]:
        metadata = packed_table(self.tables["metadata"])
        metadata.require("dicom_id", "subject_id", "study_id", "ViewPosition")
        split = packed_table(self.tables["split"])
        split.require("dicom_id", "split")
        splits = dict(zip(split.text("dicom_id"), split.text("split"), strict=True))
        labels = {}
        if self.tables["chexpert"]:
            table = packed_table(self.tables["chexpert"])
            table.require("study_id")
            for row in row_dicts(table):
                where = f"{self.tables['chexpert']}: row {row['__line__']}"
                values = {}
                for column, cell in row.items():
                    finding = finding_of_column(column)
                    if finding:
                        values[finding] = label_of_cell(cell, f"{where}, column {column}")
                labels[row["study_id"]] = label_list(values)
        rows = row_dicts(metadata)
        rows.sort(
            key=lambda r: (
                r["subject_id"],
                r.get("StudyDate", ""),
                _clock(r.get("StudyTime", "")),
                r["study_id"],
                r["dicom_id"],
            )
        )
        items, before = [], {}
        for row in rows:
            view = row["ViewPosition"].strip().upper()
            frontal = view in FRONTAL
            if self.settings["views"] == "frontal" and not frontal:
                continue
            subject, study = row["subject_id"], row["study_id"]
            earlier = before.get(subject, [])
            prior = next((dicom for old, dicom in reversed(earlier) if old != study), None)
            items.append(
                {
                    "dicom": row["dicom_id"],
                    "subject": subject,
                    "study": study,
                    "view": view or None,
                    "split": splits.get(row["dicom_id"]),
                    "labels": labels.get(study, []),
                    "prior": prior,
                }
            )
            if frontal:
                before.setdefault(subject, []).append((study, row["dicom_id"]))
        return items

    def records(self, item: dict) -> Iterator[dict | Dropped]:
        if item["split"] is None:
            yield Dropped(item["dicom"], "not in the split table")
            return
        place = Path("files") / f"p{item['subject'][:2]}" / f"p{item['subject']}"
        record = empty_record(
            item["dicom"], item["subject"], canonical_split(item["split"], f"{self.tables['split']}: {item['dicom']}")
        )
        try:
            record["image"], _, _ = film_column(
                self.root / place / f"s{item['study']}" / f"{item['dicom']}.jpg", self.settings["max_side"]
            )
        except DataError as error:
            yield Dropped(item["dicom"], "the film is missing or broken", detail=str(error))
            return
        record.update(study_id=item["study"], view=item["view"], labels=item["labels"], prior_image_id=item["prior"])
        path = next(
            (
                p
                for p in (
                    self.reports / place / f"s{item['study']}.txt",
                    self.reports / "mimic-cxr-reports" / place / f"s{item['study']}.txt",
                )
                if p.is_file()
            ),
            None,
        )
        if path is None:
            yield Dropped(item["dicom"], "the report is missing", "report")
        else:
            sections = report_sections(path.read_text(encoding="utf-8", errors="replace"))
            record.update(
                findings_text=sections.get("findings"),
                impression=sections.get("impression"),
                indication=sections.get("indication"),
                comparison=sections.get("comparison"),
                report=compose_report(sections.get("findings"), sections.get("impression")),
            )
            if not record["report"]:
                yield Dropped(item["dicom"], "the report has neither findings nor impression", "report", str(path))
        yield record


def _clock(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def packed_table(path: Path) -> Table:
    """A CSV file, plain or gzipped.

    Raises:
        DataError: it cannot be read.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        return read_table(io.StringIO(data.decode("utf-8-sig"), newline="").read().replace("\r\n", "\n"), path)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    except InputError as error:
        raise DataError(str(error)) from error


__all__ = ["MimicCxrSource", "packed_table"]
