"""Reading and writing what scores are computed from: predictions, scanpaths, reports, results.

Files are read line by line; an error names the file and the line. Results are written to a temporary name first, so
that a half-written file never stands under its final name.
"""

import gzip
import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import DataError, InputError


def read_json_lines(path: str | os.PathLike, failures: list[str] | None = None) -> Iterator[tuple[int, dict]]:
    """Line number and record of each line of a JSONL file (or `.jsonl.gz`); empty lines are skipped.

    Args:
        path: the file.
        failures: receives the message of each bad line, which is then passed over; None raises at the first.

    Raises:
        InputError: the file cannot be opened.
        DataError: a line is not UTF-8 text or no JSON object.
    """
    try:
        with gzip.open(path, "rb") if str(path).endswith(".gz") else open(path, "rb") as file:
            yield from _json_lines(path, file, failures)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _json_lines(path, file, failures: list[str] | None) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            record = _json_record(line)
        except ValueError as error:
            if failures is None:
                raise DataError(f"{path}, line {number}: {error}") from error
            failures.append(f"{path}, line {number}: {error}")
            continue
        yield number, record


def _json_record(line: bytes) -> dict:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error.msg}); expected one object a line") from error
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__}; expected an object")
    return record


def _required_text(path, number: int, record: dict, key: str) -> str:
    if key not in record:
        raise DataError(f"{path}, line {number}: no {key!r}; found {', '.join(map(repr, record)) or 'nothing'}")
    value = record[key]
    if not isinstance(value, str):
        raise DataError(f"{path}, line {number}: {key!r} is {_kind(value)}; expected text")
    return value


def _identifier(path, number: int, record: dict, key: str) -> str:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise DataError(f"{path}, line {number}: {key!r} is {_kind(value)}; expected text that names the record")
    return str(value)


def _kind(value) -> str:
    return "missing" if value is None else f"{json.dumps(value)[:40]}"


@dataclass
class Predictions:
    """Reports of one system, in the order of its file.

    Attributes:
        ids: name of each report.
        predictions: the reports.
        references: one or more reference reports each; empty lists where the file has none.
        patients: patient of each report, or None when the file names none.
    """

    ids: list[str] = field(default_factory=list)
    predictions: list[str] = field(default_factory=list)
    references: list[list[str]] = field(default_factory=list)
    patients: list[str] | None = None


def read_predictions(path: str | os.PathLike, need_references: bool = True) -> Predictions:
    """Reads a predictions file: lines of `{"id", "prediction", "reference", "patient_id"}`.

    `reference` is a text or a list of texts. `patient_id` stands on every line or on none.

    Raises:
        DataError: a line lacks a key, repeats an id, or has a value of the wrong kind; a reference is missing or empty.
    """
    result = Predictions()
    seen: dict[str, int] = {}
    patients: list[str | None] = []
    for number, record in read_json_lines(path):
        name = _identifier(path, number, record, "id")
        if name in seen:
            raise DataError(f"{path}, line {number}: id {name!r} stands on line {seen[name]} already; ids must differ")
        seen[name] = number
        references = record.get("reference", [])
        references = [references] if isinstance(references, str) else references
        if not isinstance(references, list) or not all(isinstance(text, str) for text in references):
            kind = _kind(references)
            raise DataError(
                f"{path}, line {number} (id {name!r}): 'reference' is {kind}; expected text or a list of texts"
            )
        if need_references and not any(text.strip() for text in references):
            raise DataError(f"{path}, line {number} (id {name!r}): no 'reference' to score against")
        result.ids.append(name)
        result.predictions.append(_required_text(path, number, record, "prediction"))
        result.references.append([text for text in references if text.strip()])
        patients.append(None if record.get("patient_id") is None else _identifier(path, number, record, "patient_id"))
    if not result.ids:
        raise DataError(f"{path}: no record; expected lines of id, prediction and reference")
    result.patients = all_or_none(path, patients, "patient_id")
    return result


def all_or_none(path, values: list[str | None], key: str) -> list[str] | None:
    """The values if every record has one, None if none has; an error otherwise."""
    missing = [i for i, value in enumerate(values) if value is None]
    if len(missing) == len(values):
        return None
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(values)} records lack {key!r}; it must stand on all or on none"
        )
    return values


@dataclass
class Scanpath:
    """One scanpath of a file.

    Attributes:
        image_id: the image.
        reader_id: who read it, or None.
        patient_id: whose image it is, or None.
        size: width and height of the image in pixels.
        fixations: (N, 3) x, y in [0, 1] of the image, duration in seconds (0 where the file has none).
        has_durations: whether the file gave durations.
        line: line number.
    """

    image_id: str
    reader_id: str | None
    patient_id: str | None
    size: tuple[float, float]
    fixations: np.ndarray
    has_durations: bool
    line: int


def read_scanpaths(
    path: str | os.PathLike,
    size: tuple[float, float] | None = None,
    time_unit: str = "ms",
) -> list[Scanpath]:
    """Reads canonical scanpaths: lines of `{"image_id", "reader_id", "width", "height", "X", "Y", "T"}`.

    X and Y are pixels, T durations. The keys `name` and `subject` of GazeSearch-like files are read as `image_id` and
    `reader_id`. A line without T has no durations; metrics that need them are then unavailable.

    Args:
        path: the file.
        size: width and height of the images, for lines that do not say.
        time_unit: unit of T, "ms" or "s".

    Raises:
        DataError: a line is not such a record; lists differ in length; positions are not pixels of the image; the
            durations of the file cannot be in `time_unit` (median below 10 "ms", or above 10 "s").
    """
    records: list[Scanpath] = []
    durations: list[float] = []
    for number, record in read_json_lines(path):
        records.append(_scanpath_record(path, number, record, size, time_unit))
        if record.get("T"):
            durations.extend(record["T"])
    if not records:
        raise DataError(f"{path}: no record; expected lines of image_id, X, Y and T")
    if durations:
        median = float(np.median(durations))
        if time_unit == "ms" and median < 10:
            raise DataError(
                f"{path}: the median of T is {median:g}; durations look like seconds where milliseconds are meant "
                "(pass --time-unit s if they are)"
            )
        if time_unit == "s" and median > 10:
            raise DataError(
                f"{path}: the median of T is {median:g}; durations look like milliseconds where seconds are meant "
                "(pass --time-unit ms if they are)"
            )
    return records


def _scanpath_record(path, number: int, record: dict, size, time_unit: str) -> Scanpath:
    image_id = _identifier(path, number, record, "image_id" if "image_id" in record else "name")
    where = f"{path}, line {number} (image {image_id!r})"
    reader = record.get("reader_id", record.get("subject"))
    width, height = record.get("width"), record.get("height")
    if width is None or height is None:
        if size is None:
            raise DataError(f"{where}: no 'width' and 'height'; give the images' size with --width and --height")
        width, height = size
    columns = {}
    for key in ("X", "Y", "T"):
        values = record.get(key)
        if values is None and key == "T":
            continue
        if not isinstance(values, list) or not all(_is_number(value) for value in values):
            raise DataError(f"{where}: {key!r} is {_kind(values)}; expected a list of finite numbers")
        columns[key] = np.asarray(values, dtype=np.float64)
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{where}: lists of different lengths ({lengths}); expected one value for each fixation")
    if not (_is_number(width) and _is_number(height) and width > 0 and height > 0):
        raise DataError(f"{where}: size {width!r} x {height!r}; expected positive numbers of pixels")
    x, y = columns["X"] / width, columns["Y"] / height
    if len(x) and (np.median(np.abs(x)) > 1.5 or np.median(np.abs(y)) > 1.5):
        raise DataError(f"{where}: positions lie far outside {width:g} x {height:g} pixels; is the size right?")
    if len(x) >= 3 and max(columns["X"].max(), columns["Y"].max()) <= 1.5 and min(width, height) > 32:
        raise DataError(f"{where}: positions look like fractions of the image; expected pixels")
    if "T" in columns and (columns["T"] < 0).any():
        raise DataError(f"{where}: T has a negative duration")
    seconds = columns.get("T", np.zeros(len(x))) * (0.001 if time_unit == "ms" else 1.0)
    return Scanpath(
        image_id=image_id,
        reader_id=None if reader is None else str(reader),
        patient_id=None if record.get("patient_id") is None else str(record["patient_id"]),
        size=(float(width), float(height)),
        fixations=np.stack([x, y, seconds], axis=1),
        has_durations="T" in columns,
        line=number,
    )


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def plain(value):
    """A value made fit for JSON: arrays to lists, NumPy numbers to numbers, NaN and infinity to None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file (UTF-8) whole or not at all; raises as `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
        InputError: the folder cannot be made or written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def write_json(path: str | os.PathLike, value) -> None:
    """Writes JSON whole or not at all; see `plain` for what becomes of NaN."""
    write_text(path, json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")
