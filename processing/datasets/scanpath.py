"""A recorded scanpath, its canonical JSONL line, and fixations out of raw samples.

Everything here needs the standard library and NumPy only. In memory, positions are pixels of the original image and
times are seconds; the canonical line holds milliseconds, converted in decimal arithmetic so that writing and reading
back changes no bit.
"""

import json
import math
import os
from dataclasses import dataclass, field
from decimal import Decimal

import numpy as np

from ..errors import InputError

# A chest film read at a workstation spans about 27 degrees of visual angle; used where a recording does not say.
DEGREES_PER_WIDTH = 27.0
MIN_FIXATION_S = 0.1
DISPERSION_DEGREES = 1.0
VELOCITY_DEGREES_PER_S = 30.0
LONGEST_FIXATION_S = 60.0


@dataclass
class Scanpath:
    """Fixations of one reader on one image, in temporal order.

    Attributes:
        image_id: of the image.
        reader_id: of the reader, or None.
        width, height: of the original image in pixels.
        x, y: pixels of the original image, origin at the top left, (N,).
        onset_s: start of each fixation, (N,); against the audio or the start of the viewing, so it may be negative.
        duration_s: (N,), positive.
        pixels_per_degree: mean over both axes for each fixation, (N,), or None.
        extra: what else the format said: task, split, phase.
        notes: what was assumed and what was left out, in sentences.
    """

    image_id: str
    reader_id: str | None
    width: float
    height: float
    x: np.ndarray
    y: np.ndarray
    onset_s: np.ndarray
    duration_s: np.ndarray
    pixels_per_degree: np.ndarray | None = None
    extra: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.x)

    def fixations(self) -> list[dict[str, float]]:
        """The fixations as the record holds them: x and y in [0, 1] of the image, times in seconds."""
        x, y = self.x / self.width, self.y / self.height
        return [
            {"x": float(a), "y": float(b), "onset_s": float(c), "duration_s": float(d)}
            for a, b, c, d in zip(x, y, self.onset_s, self.duration_s, strict=True)
        ]

    def gaze(self) -> np.ndarray:
        """(N, 3): x and y in [0, 1] of the image and duration in seconds, as the processor takes it."""
        return np.stack([self.x / self.width, self.y / self.height, self.duration_s], axis=1)


def check_scanpath(scanpath: Scanpath, where: str, rows: np.ndarray | None = None) -> Scanpath:
    """The scanpath, with fixations off the image taken out and noted.

    Args:
        scanpath: as a reader made it.
        where: the file, for messages.
        rows: line number of each fixation in the file.

    Raises:
        InputError: values that are not finite, durations that are not positive, onsets that go back, or no fixation
            on the image.
    """
    rows = np.arange(1, len(scanpath) + 1) if rows is None else np.asarray(rows)
    size = scanpath.width, scanpath.height
    if any(value is None or not math.isfinite(value) or value <= 0 for value in size):
        raise InputError(f"{where}: the image's size in pixels is unknown; give --width and --height")
    for name, values in (
        ("x", scanpath.x),
        ("y", scanpath.y),
        ("duration", scanpath.duration_s),
        ("onset", scanpath.onset_s),
    ):
        bad = ~np.isfinite(values)
        if bad.any():
            row = int(rows[np.argmax(bad)])
            raise InputError(f"{where}: row {row}, {name}: {values[np.argmax(bad)]} is no finite number")
    bad = scanpath.duration_s <= 0
    if bad.any():
        k = int(np.argmax(bad))
        raise InputError(
            f"{where}: row {rows[k]}, duration: {scanpath.duration_s[k]:g} s; a fixation lasts longer than 0"
        )
    bad = scanpath.duration_s > LONGEST_FIXATION_S
    if bad.any():
        k = int(np.argmax(bad))
        raise InputError(
            f"{where}: row {rows[k]}, duration: {scanpath.duration_s[k]:g} s; no fixation lasts that long: is the unit "
            "milliseconds? "
            "(--time-unit ms)"
        )
    back = np.diff(scanpath.onset_s) < 0
    if back.any():
        k = int(np.argmax(back)) + 1
        raise InputError(
            f"{where}: row {rows[k]}, onset: {scanpath.onset_s[k]:.6g} s comes after {scanpath.onset_s[k - 1]:.6g} s; "
            "fixations must be in temporal order"
        )
    same = np.diff(scanpath.onset_s) == 0
    if same.any():
        k = int(np.argmax(same)) + 1
        raise InputError(
            f"{where}: row {rows[k]}, onset: {scanpath.onset_s[k]:.6g} s is there twice; each fixation starts once"
        )
    inside = (scanpath.x >= 0) & (scanpath.x <= scanpath.width) & (scanpath.y >= 0) & (scanpath.y <= scanpath.height)
    if len(inside) and not inside.any():
        raise InputError(
            f"{where}: all {len(inside)} fixations of {scanpath.image_id} lie off the image of {scanpath.width:g} x "
            f"{scanpath.height:g} "
            f"pixels (row {rows[0]}: x {scanpath.x[0]:g}, y {scanpath.y[0]:g}); check --width, --height, --units and "
            "--placement"
        )
    if not inside.all():
        scanpath.notes.append(f"{int((~inside).sum())} of {len(inside)} fixations lie off the image and are left out")
        keep = inside
        scanpath.x, scanpath.y = scanpath.x[keep], scanpath.y[keep]
        scanpath.onset_s, scanpath.duration_s = scanpath.onset_s[keep], scanpath.duration_s[keep]
        if scanpath.pixels_per_degree is not None:
            scanpath.pixels_per_degree = scanpath.pixels_per_degree[keep]
    return scanpath


# --- canonical JSONL -------------------------------------------------------------------------------------------------


def _number(value: float, factor: int = 1) -> str:
    """Shortest decimal text of value * factor, exact."""
    text = format(Decimal(repr(float(value))) * factor, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def canonical_line(scanpath: Scanpath) -> str:
    """The scanpath as one JSON line: pixels and milliseconds."""
    columns = {
        "X": [_number(value) for value in scanpath.x],
        "Y": [_number(value) for value in scanpath.y],
        "T": [_number(value, 1000) for value in scanpath.duration_s],
        "onset": [_number(value, 1000) for value in scanpath.onset_s],
    }
    head = {"image_id": scanpath.image_id, "reader_id": scanpath.reader_id}
    text = json.dumps(head, ensure_ascii=False)[:-1]
    text += f', "width": {_number(scanpath.width)}, "height": {_number(scanpath.height)}'
    for name, values in columns.items():
        text += f', "{name}": [' + ", ".join(values) + "]"
    return text + "}"


def write_canonical(scanpaths: list[Scanpath], path: str | os.PathLike) -> None:
    """Writes canonical JSONL whole or not at all; raises as `write_text`."""
    from ..metrics.files import write_text  # the Space has this file for reading gaze, and no metrics

    write_text(path, "".join(canonical_line(scanpath) + "\n" for scanpath in scanpaths))


def parse_canonical(text: str, where: str) -> list[Scanpath]:
    """Scanpaths of canonical JSONL text.

    Raises:
        InputError: naming the file, the line and the key.
    """
    scanpaths = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line, parse_float=Decimal, parse_int=Decimal)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: line {number}: no JSON ({error.msg} at column {error.colno})") from error
        if not isinstance(entry, dict):
            raise InputError(
                f"{where}: line {number}: a scanpath is a JSON object with image_id, width, height, X, Y, T, onset"
            )
        for key in ("image_id", "width", "height", "X", "Y", "T"):
            if key not in entry:
                raise InputError(
                    f"{where}: line {number}: key {key!r} is missing; a scanpath has image_id, width, height, X, Y, T, "
                    "onset"
                )
        lengths = {key: len(entry[key]) for key in ("X", "Y", "T", "onset") if isinstance(entry.get(key), list)}
        if len(set(lengths.values())) != 1 or not {"X", "Y", "T"} <= set(lengths):
            raise InputError(f"{where}: line {number}: X, Y, T and onset must be lists of one length, not {lengths}")
        columns = {}
        for key in lengths:
            scale = 1000 if key in ("T", "onset") else 1
            try:
                columns[key] = np.array([float(Decimal(value) / scale) for value in entry[key]], dtype=float)
            except (TypeError, ArithmeticError, ValueError) as error:
                raise InputError(f"{where}: line {number}: key {key!r} holds something that is no number") from error
        notes = []
        if "onset" not in columns:
            columns["onset"] = np.concatenate([[0.0], np.cumsum(columns["T"])[:-1]]) if lengths["T"] else np.zeros(0)
            notes.append("no onsets: fixations are taken to follow one another without gaps")
        try:
            size = float(entry["width"]), float(entry["height"])
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: line {number}: width and height must be pixels of the image") from error
        reader = entry.get("reader_id")
        scanpath = Scanpath(
            str(entry["image_id"]),
            None if reader is None else str(reader),
            *size,
            columns["X"],
            columns["Y"],
            columns["onset"],
            columns["T"],
            notes=notes,
        )
        scanpaths.append(check_scanpath(scanpath, f"{where}: line {number}"))
    return scanpaths


# --- fixations out of raw samples -------------------------------------------------------------------------------------


def detect_fixations(
    x: np.ndarray,
    y: np.ndarray,
    time_s: np.ndarray,
    pixels_per_degree: float,
    method: str = "idt",
    dispersion: float = DISPERSION_DEGREES,
    velocity: float = VELOCITY_DEGREES_PER_S,
    min_duration_s: float = MIN_FIXATION_S,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fixations of raw samples by dispersion (I-DT) or velocity (I-VT).

    Salvucci and Goldberg 2000, doi 10.1145/355017.355028.

    Args:
        x, y: pixels, (N,); NaN where the eye was lost, which ends a fixation.
        time_s: seconds, strictly increasing, (N,).
        pixels_per_degree: of the picture as it was shown.
        method: `"idt"` or `"ivt"`.
        dispersion: degrees; I-DT keeps (max x - min x) + (max y - min y) at or below it.
        velocity: degrees per second; I-VT takes slower samples for fixations.
        min_duration_s: shorter fixations are given up.

    Returns:
        x, y, onset_s and duration_s of the fixations; positions are means of their samples.
    """
    if method not in ("idt", "ivt"):
        raise InputError(f"fixation detection {method!r}: there are idt (dispersion) and ivt (velocity)")
    valid = np.isfinite(x) & np.isfinite(y)
    step = float(np.median(np.diff(time_s))) if len(time_s) > 1 else 0.0
    edges = np.flatnonzero(np.diff(np.concatenate([[0], valid.astype(np.int8), [0]])))
    spans = []
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        finder = _idt_spans if method == "idt" else _ivt_spans
        limit = dispersion * pixels_per_degree if method == "idt" else velocity * pixels_per_degree
        for a, b in finder(x[start:stop], y[start:stop], time_s[start:stop], limit, min_duration_s - step):
            spans.append((start + a, start + b))
    out = np.empty((4, len(spans)))
    for k, (a, b) in enumerate(spans):
        out[:, k] = x[a:b].mean(), y[a:b].mean(), time_s[a], time_s[b - 1] - time_s[a] + step
    return out[0], out[1], out[2], out[3]


def _idt_spans(x, y, t, limit: float, shortest: float):
    """Half-open spans by dispersion; the window grows one sample at a time with running extremes."""
    xs, ys, ts = x.tolist(), y.tolist(), t.tolist()
    count, start = len(xs), 0
    spans = []
    while start < count:
        low_x = high_x = xs[start]
        low_y = high_y = ys[start]
        stop = start + 1
        while stop < count:
            px, py = xs[stop], ys[stop]
            new_low_x, new_high_x = (px if px < low_x else low_x), (px if px > high_x else high_x)
            new_low_y, new_high_y = (py if py < low_y else low_y), (py if py > high_y else high_y)
            if new_high_x - new_low_x + new_high_y - new_low_y > limit:
                break
            low_x, high_x, low_y, high_y = new_low_x, new_high_x, new_low_y, new_high_y
            stop += 1
        if ts[stop - 1] - ts[start] >= shortest - 1e-9 and stop - start > 1:
            spans.append((start, stop))
            start = stop
        else:
            start += 1
    return spans


def _ivt_spans(x, y, t, limit: float, shortest: float):
    """Half-open spans of samples slower than the limit."""
    if len(x) < 2:
        return []
    speed = np.hypot(np.diff(x), np.diff(y)) / np.maximum(np.diff(t), 1e-9)
    slow = np.concatenate([[speed[0] < limit], speed < limit])
    edges = np.flatnonzero(np.diff(np.concatenate([[0], slow.astype(np.int8), [0]])))
    pairs = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    return [(a, b) for a, b in pairs if b - a > 1 and t[b - 1] - t[a] >= shortest - 1e-9]


__all__ = ["Scanpath", "canonical_line", "check_scanpath", "detect_fixations", "parse_canonical", "write_canonical"]
