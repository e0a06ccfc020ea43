"""Eye-tracker exports to scanpaths: one reader per format, and the recogniser behind `--format auto`.

Only the standard library and NumPy are needed, so that a recording can be used wherever the model can. A reader never
guesses in
silence: each decision (unit, eye, coordinate frame) and each thing left out is a sentence in `Scanpath.notes`.
"""

import csv
import gc
import gzip
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import InputError
from .scanpath import (
    DEGREES_PER_WIDTH,
    DISPERSION_DEGREES,
    MIN_FIXATION_S,
    VELOCITY_DEGREES_PER_S,
    Scanpath,
    check_scanpath,
    detect_fixations,
    parse_canonical,
)

FORMATS = ("auto", "egd", "reflacx", "gazesearch", "eyelink", "tobii", "pupil", "csv")
# above this median, durations are milliseconds: no scanpath's median fixation lasts ten seconds
SECONDS_LIMIT = 10.0


@dataclass(frozen=True)
class GazeOptions:
    """What a file may leave open.

    Attributes:
        width, height: of the original image in pixels.
        placement: x0, y0, x1, y1 of the image on the screen in screen pixels; by default the image filled the screen.
        columns: for plain CSV, names of this project (x, y, onset, duration, time, image, reader) -> column names, or
            column numbers from 0 for a file without a header.
        units: `"px"` (of the original image), `"screen"` (pixels of the screen) or `"norm"` ([0, 1]); by default
            decided from the values.
        time_unit: `"s"`, `"ms"` or `"us"`; by default decided from names and values.
        detection: `"idt"` or `"ivt"` for raw samples.
        dispersion, velocity, min_duration_s: its thresholds in degrees, degrees per second and seconds.
        pixels_per_degree: of the original image as it was shown; by default its width / 27.
        image_id: for formats that name no image; by default the file's stem.
        encoding: of text files; by default UTF-8 (with or without a mark), else Windows-1252 for trackers' own formats.
    """

    width: float | None = None
    height: float | None = None
    placement: tuple[float, float, float, float] | None = None
    columns: dict[str, str] = field(default_factory=dict)
    units: str | None = None
    time_unit: str | None = None
    detection: str = "idt"
    dispersion: float = DISPERSION_DEGREES
    velocity: float = VELOCITY_DEGREES_PER_S
    min_duration_s: float = MIN_FIXATION_S
    pixels_per_degree: float | None = None
    image_id: str | None = None
    encoding: str | None = None


def read_gaze(path: str | os.PathLike, format: str = "auto", options: GazeOptions | None = None) -> list[Scanpath]:
    """Scanpaths of a file.

    Args:
        path: of the export; `.gz` is unpacked.
        format: one of `FORMATS`; canonical JSONL is recognised whatever is asked for.
        options: what the file leaves open.

    Raises:
        InputError: the file cannot be read as asked; the message names file, row and column.
    """
    options = options or GazeOptions()
    path = Path(path)
    if format not in FORMATS:
        raise InputError(f"gaze format {format!r}: there are {', '.join(FORMATS)}")
    data = _read_bytes(path)
    text, encoding_note = _decode(data, path, options, tolerant=format in ("auto", "eyelink", "tobii"))
    found = recognise(text, path) if format == "auto" or _is_canonical(text) else format
    text = text.replace("\r\r\n", "\n").replace("\r\n", "\n").replace("\r", "\n")
    scanpaths = READERS[found](text, path, options)
    if not scanpaths:
        raise InputError(f"{path}: read as {found}, but there is no fixation in it")
    for scanpath in scanpaths:
        if encoding_note:
            scanpath.notes.append(encoding_note)
        scanpath.extra.setdefault("format", found)
    return scanpaths


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {reason}") from error


def _decode(data: bytes, path: Path, options: GazeOptions, tolerant: bool) -> tuple[str, str | None]:
    if not data.strip():
        raise InputError(f"{path}: the file is empty")
    if options.encoding:
        try:
            return data.decode(options.encoding), None
        except (LookupError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read as {options.encoding}: {error}") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16"), None
    try:
        return data.decode("utf-8-sig"), None
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        if b"\x00" in data[:4096]:
            raise InputError(f"{path}: row {row}: this is no text file; export the recording as text") from error
        if tolerant and (data[:2] == b"**" or b"\t" in data[:4096]):
            return data.decode("cp1252", errors="replace"), "the file is not UTF-8 and was read as Windows-1252"
        raise InputError(
            f"{path}: row {row}: byte {data[error.start]:#04x} is not UTF-8; give --encoding, such as cp1252"
        ) from error


def _is_canonical(text: str) -> bool:
    head = text.lstrip()[:400]
    return (
        head.startswith("{")
        and '"X"' in text[:100000].split("\n", 1)[0]
        and '"image_id"' in text[:100000].split("\n", 1)[0]
    )


def recognise(text: str, path: Path) -> str:
    """The format of a file, from its first lines.

    Raises:
        InputError: nothing is recognised; the message says what was seen.
    """
    if _is_canonical(text):
        return "canonical"
    head = text.lstrip("\ufeff \r\n")[:200000]
    if head.startswith("["):
        return "gazesearch"
    lines = head.splitlines()
    if head.startswith("**") or any(re.match(r"(EFIX|SFIX|START|MSG)\s", line) for line in lines[:40]):
        return "eyelink"
    for line in lines[:80]:
        names = {_plain(cell) for cell in re.split(r"[\t;,]", line)}
        if {"fpogx", "fpogy"} <= names:
            return "egd"
        if "timestampstartfixation" in names or {"timestampsample", "xposition"} <= names:
            return "reflacx"
        if {"mappedfixationpointx", "fixationduration"} <= names or "gazepointx" in names or "eyemovementtype" in names:
            return "tobii"
        if "leftgazepointondisplayarea" in names or {"timestamp", "event", "eventkey"} <= names:
            return "tobii"
        if {"normposx", "normposy"} <= names:
            return "pupil"
    if lines and lines[0].lstrip().startswith("{"):
        raise InputError(
            f"{path}: JSON lines without image_id, X, Y and T; see the canonical scanpath line in the documentation"
        )
    return "csv"


# --- tables ----------------------------------------------------------------------------------------------------------


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


class Table:
    """Columns of a delimited text, as strings, and the line each row stands on."""

    def __init__(self, path: Path, header: list[str], rows: list[list[str]], lines: list[int]):
        self.path, self.header, self.rows, self.lines = path, header, rows, np.asarray(lines)
        self.notes: list[str] = []
        self.index = {}
        for k, name in enumerate(header):
            self.index.setdefault(_plain(name), k)

    def __contains__(self, name: str) -> bool:
        return _plain(name) in self.index

    def __len__(self) -> int:
        return len(self.rows)

    def text(self, name: str) -> list[str]:
        """A column as strings."""
        k = self.index[_plain(name)]
        return [row[k] for row in self.rows]

    def numbers(self, name: str, decimal: str = ".", missing: bool = False) -> np.ndarray:
        """A column as floats.

        Args:
            name: of the column.
            decimal: `","` for continental numbers.
            missing: whether empty cells may be NaN; otherwise they are an error.
        """
        cells = self.text(name)
        if decimal == ",":
            cells = [cell.replace(",", ".") for cell in cells]
        try:
            values = np.fromiter(map(float, cells), dtype=float, count=len(cells))
        except ValueError:
            values = np.empty(len(cells))
            for k, cell in enumerate(cells):
                values[k] = self._number(cell, name, k, missing)
        if not missing and np.isnan(values).any():
            k = int(np.argmax(np.isnan(values)))
            raise InputError(f"{self.path}: row {self.lines[k]}, column {name}: {cells[k]!r} is no number")
        return values

    def _number(self, cell: str, name: str, k: int, missing: bool) -> float:
        cell = cell.strip()
        if cell.lower() in ("", "nan", "na", ".", "-", "none", "null"):
            if missing:
                return math.nan
            raise InputError(
                f"{self.path}: row {self.lines[k]}, column {name}: {cell or 'nothing'!r} where a number must be"
            )
        try:
            return float(cell)
        except ValueError:
            hint = " (decimal comma? the file mixes both)" if "," in cell else ""
            raise InputError(f"{self.path}: row {self.lines[k]}, column {name}: {cell!r} is no number{hint}") from None

    def require(self, *names: str) -> None:
        """Raises if a column is missing, naming it and those that are there."""
        for name in names:
            if name not in self:
                raise InputError(f"{self.path}: column {name!r} is missing; there are {', '.join(self.header)}")

    def where(self, mask: np.ndarray) -> "Table":
        """The rows of a mask."""
        keep = np.flatnonzero(mask)
        return Table(self.path, self.header, [self.rows[k] for k in keep], self.lines[keep])


def _delimiter(line: str) -> str:
    return max("\t;,", key=line.count) if re.search(r"[\t;,]", line) else ","


def read_table(
    text: str,
    path: Path,
    is_header=None,
    header: list[str] | None = None,
    delimiter: str | None = None,
    wanted: tuple[str, ...] | None = None,
) -> Table:
    """A delimited text; lines before the first whose plain names `is_header` accepts are a preamble.

    Only the `wanted` columns are kept, if they are given: raw recordings have millions of rows of dozens of columns.
    """
    lines = text.split("\n")
    cut_off = bool(lines[-1].strip())  # no line break at the end: the last line may be half a line
    start = 0
    if header is None:
        for number, line in enumerate(lines[:500]):
            cells = [cell.strip().strip('"') for cell in line.rstrip("\r\n").split(delimiter or _delimiter(line))]
            if line.strip() and (is_header is None or is_header({_plain(cell) for cell in cells})):
                header, start, delimiter = cells, number + 1, delimiter or _delimiter(line)
                break
        else:
            raise InputError(f"{path}: no header line was found in the first {min(500, len(lines))} rows")
    else:
        delimiter = delimiter or _delimiter(lines[0])
    body = lines[start:]
    collecting = gc.isenabled()
    gc.disable()  # a million small lists make no cycles, and looking for them takes most of the time
    try:
        kept = list(range(len(header)))
        if wanted is not None:
            names = {_plain(name) for name in wanted}
            kept = [k for k, name in enumerate(header) if _plain(name) in names]
        rows, numbers, notes = _plain_rows(body, start, delimiter, len(header), kept) or _rows(
            body, start, delimiter, header, path, cut_off, kept
        )
        header = [header[k] for k in kept]
    finally:
        if collecting:
            gc.enable()
    if not rows:
        raise InputError(f"{path}: there is a header but no row")
    table = Table(path, header, rows, numbers)
    table.notes = notes
    return table


def _plain_rows(body: list[str], start: int, delimiter: str, width: int, kept: list[int]):
    """Rows of a table without quotes, blank or uneven lines; None for any other, which the csv module then reads."""
    if body and not body[-1].strip():
        body = body[:-1]
    if any(line.count(delimiter) != width - 1 or '"' in line for line in body):
        return None
    if len(kept) == width:
        rows = [line.split(delimiter) for line in body]
    else:
        rows = [[cells[k] for k in kept] for cells in (line.split(delimiter) for line in body)]
    return rows, range(start + 1, start + 1 + len(rows)), []


def _rows(body: list[str], start: int, delimiter: str, header: list[str], path: Path, cut_off: bool, kept: list[int]):
    """Rows of any table, the line each stands on, and notes."""
    rows, numbers, notes = [], [], []
    width = len(header)
    reader = csv.reader(body, delimiter=delimiter)
    try:
        for row in reader:
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            if len(row) != width:
                if len(row) < width and all(not name for name in header[len(row) :]):
                    row = row + [""] * (width - len(row))
                elif len(row) > width and all(not cell.strip() for cell in row[width:]):
                    row = row[:width]
                elif cut_off and reader.line_num == len(body):
                    notes.append("the last row is cut off and left out")
                    continue
                else:
                    where = f"{path}: row {start + reader.line_num}"
                    raise InputError(f"{where}: {len(row)} cells, but the header has {width} columns")
            rows.append([row[k] for k in kept])
            numbers.append(start + reader.line_num)
    except csv.Error as error:
        raise InputError(f"{path}: row {start + reader.line_num}: {error}") from error
    return rows, numbers, notes


# --- shared steps ----------------------------------------------------------------------------------------------------


def _image_size(
    path: Path, options: GazeOptions, known: tuple[float, float] | None, notes: list[str], what: str
) -> tuple[float, float]:
    if options.width and options.height:
        return float(options.width), float(options.height)
    if known and all(known):
        notes.append(f"the image's size is taken to be {known[0]:g} x {known[1]:g} pixels: {what}")
        return float(known[0]), float(known[1])
    raise InputError(f"{path}: the file does not say how large the image is; give --width and --height in pixels")


def _from_screen(x, y, screen: tuple[float, float], size: tuple[float, float], options: GazeOptions, notes: list[str]):
    """Screen pixels to image pixels through the placement of the image on the screen."""
    if options.placement:
        x0, y0, x1, y1 = options.placement
        if not (x1 > x0 and y1 > y0):
            raise InputError(
                f"--placement {x0:g},{y0:g},{x1:g},{y1:g}: must be left, top, right, bottom in screen pixels"
            )
    else:
        x0, y0, x1, y1 = 0.0, 0.0, *screen
        if tuple(size) != tuple(screen):
            notes.append(
                f"the image is taken to have filled the screen of {screen[0]:g} x {screen[1]:g} pixels; --placement "
                "says otherwise"
            )
    if (x0, y0, x1, y1) == (0.0, 0.0, *size):
        return x, y
    return (x - x0) * size[0] / (x1 - x0), (y - y0) * size[1] / (y1 - y0)


def _detect(x, y, time_s, size, options: GazeOptions, notes: list[str], where: str, rows) -> tuple[np.ndarray, ...]:
    """Fixations of raw samples, with the thresholds in the notes; refuses times that stand still or go back."""
    again = np.concatenate([[False], (np.diff(time_s) == 0) & (np.diff(x) == 0) & (np.diff(y) == 0)])
    if again.any():
        notes.append(f"{int(again.sum())} samples repeat the one before them, time and position, and count once")
        x, y, time_s, rows = x[~again], y[~again], time_s[~again], np.asarray(rows)[~again]
    steps = np.diff(time_s)
    if (steps <= 0).any():
        k = int(np.argmax(steps <= 0)) + 1
        what = "is there twice" if steps[k - 1] == 0 else "goes back"
        raise InputError(
            f"{where}: row {rows[k]}, time: {time_s[k]:.6f} s {what}; samples must be in temporal order, each time once"
        )
    degree = options.pixels_per_degree or size[0] / DEGREES_PER_WIDTH
    lost = int((~(np.isfinite(x) & np.isfinite(y))).sum())
    fx, fy, onset, duration = detect_fixations(
        x, y, time_s, degree, options.detection, options.dispersion, options.velocity, options.min_duration_s
    )
    limit = f"{options.dispersion:g} degrees" if options.detection == "idt" else f"{options.velocity:g} degrees/s"
    notes.append(
        f"{len(fx)} fixations were found in {len(x)} samples by I-{options.detection[1:].upper()} ({limit}, at least "
        f"{options.min_duration_s * 1000:g} ms, {degree:.4g} pixels per degree); {lost} samples without a position"
    )
    return fx, fy, onset, duration


def _seconds(
    values: np.ndarray, unit: str | None, name: str, notes: list[str], where: str, rows, durations: bool = True
) -> np.ndarray:
    """Times in seconds; the unit is the given one, else the name's suffix, else decided from the median."""
    factor = {"s": 1.0, "ms": 1e3, "us": 1e6}
    if unit is None:
        suffix = re.search(r"(?:_|\(|\[|\s|in)(s|secs?|seconds|ms|us)\W*$", name.lower())
        if suffix:
            unit = {"sec": "s", "secs": "s", "seconds": "s"}.get(suffix.group(1), suffix.group(1))
        elif durations and len(values):
            unit = "ms" if float(np.nanmedian(np.abs(values))) > SECONDS_LIMIT else "s"
            notes.append(
                f"{name} is taken to be in {'milliseconds' if unit == 'ms' else 'seconds'} (median "
                f"{np.nanmedian(values):.4g})"
            )
            other = np.abs(values) < 5 if unit == "ms" else np.abs(values) > 50
            if other.any() and (unit == "s" or float(np.abs(values[other]).max()) > 0):
                k = int(np.argmax(other))
                raise InputError(
                    f"{where}: row {rows[k]}, {name}: {values[k]:g} beside a median of {np.nanmedian(values):.4g}: "
                    "seconds and milliseconds are mixed; give --time-unit if they are not"
                )
        else:
            unit = "s"
    if unit not in factor:
        raise InputError(f"--time-unit {unit!r}: there are s, ms and us")
    return values / factor[unit]


def _groups(keys: list) -> list[tuple[object, np.ndarray]]:
    """Row numbers of each key, in the order of first appearance."""
    if len(set(keys)) == 1:
        return [(keys[0], np.arange(len(keys)))]
    order: dict = {}
    for k, key in enumerate(keys):
        order.setdefault(key, []).append(k)
    return [(key, np.asarray(rows)) for key, rows in order.items()]


# --- readers ---------------------------------------------------------------------------------------------------------


def read_canonical(text: str, path: Path, options: GazeOptions) -> list[Scanpath]:
    """Canonical JSONL."""
    return parse_canonical(text, str(path))


EGD_COLUMNS = (
    "FPOGX", "FPOGY", "FPOGS", "FPOGD", "FPOGID", "FPOGV", "X_ORIGINAL", "Y_ORIGINAL", "DICOM_ID",
    "Time (in secs)", "TIME",
)  # fmt: skip


def read_egd(
    text: str, path: Path, options: GazeOptions, sizes: dict[str, tuple[float, float]] | None = None
) -> list[Scanpath]:
    """Gazepoint columns as in EGD-CXR's `fixations.csv` and `eye_gaze.csv`; one scanpath per DICOM_ID.

    Rows of one FPOGID belong to one fixation; its last valid row has the final duration. Original-image pixels are
    used where there are any (negative means off the image); otherwise fractions of the screen. `sizes` gives films'
    sizes in pixels; with it, films that are not in it are passed over.
    """
    table = read_table(text, path, lambda names: {"fpogx", "fpogy"} <= names, wanted=EGD_COLUMNS)
    table.require("FPOGX", "FPOGY", "FPOGS", "FPOGD")
    columns = {name: table.numbers(name, missing=True) for name in ("FPOGX", "FPOGY", "FPOGS", "FPOGD")}
    valid = table.numbers("FPOGV", missing=True) == 1 if "FPOGV" in table else np.ones(len(table), dtype=bool)
    original = "X_ORIGINAL" in table and "Y_ORIGINAL" in table
    if original:
        columns["x"], columns["y"] = (
            table.numbers("X_ORIGINAL", missing=True),
            table.numbers("Y_ORIGINAL", missing=True),
        )
    ids = table.text("FPOGID") if "FPOGID" in table else [str(k) for k in range(len(table))]
    films = table.text("DICOM_ID") if "DICOM_ID" in table else [options.image_id or path.stem] * len(table)
    clock = next((name for name in ("Time (in secs)", "TIME") if name in table), None)
    times = table.numbers(clock, missing=True) if clock else columns["FPOGS"]
    scanpaths = []
    for film, rows in _groups(films):
        if sizes is not None and film not in sizes:
            continue
        notes = []
        start = float(np.nanmin(times[rows])) if clock else float(np.nanmin(columns["FPOGS"][rows]))
        start = min(start, float(np.nanmin(columns["FPOGS"][rows])))
        last: dict = {}
        for k in rows.tolist():
            if valid[k]:
                last[ids[k]] = k
        invalid = len({ids[k] for k in rows.tolist()} - set(last))
        if invalid:
            notes.append(f"{invalid} fixations marked invalid (FPOGV) are left out")
        keep = np.asarray(sorted(last.values()), dtype=int)
        if not len(keep):
            raise InputError(f"{path}: {film}: no row is marked valid (FPOGV = 1)")
        if original:
            x, y = columns["x"][keep], columns["y"][keep]
            if sizes is None and not (options.width and options.height):
                raise InputError(f"{path}: {film}: give --width and --height of the original image in pixels")
            size = sizes[film] if sizes else (float(options.width), float(options.height))
        else:
            screen = (1920.0, 1080.0)
            size = _image_size(path, options, screen, notes, "the screen of the recording")
            x, y = _from_screen(
                columns["FPOGX"][keep] * screen[0], columns["FPOGY"][keep] * screen[1], screen, size, options, notes
            )
        notes.append(f"onsets count from {start:g} s of the recording")
        scanpath = Scanpath(
            str(film), None, *size, x, y, columns["FPOGS"][keep] - start, columns["FPOGD"][keep], notes=notes
        )
        scanpaths.append(check_scanpath(scanpath, str(path), table.lines[keep]))
    return scanpaths


REFLACX_MARGIN_DEGREES = 0.5
REFLACX_COLUMNS = (
    "timestamp_start_fixation", "timestamp_end_fixation", "timestamp_sample", "x_position", "y_position",
    "angular_resolution_x_pixels_per_degree", "angular_resolution_y_pixels_per_degree",
    "xmin_shown_from_image", "ymin_shown_from_image", "xmax_shown_from_image", "ymax_shown_from_image",
)  # fmt: skip


def read_reflacx(text: str, path: Path, options: GazeOptions) -> list[Scanpath]:
    """REFLACX `fixations.csv`, or raw samples of `gaze.csv`.

    Positions are original-image pixels; a fixation less than half a degree outside the part of the image that was
    shown is moved onto its edge, one farther out is left out. Onsets count from the start of the audio and may be
    negative.
    """
    table = read_table(text, path, lambda names: "xposition" in names, wanted=REFLACX_COLUMNS)
    table.require(
        "x_position", "y_position", "angular_resolution_x_pixels_per_degree", "angular_resolution_y_pixels_per_degree"
    )
    raw = "timestamp_sample" in table
    if not raw:
        table.require("timestamp_start_fixation", "timestamp_end_fixation")
    x, y = table.numbers("x_position", missing=raw), table.numbers("y_position", missing=raw)
    degree_x = table.numbers("angular_resolution_x_pixels_per_degree", missing=raw)
    degree_y = table.numbers("angular_resolution_y_pixels_per_degree", missing=raw)
    notes: list[str] = []
    shown = {}
    for edge in ("xmin", "ymin", "xmax", "ymax"):
        name = f"{edge}_shown_from_image"
        shown[edge] = table.numbers(name, missing=True) if name in table else None
    known = None
    if shown["xmax"] is not None:
        known = float(np.nanmax(shown["xmax"])), float(np.nanmax(shown["ymax"]))
    size = _image_size(path, options, known, notes, "the largest part of it that was shown")
    low_x = np.zeros(len(x)) if shown["xmin"] is None else np.nan_to_num(shown["xmin"])
    low_y = np.zeros(len(x)) if shown["ymin"] is None else np.nan_to_num(shown["ymin"])
    high_x = np.full(len(x), size[0]) if shown["xmax"] is None else np.nan_to_num(shown["xmax"], nan=size[0])
    high_y = np.full(len(x), size[1]) if shown["ymax"] is None else np.nan_to_num(shown["ymax"], nan=size[1])
    inside_x, inside_y = np.clip(x, low_x, high_x), np.clip(y, low_y, high_y)
    off = np.hypot((x - inside_x) / degree_x, (y - inside_y) / degree_y)
    image_id = options.image_id or (path.parent.name if path.stem in ("fixations", "gaze") else path.stem)
    rows = table.lines
    if raw:
        far = ~(off < REFLACX_MARGIN_DEGREES)
        x, y = np.where(far, np.nan, inside_x), np.where(far, np.nan, inside_y)
        time_s = table.numbers("timestamp_sample")
        degree = options.pixels_per_degree or float(np.nanmedian((degree_x + degree_y) / 2))
        chosen = GazeOptions(**{**vars(options), "pixels_per_degree": degree})
        x, y, onset, duration = _detect(x, y, time_s, size, chosen, notes, str(path), rows)
        return [
            check_scanpath(
                Scanpath(image_id, None, *size, x, y, onset, duration, np.full(len(x), degree), notes=notes), str(path)
            )
        ]
    start, end = table.numbers("timestamp_start_fixation"), table.numbers("timestamp_end_fixation")
    keep = off < REFLACX_MARGIN_DEGREES
    if (off[keep] > 0).any():
        notes.append(
            f"{int((off[keep] > 0).sum())} fixations less than {REFLACX_MARGIN_DEGREES} degrees off the shown image "
            "are moved to its edge"
        )
    if not keep.all():
        notes.append(f"{int((~keep).sum())} of {len(keep)} fixations off the shown image are left out")
    if not keep.any():
        raise InputError(
            f"{path}: all {len(keep)} fixations lie off the shown image (row {rows[0]}: x {x[0]:g}, y {y[0]:g})"
        )
    bad = ~(end > start)
    if bad.any():
        k = int(np.argmax(bad))
        raise InputError(
            f"{path}: row {rows[k]}, timestamp_end_fixation: {end[k]:g} s is not after the start at {start[k]:g} s"
        )
    scanpath = Scanpath(
        image_id,
        None,
        *size,
        inside_x[keep],
        inside_y[keep],
        start[keep],
        (end - start)[keep],
        ((degree_x + degree_y) / 2)[keep],
        notes=notes,
    )
    return [check_scanpath(scanpath, str(path), rows[keep])]


def read_gazesearch(text: str, path: Path, options: GazeOptions) -> list[Scanpath]:
    """JSON in the layout of COCO-Search18 and GazeSearch: a list of `name, subject, task, X, Y, T, split`.

    `T` is decided to be seconds or milliseconds from the median over the file, and the decision noted. Coordinates
    are pixels of the grid the data set was published on (224 x 224 for GazeSearch, 1680 x 1050 for COCO-Search18),
    scaled to the image if its size is given.
    """
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno}: no JSON ({error.msg})") from error
    if not isinstance(entries, list) or not entries or not isinstance(entries[0], dict):
        raise InputError(f"{path}: must be a list of objects with name, X, Y and T")
    for number, entry in enumerate(entries):
        for key in ("name", "X", "Y", "T"):
            if key not in entry:
                raise InputError(f"{path}: entry {number}: key {key!r} is missing; there are {', '.join(entry)}")
        if not len(entry["X"]) == len(entry["Y"]) == len(entry["T"]):
            raise InputError(
                f"{path}: entry {number} ({entry['name']}): X, Y and T have {len(entry['X'])}, {len(entry['Y'])} and "
                f"{len(entry['T'])} values"
            )
    try:
        all_x = np.array([v for entry in entries for v in entry["X"]], dtype=float)
        all_y = np.array([v for entry in entries for v in entry["Y"]], dtype=float)
        all_t = np.array([v for entry in entries for v in entry["T"]], dtype=float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: X, Y and T must be numbers: {error}") from error
    owners = np.array([number for number, entry in enumerate(entries) for _ in entry["T"]])
    shared: list[str] = []
    seconds = _seconds(all_t, options.time_unit, "T", shared, str(path), owners)
    if all_x.max() <= 224 and all_y.max() <= 224:
        grid = (224.0, 224.0)
    elif all_x.max() <= 1680 and all_y.max() <= 1050:
        grid = (1680.0, 1050.0)
    else:
        grid = None
    if grid is None and not (options.width and options.height):
        raise InputError(
            f"{path}: coordinates reach {all_x.max():g} x {all_y.max():g}; give --width and --height of the grid they "
            "are on"
        )
    width, height = float(options.width or grid[0]), float(options.height or grid[1])
    if grid:
        shared.append(f"coordinates are taken to be on a grid of {grid[0]:g} x {grid[1]:g}")
    scanpaths, at = [], 0
    for number, entry in enumerate(entries):
        count = len(entry["T"])
        part = slice(at, at + count)
        at += count
        if not count:
            continue
        fx, fy = (width / grid[0], height / grid[1]) if grid else (1.0, 1.0)
        onset = np.concatenate([[0.0], np.cumsum(seconds[part])[:-1]])
        extra = {key: entry[key] for key in ("task", "condition", "split", "subject") if key in entry}
        reader = str(entry["subject"]) if "subject" in entry else None
        notes = [*shared, "no onsets: fixations are taken to follow one another without gaps"]
        scanpath = Scanpath(
            str(entry["name"]),
            reader,
            width,
            height,
            all_x[part] * fx,
            all_y[part] * fy,
            onset,
            seconds[part],
            extra=extra,
            notes=notes,
        )
        scanpaths.append(check_scanpath(scanpath, f"{path}: entry {number}", np.arange(count)))
    return scanpaths


def read_eyelink(text: str, path: Path, options: GazeOptions) -> list[Scanpath]:
    """EyeLink ASC (edf2asc): one scanpath per recording block (START ... END), from EFIX, or from samples without it.

    Of a binocular block the eye with more fixations is taken. Onsets count from the block's first SYNCTIME after
    START, else from START.
    """
    screen, trial, number = None, None, 0
    blocks: list[dict] = []
    block = None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line or line[0] == "*":
            continue
        parts = line.split()
        if not parts:
            continue
        tag = parts[0]
        if tag == "MSG" and len(parts) > 2:
            if parts[2] in ("DISPLAY_COORDS", "GAZE_COORDS") and len(parts) >= 7:
                screen = _screen(parts[3:7], path, number)
            elif parts[2] == "TRIALID":
                trial = "_".join(parts[3:]) or None
            elif "SYNCTIME" in parts[2:4] and block is not None and block["sync"] is None:
                block["sync"] = float(parts[1])
        elif tag == "START" and len(parts) > 1:
            block = {
                "start": float(parts[1]),
                "sync": None,
                "trial": trial,
                "fixations": {"L": [], "R": []},
                "samples": [],
                "eyes": [],
            }
            blocks.append(block)
        elif tag == "END":
            block = None
        elif tag == "EFIX":
            if len(parts) < 7 or parts[1] not in ("L", "R"):
                raise InputError(
                    f"{path}: row {number}: EFIX must have eye, start, end, duration, x and y: {line[:80]!r}"
                )
            if block is None:
                raise InputError(f"{path}: row {number}: a fixation outside START ... END")
            start, end, _, x, y = (_asc_number(value, path, number) for value in parts[2:7])
            block["fixations"][parts[1]].append((start, end, x, y, number))
        elif tag == "SAMPLES" and block is not None:
            block["eyes"] = [eye[0] for eye in ("LEFT", "RIGHT") if eye in parts]
            rate = re.search(r"RATE\s+([\d.]+)", line)
            block["rate"] = float(rate.group(1)) if rate else 1000.0
        elif tag[0].isdigit() and block is not None:
            block["samples"].append((number, parts))
    if not blocks:
        raise InputError(
            f"{path}: no recording block (START ... END) in {number} rows; export with edf2asc, events included"
        )
    scanpaths, silent = [], 0
    for count, block in enumerate(blocks, start=1):
        notes: list[str] = []
        size = _image_size(path, options, screen, notes, "the whole screen")
        origin = block["start"] if block["sync"] is None else block["sync"]
        notes.append(f"onsets count from {'START' if block['sync'] is None else 'SYNCTIME'} at {origin:g} ms")
        eye = max("RL", key=lambda eye: len(block["fixations"][eye]))
        events = block["fixations"][eye]
        name = options.image_id or path.stem
        image_id = name if len(blocks) == 1 else f"{name}#{block['trial'] or count}"
        if events:
            if block["fixations"]["L"] and block["fixations"]["R"]:
                notes.append(f"binocular: fixations of the {'right' if eye == 'R' else 'left'} eye")
            start, end, x, y, rows = (np.array(values, dtype=float) for values in zip(*events, strict=True))
            # the end stamp is the time of the last sample, so a fixation lasts one sample more than end - start
            duration = (end - start + 1000.0 / block.get("rate", 1000.0)) / 1000.0
            onset = (start - origin) / 1000.0
            rows = rows.astype(int)
        else:
            if len(block["samples"]) < 2:
                silent += 1
                continue
            x, y, time_s, rows = _asc_samples(block, path, notes)
            x, y, onset, duration = _detect(
                x, y, time_s - origin / 1000.0, screen or size, options, notes, str(path), rows
            )
            rows = None
        if not len(x):
            silent += 1
            continue
        x, y = _from_screen(x, y, screen or size, size, options, notes)
        extra = {"trial": block["trial"], "eye": eye}
        scanpaths.append(
            check_scanpath(
                Scanpath(image_id, None, *size, x, y, onset, duration, extra=extra, notes=notes), str(path), rows
            )
        )
    if silent and scanpaths:
        scanpaths[0].notes.append(f"{silent} recording blocks without a fixation are left out")
    return scanpaths


def _screen(parts: list[str], path: Path, number: int) -> tuple[float, float]:
    x0, y0, x1, y1 = (_asc_number(value, path, number) for value in parts)
    return x1 - x0 + 1, y1 - y0 + 1


def _asc_number(text: str, path: Path, number: int) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{path}: row {number}: {text!r} where a number must be") from None


def _asc_samples(block: dict, path: Path, notes: list[str]):
    rows = np.array([number for number, _ in block["samples"]])
    values = []
    both = len(block["eyes"]) == 2
    for number, parts in block["samples"]:
        cells = parts[:7] if both else parts[:3]
        values.append([math.nan if cell == "." else _asc_number(cell, path, number) for cell in cells])
    table = np.array(values, dtype=float)
    if both:
        right = np.isfinite(table[:, 4]).sum() > np.isfinite(table[:, 1]).sum()
        notes.append(f"binocular: samples of the {'right' if right else 'left'} eye")
        x, y = (table[:, 4], table[:, 5]) if right else (table[:, 1], table[:, 2])
    else:
        x, y = table[:, 1], table[:, 2]
    return x, y, table[:, 0] / 1000.0, rows


def read_tobii(text: str, path: Path, options: GazeOptions) -> list[Scanpath]:
    """Tobii Studio and Pro Lab exports (TSV or CSV, with or without a preamble, decimal comma or point), raw SDK logs.

    Fixations are the exporter's own where it names them; samples of one fixation index form one fixation. One
    scanpath per stimulus.
    """

    def is_header(names: set[str]) -> bool:
        return bool(
            {"gazepointx", "mappedfixationpointx", "eyemovementtype", "leftgazepointondisplayarea", "eventkey"} & names
        )

    table = read_table(text, path, is_header)
    if "left_gaze_point_on_display_area" in table:
        return _read_tobii_sdk(table, path, options)
    preamble = text[: 20000 if len(text) > 20000 else len(text)]
    resolution = re.search(r"resolution:\s*(\d+)\s*x\s*(\d+)", preamble, re.IGNORECASE)
    screen = tuple(float(v) for v in resolution.groups()) if resolution else None
    if "Eye movement type" in table:
        return _read_tobii_pro(table, path, options, screen)
    if "MappedFixationPointX" not in table or "FixationDuration" not in table:
        if "EventKey" in table and "GazePointX" not in table:
            raise InputError(f"{path}: an event log (mouse and keys) without gaze columns; export fixation or all data")
        table.require("MappedFixationPointX", "MappedFixationPointY", "FixationDuration", "FixationIndex", "Timestamp")
    decimal = (
        ","
        if any("," in cell for cell in table.text("Timestamp")[:100] + table.text("MappedFixationPointX")[:1000])
        else "."
    )
    if "GazePointXLeft" in table and any("," in cell for cell in table.text("GazePointXLeft")[:1000]):
        decimal = ","
    index = table.text("FixationIndex")
    stimulus = table.text("StimuliName") if "StimuliName" in table else [options.image_id or path.stem] * len(table)
    chosen = np.array([bool(cell.strip()) and bool(name.strip()) for cell, name in zip(index, stimulus, strict=True)])
    if not chosen.any():
        raise InputError(
            f"{path}: no row belongs to a fixation (FixationIndex is empty throughout): the recording found no eyes, "
            "or export with a fixation filter"
        )
    part = table.where(chosen)
    time_ms = part.numbers("Timestamp", decimal)
    x, y = (
        part.numbers("MappedFixationPointX", decimal, missing=True),
        part.numbers("MappedFixationPointY", decimal, missing=True),
    )
    duration = part.numbers("FixationDuration", decimal)
    names = part.text("StimuliName") if "StimuliName" in part else [options.image_id or path.stem] * len(part)
    numbers = part.text("FixationIndex")
    real = [name for name in dict.fromkeys(names) if name.strip().lower() not in ("no media", "screenrec")]
    starts = _stimulus_starts(table, decimal)
    scanpaths = []
    for name, rows in _groups(names):
        notes: list[str] = list(table.notes)
        if real and name not in real:
            continue  # between stimuli; said below
        media = None
        if "MediaWidth" in part:
            sizes = part.where(np.isin(np.arange(len(part)), rows))
            media = (
                float(np.nanmax(sizes.numbers("MediaWidth", decimal, missing=True))),
                float(np.nanmax(sizes.numbers("MediaHeight", decimal, missing=True))),
            )
        frame = media or screen
        size = _image_size(path, options, frame, notes, "the stimulus as shown" if media else "the screen")
        first = [int(rows[keep[0]]) for _, keep in _groups([numbers[k] for k in rows.tolist()])]
        keep = np.asarray(first)
        missing = ~(np.isfinite(x[keep]) & np.isfinite(y[keep]))
        if missing.any():
            notes.append(f"{int(missing.sum())} fixations without a position are left out")
            keep = keep[~missing]
        if not len(keep):
            continue
        fx, fy = x[keep], y[keep]
        if frame and not media:
            fx, fy = _from_screen(fx, fy, frame, size, options, notes)
        elif frame:
            fx, fy = fx * size[0] / frame[0], fy * size[1] / frame[1]
        start = starts.get(name, 0.0)
        notes.append("onsets count from the start of the " + ("stimulus" if name in starts else "recording"))
        if len(real) and len(set(names)) > len(real):
            notes.append("fixations while no stimulus was shown are left out")
        image_id = options.image_id if options.image_id and len(real) <= 1 else str(name)
        scanpath = Scanpath(
            image_id, None, *size, fx, fy, (time_ms[keep] - start) / 1000.0, duration[keep] / 1000.0, notes=notes
        )
        scanpaths.append(check_scanpath(scanpath, f"{path}: {name}", part.lines[keep]))
    return scanpaths


def _stimulus_starts(table: Table, decimal: str) -> dict[str, float]:
    """First timestamp (ms) of each stimulus; empty if the export names none."""
    if "StimuliName" not in table:
        return {}
    time_ms = table.numbers("Timestamp", decimal, missing=True)
    return {name: float(np.nanmin(time_ms[rows])) for name, rows in _groups(table.text("StimuliName")) if name.strip()}


def _read_tobii_pro(table: Table, path: Path, options: GazeOptions, screen) -> list[Scanpath]:
    """Tobii Pro Lab: `Eye movement type`, `Gaze event duration`, `Fixation point X`, `Recording timestamp`."""
    table.require("Recording timestamp", "Gaze event duration", "Fixation point X", "Fixation point Y")
    kinds = table.text("Eye movement type")
    part = table.where(np.array([kind.strip().lower() == "fixation" for kind in kinds]))
    if not len(part):
        raise InputError(f"{path}: no row has Eye movement type = Fixation; export with a fixation filter")
    decimal = "," if any("," in cell for cell in part.text("Fixation point X")[:1000]) else "."
    stamp = next(name for name in part.header if _plain(name).startswith("recordingtimestamp"))
    notes: list[str] = []
    unit = "us" if re.search(r"\[(μs|us|µs)\]", stamp) else "ms" if "[ms]" in stamp else None
    time = (
        part.numbers("Recording timestamp", decimal) if "Recording timestamp" in part else part.numbers(stamp, decimal)
    )
    duration = part.numbers("Gaze event duration", decimal)
    if unit is None:
        unit = "us" if len(time) > 1 and float(np.median(np.diff(np.unique(time)))) > 1000 else "ms"
        notes.append(f"Recording timestamp is taken to be in {'microseconds' if unit == 'us' else 'milliseconds'}")
    x, y = (
        part.numbers("Fixation point X", decimal, missing=True),
        part.numbers("Fixation point Y", decimal, missing=True),
    )
    key = "Eye movement type index" if "Eye movement type index" in part else "Gaze event duration"
    names = (
        part.text("Presented Stimulus name")
        if "Presented Stimulus name" in part
        else [options.image_id or path.stem] * len(part)
    )
    if "Recording resolution width" in part:
        screen = (
            part.numbers("Recording resolution width", decimal)[0],
            part.numbers("Recording resolution height", decimal)[0],
        )
    numbers = part.text(key)
    scanpaths = []
    for name, rows in _groups(names):
        if not str(name).strip():
            continue
        own = list(notes)
        keep = np.asarray([int(rows[first[0]]) for _, first in _groups([numbers[k] for k in rows.tolist()])])
        keep = keep[np.isfinite(x[keep]) & np.isfinite(y[keep])]
        if not len(keep):
            continue
        size = _image_size(path, options, screen, own, "the screen")
        fx, fy = _from_screen(x[keep], y[keep], screen or size, size, options, own)
        factor = 1e6 if unit == "us" else 1e3
        onset = (time[keep] - time[rows].min()) / factor
        scanpath = Scanpath(str(name), None, *size, fx, fy, onset, duration[keep] / 1000.0, notes=own)
        scanpaths.append(check_scanpath(scanpath, f"{path}: {name}", part.lines[keep]))
    return scanpaths


def _read_tobii_sdk(table: Table, path: Path, options: GazeOptions) -> list[Scanpath]:
    """Raw samples of the Tobii Pro SDK: points on the display area in [0, 1], the mean of the valid eyes."""
    table.require(
        "right_gaze_point_on_display_area", "system_time_stamp", "left_gaze_point_validity", "right_gaze_point_validity"
    )
    notes = ["raw samples of both eyes, averaged where both are valid", *table.notes]
    sides = []
    for side in ("left", "right"):
        valid = table.numbers(f"{side}_gaze_point_validity", missing=True) == 1
        points = np.full((len(table), 2), np.nan)
        for k, cell in enumerate(table.text(f"{side}_gaze_point_on_display_area")):
            numbers = re.findall(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|nan", cell)
            if len(numbers) != 2:
                raise InputError(
                    f"{path}: row {table.lines[k]}, column {side}_gaze_point_on_display_area: {cell!r} is no pair of "
                    "numbers"
                )
            if valid[k]:
                points[k] = float(numbers[0]), float(numbers[1])
        sides.append(points)
    both = np.stack(sides)
    count = np.isfinite(both).sum(axis=0)
    mean = np.where(count > 0, np.nansum(both, axis=0) / np.maximum(count, 1), np.nan)
    size = _image_size(path, options, None, notes, "")
    placement = options.placement
    if placement and max(placement) > 1:
        raise InputError(
            f"{path}: this recording is in fractions of the screen, so --placement must be too (x0, y0, x1, y1 in [0, "
            "1])"
        )
    x0, y0, x1, y1 = placement or (0.0, 0.0, 1.0, 1.0)
    x, y = (mean[:, 0] - x0) / (x1 - x0) * size[0], (mean[:, 1] - y0) / (y1 - y0) * size[1]
    time_s = table.numbers("system_time_stamp") / 1e6
    x, y, onset, duration = _detect(x, y, time_s - time_s[0], size, options, notes, str(path), table.lines)
    image_id = options.image_id or path.name.split(".")[0]
    return [check_scanpath(Scanpath(image_id, None, *size, x, y, onset, duration, notes=notes), str(path))]


PUPIL_CONFIDENCE = 0.6


def read_pupil(text: str, path: Path, options: GazeOptions) -> list[Scanpath]:
    """Pupil-style CSV: `norm_pos_x, norm_pos_y` in [0, 1] with the origin at the *bottom* left, fixations or raw gaze.

    Durations are milliseconds and timestamps seconds, as Pupil Player writes them. Rows of confidence below 0.6 are
    left out. Rows that repeat a fixation (the same id and start: one per video frame) count once. Participants and
    stimuli make scanpaths of their own.
    """
    table = read_table(text, path, lambda names: {"normposx", "normposy"} <= names)
    x, y = table.numbers("norm_pos_x", missing=True), 1.0 - table.numbers("norm_pos_y", missing=True)
    fixations = "start_timestamp" in table and "duration" in table
    if not fixations and "gaze_timestamp" not in table:
        table.require("gaze_timestamp")
    time_s = table.numbers("start_timestamp" if fixations else "gaze_timestamp")
    duration = table.numbers("duration") if fixations else None
    weak = table.numbers("confidence") < PUPIL_CONFIDENCE if "confidence" in table else np.zeros(len(table), dtype=bool)
    keys = []
    stimulus = options.columns.get("image") or next(
        (name for name in ("stimulus", "surface", "media", "tekst") if name in table), None
    )
    reader = options.columns.get("reader") or next(
        (name for name in ("Participant", "recording_id", "subject") if name in table), None
    )
    readers = table.text(reader) if reader else [None] * len(table)
    images = table.text(stimulus) if stimulus else [options.image_id or path.name.split(".")[0]] * len(table)
    keys = list(zip(readers, images, strict=True))
    size = (float(options.width), float(options.height)) if options.width and options.height else None
    if size is None:
        raise InputError(
            f"{path}: coordinates are fractions of the picture; give --width and --height of the image in pixels"
        )
    scanpaths, elsewhere = [], []
    for (who, image), rows in _groups(keys):
        notes = ["the origin is at the bottom left, as Pupil writes it: y is turned over"]
        keep = rows[~weak[rows]]
        if len(keep) < len(rows):
            notes.append(f"{len(rows) - len(keep)} rows of confidence below {PUPIL_CONFIDENCE} are left out")
        missing = ~(np.isfinite(x[keep]) & np.isfinite(y[keep]))
        if fixations:
            if missing.any():
                row = table.lines[keep[np.argmax(missing)]]
                raise InputError(f"{path}: row {row}, column norm_pos_x: nothing where a number must be")
            if "id" in table:
                ids = table.text("id")
                once = [int(keep[group[0]]) for _, group in _groups([(ids[k], time_s[k]) for k in keep.tolist()])]
                if len(once) < len(keep):
                    notes.append(f"{len(keep) - len(once)} rows repeat a fixation (one per video frame) and count once")
                keep = np.asarray(once, dtype=int)
            if not len(keep):
                continue
            onset = time_s[keep] - time_s[keep].min()
            values = x[keep] * size[0], y[keep] * size[1], onset, duration[keep] / 1000.0
            lines = table.lines[keep]
        else:
            keep, px, py = _one_per_time(keep, x, y, time_s, notes)
            if len(keep) < 2:
                continue
            values = _detect(
                px * size[0],
                py * size[1],
                time_s[keep] - time_s[keep[0]],
                size,
                options,
                notes,
                str(path),
                table.lines[keep],
            )
            lines = None
            if not len(values[0]):
                continue
        values_x, values_y = values[0], values[1]
        on_image = (values_x >= 0) & (values_x <= size[0]) & (values_y >= 0) & (values_y <= size[1])
        if not on_image.any():
            elsewhere.append(f"{who}, {image}")
            continue
        scanpaths.append(
            check_scanpath(Scanpath(str(image), who, *size, *values, notes=notes), f"{path}: {who}, {image}", lines)
        )
    if not scanpaths:
        raise InputError(f"{path}: no fixation of sufficient confidence lies on the picture")
    if elsewhere:
        scanpaths[0].notes.append(f"without any fixation on the picture, left out: {'; '.join(elsewhere)}")
    return scanpaths


def _one_per_time(rows: np.ndarray, x, y, time_s, notes: list[str]):
    """Samples with one time stamp, as the two eyes' cameras give, become their mean."""
    first = np.concatenate([[True], np.diff(time_s[rows]) != 0])
    if first.all():
        return rows, x[rows], y[rows]
    owner = np.cumsum(first) - 1
    count = np.bincount(owner)
    notes.append(
        f"{int((~first).sum())} samples share the time stamp of the one before (two eyes) and are averaged with it"
    )
    return rows[first], np.bincount(owner, x[rows]) / count, np.bincount(owner, y[rows]) / count


ALIASES = {
    "x": (
        "x",
        "x_px",
        "x_pix",
        "pixel_x",
        "x_pixel",
        "gaze_x",
        "x_position",
        "fix_x",
        "current_fix_x",
        "x_left_pix",
        "x_pix_eyelink",
        "l_por_x_px",
    ),
    "y": (
        "y",
        "y_px",
        "y_pix",
        "pixel_y",
        "y_pixel",
        "gaze_y",
        "y_position",
        "fix_y",
        "current_fix_y",
        "y_left_pix",
        "y_pix_eyelink",
        "l_por_y_px",
    ),
    "duration": (
        "duration",
        "duration_s",
        "duration_ms",
        "dur",
        "fixation_duration",
        "fix_duration",
        "current_fix_duration",
    ),
    "onset": (
        "onset",
        "onset_s",
        "onset_ms",
        "start",
        "start_s",
        "start_ms",
        "start_time",
        "fix_start",
        "current_fix_start",
    ),
    "time": (
        "time",
        "time_s",
        "time_ms",
        "time_us",
        "timestamp",
        "timestamp_s",
        "timestamp_ms",
        "t",
        "eyelink_timestamp",
    ),
    "image": ("image", "image_id", "dicom_id", "stimulus", "trial_index", "trialid", "trial_id", "screen_id"),
    "reader": ("reader", "reader_id", "subject", "participant", "recording_session_label"),
}


def read_csv(text: str, path: Path, options: GazeOptions) -> list[Scanpath]:
    """A plain CSV or TSV, columns as declared, else by their usual names: fixations with durations, or timed samples.

    Coordinates are [0, 1] if all of them are, else pixels of the original image; the decision is noted.
    """
    declared = dict(options.columns)
    unknown = set(declared) - set(ALIASES)
    if unknown:
        raise InputError(f"--columns {sorted(unknown)[0]}: the names are {', '.join(ALIASES)}")
    first = text.lstrip("\ufeff").split("\n", 1)[0]
    if declared and all(str(value).isdigit() for value in declared.values()):
        count = len(first.split(_delimiter(first)))
        table = read_table(text, path, header=[str(k) for k in range(count)])
    else:
        cells = [cell.strip() for cell in first.split(_delimiter(first))]
        if not declared and cells and all(re.fullmatch(r"-?[\d.]+(?:[eE][-+]?\d+)?", cell) for cell in cells):
            raise InputError(
                f"{path}: row 1 holds numbers and no names; declare columns by number, such as --columns "
                "x=0,y=1,duration=2"
            )
        wanted = {_plain(str(value)) for value in declared.values()}
        comment = first.startswith("#")
        table = read_table(
            text, path, (lambda names: wanted <= names and len(names) > 1) if wanted or comment else None
        )
    kind = next((name for name in ("label", "event", "type", "eye_movement_type") if name in table), None)
    kept_notes = []
    if kind:
        fixation = np.array([cell.strip().lower() in ("fixation", "fix", "efix") for cell in table.text(kind)])
        if fixation.any() and not fixation.all():
            kept_notes.append(f"{int((~fixation).sum())} rows whose {kind} is no fixation are left out")
            table, table_notes = table.where(fixation), table.notes
            table.notes = table_notes
    columns = {}
    for name, aliases in ALIASES.items():
        if name in declared:
            if str(declared[name]) not in table:
                raise InputError(
                    f"{path}: column {declared[name]!r} (declared as {name}) is missing; there are "
                    f"{', '.join(table.header)}"
                )
            columns[name] = str(declared[name])
        else:
            found = next((alias for alias in aliases if alias in table), None)
            if found and not (declared and name in ("image", "reader")):
                columns[name] = found
    notes: list[str] = [*table.notes, *kept_notes]
    pair = next((p for p in (("x_left", "x_right"), ("x_left_pix", "x_right_pix")) if p[0] in table), None)
    if pair is None and not {"x", "y"} <= set(columns):
        raise InputError(
            f"{path}: no columns of gaze are recognised among {', '.join(table.header)}; declare them, such as "
            "--columns x=PX,y=PY,duration=MS"
        )
    raw = "duration" not in columns
    if raw and "time" not in columns and "onset" not in columns:
        raise InputError(
            f"{path}: there are positions but neither a duration nor a time; declare one, such as --columns "
            f"duration=NAME; there are {', '.join(table.header)}"
        )
    if "x" not in declared and pair and pair[1] in table:
        eyes = [
            (table.numbers(pair[k], missing=raw), table.numbers(pair[k].replace("x_", "y_", 1), missing=raw))
            for k in (0, 1)
        ]
        x, y = (eyes[0][0] + eyes[1][0]) / 2, (eyes[0][1] + eyes[1][1]) / 2
        notes.append("the mean of both eyes")
    elif "x" not in columns:
        x, y = table.numbers(pair[0], missing=raw), table.numbers(pair[0].replace("x_", "y_", 1), missing=raw)
    else:
        x, y = table.numbers(columns["x"], missing=raw), table.numbers(columns["y"], missing=raw)
    finite = np.isfinite(x) & np.isfinite(y)
    if not finite.any():
        raise InputError(f"{path}: column {columns.get('x', 'x')}: no row has a position")
    norm = options.units == "norm" or (
        options.units is None and bool((np.abs(x[finite]) <= 1.0).all() and (np.abs(y[finite]) <= 1.0).all())
    )
    if options.units not in (None, "px", "norm", "screen"):
        raise InputError(f"--units {options.units!r}: there are px, norm and screen")
    if options.units is None:
        small = finite & (np.abs(x) <= 1) & (np.abs(y) <= 1) & ((x % 1 != 0) | (y % 1 != 0))
        if not norm and small.sum() > 0.2 * finite.sum():
            k = int(np.argmax(finite & ~((np.abs(x) <= 1.5) & (np.abs(y) <= 1.5))))
            raise InputError(
                f"{path}: row {table.lines[k]}, columns x and y: {x[k]:g}, {y[k]:g} beside positions within [0, 1]: "
                "fractions and pixels are "
                "mixed; give --units if they are not"
            )
        notes.append(f"positions are taken to be {'in [0, 1] of the image' if norm else 'pixels of the image'}")
    size = _image_size(path, options, None, notes, "")
    if norm:
        x, y = x * size[0], y * size[1]
    elif options.units == "screen":
        if not options.placement:
            raise InputError(
                f"{path}: --units screen needs --placement x0,y0,x1,y1, where the image stood on the screen"
            )
        x, y = _from_screen(x, y, size, size, options, notes)
    images = (
        table.text(columns["image"])
        if "image" in columns
        else [options.image_id or path.name.split(".")[0]] * len(table)
    )
    readers = table.text(columns["reader"]) if "reader" in columns else [None] * len(table)
    start_name = columns.get("onset") or columns.get("time")
    if start_name:
        unit = options.time_unit
        values = table.numbers(start_name)
        if unit is None and raw:
            unit = _clock_unit(values, start_name, notes)
        elif unit is None and not re.search(r"_(s|ms|us)$", start_name.lower()):
            unit = _onset_unit(values, table.numbers(columns["duration"]), images, readers, start_name, notes)
        start_s = _seconds(values, unit, start_name, notes, str(path), table.lines, durations=False)
        if np.abs(start_s).min() > 1e5:  # a clock of the day or the epoch
            notes.append(f"onsets count from {start_name} = {values[0]:.15g}")
            start_s = (values - values[0]) / (values / start_s)[0]
    else:
        start_s = None
    durations = (
        None
        if raw
        else _seconds(
            table.numbers(columns["duration"]), options.time_unit, columns["duration"], notes, str(path), table.lines
        )
    )
    scanpaths = []
    for (image, who), rows in _groups(list(zip(images, readers, strict=True))):
        own = list(notes)
        if raw:
            if len(rows) < 2:
                continue
            values = _detect(x[rows], y[rows], start_s[rows], size, options, own, str(path), table.lines[rows])
            lines = None
        elif start_s is None:
            own.append("no onsets: fixations are taken to follow one another without gaps")
            onset = np.concatenate([[0.0], np.cumsum(durations[rows])[:-1]])
            values, lines = (x[rows], y[rows], onset, durations[rows]), table.lines[rows]
        else:
            values, lines = (x[rows], y[rows], start_s[rows], durations[rows]), table.lines[rows]
        if raw and not len(values[0]):
            raise InputError(
                f"{path}: {image}: no fixation in {len(rows)} samples ({own[-1]}); the recording is too short or the "
                "thresholds do not fit"
            )
        scanpaths.append(check_scanpath(Scanpath(str(image), who, *size, *values, notes=own), str(path), lines))
    return scanpaths


def _onset_unit(
    values: np.ndarray, durations: np.ndarray, images: list, readers: list, name: str, notes: list[str]
) -> str:
    """Unit of an onset column: the finest in which fixations do not follow one another faster than they last."""
    factor = 1e-3 if float(np.median(durations)) > SECONDS_LIMIT else 1.0
    owner = np.array([hash(key) for key in zip(images, readers, strict=True)])
    steps = np.diff(values)[owner[1:] == owner[:-1]]
    step, length = (float(np.median(steps)) if len(steps) else 0.0), float(np.median(durations)) * factor
    unit = next(
        (u for u, per_second in (("s", 1.0), ("ms", 1e3), ("us", 1e6)) if step / per_second <= 20 * length), "us"
    )
    notes.append(f"{name} is taken to be in {unit} (median step {step:.4g}, median duration {length:.4g} s)")
    return unit


def _clock_unit(values: np.ndarray, name: str, notes: list[str]) -> str:
    """Unit of a sampling clock, from its name or its step: trackers run at 30 to 2,000 Hz."""
    suffix = re.search(r"_(s|ms|us)$", name.lower())
    if suffix:
        return suffix.group(1)
    step = float(np.median(np.abs(np.diff(values)))) if len(values) > 1 else 1.0
    unit = "s" if step < 0.2 else "ms" if step < 200 else "us"
    notes.append(f"{name} is taken to be in {unit} (median step {step:.4g})")
    return unit


READERS = {
    "canonical": read_canonical,
    "egd": read_egd,
    "reflacx": read_reflacx,
    "gazesearch": read_gazesearch,
    "eyelink": read_eyelink,
    "tobii": read_tobii,
    "pupil": read_pupil,
    "csv": read_csv,
}

__all__ = ["FORMATS", "GazeOptions", "read_gaze", "recognise"]
