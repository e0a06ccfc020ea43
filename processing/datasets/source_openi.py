"""Open-i (Indiana University): report XML files, with or without the films."""

import tarfile
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ..errors import DataError
from .films import SUFFIXES, film_column
from .label_maps import mesh_labels
from .record import compose_report, empty_record, label_list
from .splits import split_of_patient
from .writing import Dropped, Source


class OpeniSource(Source):
    """Open-i.

    A report without films here is one record without an image; with `images`, every film of a report is a record.
    The collection does not say which reports are one patient's: each report counts as a patient.

    Args:
        root: folder with the XML files (searched to any depth), or the archive as it is distributed (.tgz, .tar.gz,
            .zip).
        images: folder with the films, named as the XML files name them.
        max_side: films with a longer side are made smaller.
    """

    def __init__(self, root: Path, images: Path | None = None, max_side: int | None = None):
        self.root, self.images = Path(root), Path(images) if images else None
        if self.root.is_dir() and not any(self.root.rglob("*.xml")):
            archives = sorted(
                path for path in self.root.iterdir() if path.name.lower().endswith((".tgz", ".tar.gz", ".zip"))
            )
            if len(archives) == 1:
                self.root = archives[0]
        inputs = [self.root] if self.root.is_file() else []
        super().__init__(
            "openi",
            "CC BY-NC-ND 4.0 (Open-i, Indiana University)",
            {"images": bool(images), "max_side": max_side},
            inputs,
        )
        self._films = None

    def items(self) -> list[tuple[str, bytes]]:
        if self.root.is_dir():
            found = [(str(path.relative_to(self.root)), path.read_bytes()) for path in self.root.rglob("*.xml")]
        elif self.root.is_file():
            found = list(archive_members(self.root, ".xml"))
        else:
            raise DataError(f"{self.root}: no such folder or archive")
        if not found:
            raise DataError(f"{self.root}: no XML file in it")
        return sorted(found, key=lambda item: (len(PurePosixPath(item[0]).name), item[0]))

    def records(self, item: tuple[str, bytes]) -> Iterator[dict | Dropped]:
        name, data = item
        try:
            report = parse_report(data, name)
        except DataError as error:
            yield Dropped(name, "broken XML", detail=str(error))
            return
        films = [film for film in report["films"] if self.images]
        made = 0
        for film in films:
            path = self._film(film)
            try:
                if path is None:
                    raise DataError(f"{self.images / film}: the image is missing")
                image, _, _ = film_column(path, self.settings["max_side"])
            except DataError as error:
                yield Dropped(film, "the film is missing or broken", "image", str(error))
                continue
            made += 1
            yield self._record(report, film, image)
        if not made:
            yield self._record(report, report["films"][0] if report["films"] else report["id"], None)

    def _film(self, film: str) -> Path | None:
        return next(
            (p for p in (self.images / f"{film}{suffix}" for suffix in (".png", *SUFFIXES)) if p.is_file()), None
        )

    def _record(self, report: dict, image_id: str, image: dict | None) -> dict:
        record = empty_record(image_id, report["id"], split_of_patient(report["id"]))
        findings, impression = report["FINDINGS"], report["IMPRESSION"]
        values = mesh_labels(report["mesh"])
        record.update(
            image=image,
            study_id=report["id"],
            findings_text=findings,
            impression=impression,
            indication=report["INDICATION"],
            comparison=report["COMPARISON"],
            report=compose_report(findings, impression),
            terms=report["mesh"],
            labels=label_list(values) if values else [],
        )
        return record


def parse_report(data: bytes, name: str) -> dict:
    """Sections, MeSH headings and film names of a report; an empty section is None.

    Raises:
        DataError: no XML, or no report id in it.
    """
    try:
        tree = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise DataError(f"{name}: row {error.position[0]}: broken XML: {error}") from error
    uid = tree.find("uId")
    if uid is None or not uid.get("id"):
        raise DataError(f"{name}: no uId element with an id: this is no Open-i report")
    report = {"id": uid.get("id"), "COMPARISON": None, "INDICATION": None, "FINDINGS": None, "IMPRESSION": None}
    for part in tree.iter("AbstractText"):
        label = (part.get("Label") or "").upper()
        if label in report:
            report[label] = " ".join("".join(part.itertext()).split()) or None
    report["mesh"] = [
        " ".join((node.text or "").split()) for node in tree.iterfind("MeSH/major") if (node.text or "").strip()
    ]
    report["films"] = [node.get("id") for node in tree.iter("parentImage") if node.get("id")]
    return report


def archive_members(path: Path, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of an archive's files with a suffix; nothing is written to disk.

    Raises:
        DataError: no archive, a broken one, or one whose member names lead out of its folder.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    check_member(path, info.filename)
                    if info.filename.lower().endswith(suffix) and not info.is_dir():
                        yield info.filename, archive.read(info)
        else:
            with tarfile.open(path) as archive:
                for info in archive:
                    check_member(path, info.name)
                    if info.issym() or info.islnk():
                        raise DataError(
                            f"{path}: member {info.name!r} is a link; an archive of reports holds plain files only"
                        )
                    if info.name.lower().endswith(suffix) and info.isfile():
                        yield info.name, archive.extractfile(info).read()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise DataError(f"{path}: no archive that can be read: {error}") from error


def check_member(path: Path, name: str) -> None:
    """Raises if an archive member's name is absolute or climbs out of its folder."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or (parts.parts and ":" in parts.parts[0]):
        raise DataError(f"{path}: member {name!r} leads out of the archive's folder; the archive is not used")


__all__ = ["OpeniSource", "archive_members", "parse_report"]
