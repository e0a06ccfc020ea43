"""MIMIC-Eye: REFLACX and EGD-CXR sorted by patient, with films and reports beside them; both published layouts.

`patient_<id>/CXR-JPG/s<study>/<dicom>.jpg`, `patient_<id>/CXR-DICOM/s<study>.txt`,
`patient_<id>/REFLACX/{metadata.csv, main_data/<id>/...}` (or `REFLACX/<id>/...` in the older layout) and
`patient_<id>/EyeGaze/{master_sheet.csv, fixations.csv, ...}`.
"""

from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError, Gaze2ReportError
from .films import film_column
from .record import compose_report
from .source_egd import egd_items, egd_reading
from .source_reflacx import load_table, reflacx_reading, row_dicts
from .splits import split_of_patient
from .transcripts import report_sections
from .writing import Dropped, Source


class MimicEyeSource(Source):
    """MIMIC-Eye; splits by patient, since its two parts were split differently.

    Args:
        root: folder of the `patient_*` folders (`mimic-eye` or its parent).
        report: `"dictated"` (what was said under the eye tracker) or `"clinical"` (the study's report in CXR-DICOM).
        max_side: films with a longer side are made smaller.
    """

    def __init__(self, root: Path, report: str = "dictated", max_side: int | None = None):
        self.root = Path(root)
        if not any(self.root.glob("patient_*")) and (self.root / "mimic-eye").is_dir():
            self.root = self.root / "mimic-eye"
        if report not in ("dictated", "clinical"):
            raise DataError(f"mimic-eye: --report must be dictated or clinical, not {report!r}")
        super().__init__(
            "mimic-eye",
            "PhysioNet restricted access (MIMIC-Eye): not to be passed on",
            {"report": report, "max_side": max_side},
        )

    def items(self) -> list[Path]:
        patients = sorted(path for path in self.root.glob("patient_*") if path.is_dir())
        if not patients:
            raise DataError(f"{self.root}: no patient_<id> folder; --root must be the folder that holds them")
        return patients

    def records(self, item: Path) -> Iterator[dict | Dropped]:
        patient = item.name.removeprefix("patient_")
        split = split_of_patient(patient)
        for maker in (self._reflacx, self._egd):
            try:
                for result in maker(item, split):
                    yield self._finish(item, patient, split, result) if isinstance(result, dict) else result
            except Gaze2ReportError as error:
                yield Dropped(item.name, "a part of the patient's folder is broken", detail=str(error))

    def _finish(self, folder: Path, patient: str, split: str, record: dict) -> dict:
        record["patient_id"], record["split"] = patient, split
        study = folder / "CXR-DICOM" / f"s{record['study_id']}.txt"
        if study.is_file():
            sections = report_sections(study.read_text(encoding="utf-8", errors="replace"))
            record["indication"] = sections.get("indication") or record["indication"]
            record["comparison"] = sections.get("comparison")
            if self.settings["report"] == "clinical":
                record["findings_text"], record["impression"] = sections.get("findings"), sections.get("impression")
                record["report"] = compose_report(record["findings_text"], record["impression"])
                record["sentences"] = []
        return record

    def _film(self, folder: Path, dicom: str) -> Path:
        return next(iter(sorted(folder.glob(f"CXR-JPG/s*/{dicom}.jpg"))), folder / "CXR-JPG" / f"{dicom}.jpg")

    def _reflacx(self, folder: Path, split: str) -> Iterator[dict | Dropped]:
        base = folder / "REFLACX"
        metadata = base / "metadata.csv"
        if not metadata.is_file():
            if base.is_dir():
                yield Dropped(folder.name, "REFLACX folder without metadata.csv")
            return
        table = load_table(metadata)
        table.require("id", "dicom_id", "image_size_x", "image_size_y")
        main = base / "main_data" if (base / "main_data").is_dir() else base
        for row in row_dicts(table):
            film = self._film(folder, row["dicom_id"])
            try:
                image, _, _ = film_column(film, self.settings["max_side"])
            except DataError as error:
                yield Dropped(row["id"], "the film is missing or broken", detail=str(error))
                continue
            row = {
                **row,
                "subject_id": folder.name.removeprefix("patient_"),
                "image": f"{film.parent.name}/{film.name}",
            }
            try:
                yield from reflacx_reading(main / row["id"], row, f"{metadata}: row {row['__line__']}", image, split)
            except Gaze2ReportError as error:
                yield Dropped(row["id"], "the reading is broken", detail=str(error))

    def _egd(self, folder: Path, split: str) -> Iterator[dict | Dropped]:
        base = folder / "EyeGaze"
        if not base.is_dir():
            return
        gaze = next((base / name for name in ("fixations.csv", "eye_gaze.csv") if (base / name).is_file()), None)
        if gaze is None or not (base / "master_sheet.csv").is_file():
            yield Dropped(folder.name, "EyeGaze folder without master_sheet.csv or gaze")
            return
        for item in egd_items(base, gaze, lambda row: self._film(folder, row["dicom_id"])):
            yield from egd_reading(base, item, self.settings["max_side"])


__all__ = ["MimicEyeSource"]
