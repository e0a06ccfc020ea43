"""What visitors may send, and what becomes of it: limits, checks, and the forgetting of their files.

A visitor's file is read only from the upload folder, under the name it was uploaded with, and is never fetched from an
address. Nothing that a visitor wrote reaches a log, and everything that is shown again is text, never HTML.
"""

import functools
import html
import inspect
import logging
import math
import os
import re
import shutil
import sys
import threading
import traceback
from pathlib import Path

import numpy as np

try:
    from modeling_gaze2report.processing.datasets.gaze_formats import GazeOptions, read_gaze
except ModuleNotFoundError:  # on the Hub the readers stand beside this file
    from processing.datasets.gaze_formats import GazeOptions, read_gaze

MAX_FILE = "40mb"
MAX_PIXELS = 36_000_000
MAX_GAZE_BYTES = 4_000_000
MAX_GAZE_LINES = 500
MAX_WORDS = 2_000
MAX_FIXATION_S = 60.0
MAX_QUEUE = 40
# Seconds after which a visitor's file is deleted when the visit did not end before, and how often that is looked at.
FILE_AGE_S = 600
LOOK_EVERY_S = 60
OUR_FAULT = "Something went wrong on our side. Nothing of yours was kept."


class Refused(ValueError):
    """Something of a visitor that cannot be used; the message is for the visitor."""


def upload_folder() -> Path:
    """Where Gradio puts uploads: `GRADIO_TEMP_DIR`."""
    return Path(os.environ["GRADIO_TEMP_DIR"]).resolve()


def uploaded_file(value) -> Path:
    """The uploaded file that a request names.

    Args:
        value: path, or the dictionary that Gradio's clients send.

    Raises:
        Refused: nothing was uploaded, or the path is not one of an upload.
    """
    if isinstance(value, dict):
        value = value.get("path")
    if not value:
        raise Refused("There is no film yet: upload one or pick an example.")
    if not isinstance(value, str) or "\0" in value or len(value) > 4096:
        raise Refused("The file was not uploaded.")
    path = Path(value)
    if not path.resolve().is_relative_to(upload_folder()) or not path.is_file():
        raise Refused("The file is not here any more: upload it again. (Addresses and paths are not taken.)")
    return path


def film_of(value, load_film):
    """The uploaded film, within the Space's limits.

    Args:
        value: as for [`uploaded_file`].
        load_film: the model's own reader of films.

    Raises:
        Refused: no such upload. The reader's own errors name what is wrong with a film.
    """
    path = uploaded_file(value)
    check_compressed(path)
    return load_film(str(path), name=path.name, max_pixels=MAX_PIXELS)


def check_compressed(path: Path) -> None:
    """Refuse a DICOM file that would unpack to far more than its header says; readers look at the header alone.

    Raises:
        Refused: the file is deflated as a whole, or its JPEG picture is larger than a film may be.
    """
    data = path.read_bytes()
    if data[128:132] != b"DICM":
        return
    syntax = re.search(rb"\x02\x00\x10\x00UI..([\d.]+)", data[:4096], re.DOTALL)
    name = syntax.group(1).decode() if syntax else ""
    if name == "1.2.840.10008.1.2.1.99":
        raise Refused(f"{path.name} is deflated as a whole: save it uncompressed or with JPEG compression.")
    if name.startswith("1.2.840.10008.1.2.4"):
        for start in COMPRESSED_SIZE.finditer(data):
            width, height = picture_size(data, start)
            if width * height > MAX_PIXELS:
                raise Refused(f"{path.name}: its picture is {width} x {height} pixels: at most {MAX_PIXELS}.")


# Where JPEG (start of frame) and JPEG 2000 (SIZ) say how large the picture is; neither comes up inside their data.
COMPRESSED_SIZE = re.compile(rb"\xff\x4f\xff\x51|\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf\xf7]\x00[\x0b-\x17]")


def picture_size(data: bytes, start: re.Match) -> tuple[int, int]:
    """Width and height that a compressed picture announces."""
    if start.group().startswith(b"\xff\x4f"):
        numbers = data[start.end() + 4 : start.end() + 12]
        return int.from_bytes(numbers[:4], "big"), int.from_bytes(numbers[4:], "big")
    numbers = data[start.end() + 1 : start.end() + 5]
    return int.from_bytes(numbers[2:], "big"), int.from_bytes(numbers[:2], "big")


def gaze_of(points: str | None, file, film) -> np.ndarray | None:
    """A visitor's gaze, (N, 3) x, y in [0, 1] and seconds; from a tracker's file where there is one, else from text.

    Args:
        points: a fixation a line: x, y and, if known, seconds.
        file: uploaded export of an eye tracker.
        film: the film that was looked at.

    Raises:
        Refused: the text or the file cannot be read; the message names the line.
    """
    if file:
        return gaze_from_file(uploaded_file(file), film)
    return gaze_from_text(points or "")


def gaze_from_text(points: str) -> np.ndarray | None:
    lines = [line for line in points.splitlines() if line.strip()]
    if not lines:
        return None
    if len(lines) > MAX_GAZE_LINES:
        raise Refused(f"{len(lines)} fixations are too many: at most {MAX_GAZE_LINES}.")
    fixations = []
    for number, line in enumerate(lines, 1):
        words = [word for word in re.split(r"[\s,;]+", line.strip()) if word]
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if len(values) == 2:
            values.append(0.3)
        if len(values) != 3 or not all(math.isfinite(value) for value in values):
            raise Refused(f"Line {number} of your gaze must be: x, y, seconds, such as 0.42, 0.35, 0.3")
        x, y, seconds = values
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise Refused(f"Line {number} of your gaze: x and y lie between 0 and 1, from the top left corner.")
        if not 0 < seconds <= MAX_FIXATION_S:
            raise Refused(f"Line {number} of your gaze: seconds lie between 0 and {MAX_FIXATION_S:g}.")
        fixations.append(values)
    return np.array(fixations)


def gaze_from_file(path: Path, film) -> np.ndarray:
    if path.stat().st_size > MAX_GAZE_BYTES:
        raise Refused(f"The recording has more than {MAX_GAZE_BYTES // 1_000_000} MB: export the fixations only.")
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise Refused("The recording is compressed: upload it unpacked.")
    try:
        options = GazeOptions(width=film.width, height=film.height, image_id=film.name)
        recordings = read_gaze(path, "auto", options)
        fitting = [one for one in recordings if one.image_id in (film.name, Path(film.name).stem)]
        return (fitting or recordings)[0].gaze().clip([0, 0, 0], [1, 1, MAX_FIXATION_S])
    except ValueError as error:
        raise Refused(str(error).replace(str(path), path.name)) from error
    except Exception as error:  # whatever a broken table leads the readers to
        raise Refused(f"{path.name} cannot be read as a recording of gaze.") from error


def words_of(text, what: str) -> str:
    """A visitor's question or phrase.

    Raises:
        Refused: it is empty or endless.
    """
    if not isinstance(text, str) or not text.strip():
        raise Refused(f"The {what} is empty: write at least a word.")
    if len(text) > MAX_WORDS:
        raise Refused(f"The {what} has {len(text)} characters: at most {MAX_WORDS}.")
    return text.strip()


def choice_of(value, choices, what: str) -> str:
    """One of the choices.

    Raises:
        Refused: it is none of them.
    """
    if value not in choices:
        raise Refused(f"There is no such {what}; choose one of {', '.join(choices)}.")
    return value


def number_of(value, low: float, high: float, what: str) -> float:
    """A number within its limits.

    Raises:
        Refused: it is none, or outside.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise Refused(f"The {what} must be a number from {low:g} to {high:g}.")
    return value


# -- errors -----------------------------------------------------------------------------------------------------------


def is_for_the_visitor(error: BaseException) -> bool:
    """Whether the message was written for the one who sent the input: ours, or a `Gaze2ReportError`."""
    return isinstance(error, Refused) or any(kind.__name__ == "Gaze2ReportError" for kind in type(error).__mro__)


def print_fault(error: BaseException | None) -> None:
    """The kind of an error and the line of code, for the log: its message could quote a visitor."""
    frames = traceback.extract_tb(error.__traceback__) if error else []
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    print(f"fault: {type(error).__name__} at {place}", file=sys.stderr, flush=True)


def quote_nobody_in_the_log() -> None:
    """Gradio and its server print whole tracebacks, with what a visitor sent; from now on only their kind."""
    traceback.print_exc = lambda *_, **__: print_fault(sys.exc_info()[1])
    logging.disable(logging.ERROR)


def for_visitors(function, show):
    """The function, with every error turned into one that a visitor may see, and none that says more.

    Args:
        function: plain or generator function.
        show: makes the exception of a message, such as `gr.Error`. Toasts are HTML, so that the text is escaped.
    """

    def translated(error: Exception) -> Exception:
        if is_for_the_visitor(error):
            return show(html.escape(str(error).replace(str(upload_folder()) + os.sep, ""))[:600])
        print_fault(error)
        return show(OUR_FAULT)

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            try:
                yield from function(*args, **kwargs)
            except Exception as error:
                raise translated(error) from None
    else:

        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except Exception as error:
                raise translated(error) from None

    return wrapped


# -- forgetting -------------------------------------------------------------------------------------------------------


class Visits:
    """The uploads of each visit, so that they go when it ends."""

    def __init__(self):
        self.lock = threading.Lock()
        self.files: dict[str, set[Path]] = {}

    def note(self, visit: str | None, *values) -> None:
        """Remember that files belong to a visit."""
        paths = set()
        for value in values:
            try:
                paths.add(uploaded_file(value))
            except Refused:
                continue
        if visit and paths:
            with self.lock:
                self.files.setdefault(visit, set()).update(paths)

    def forget(self, visit: str | None) -> None:
        """Delete a visit's files, but for those that another visit uploaded as well: equal files have one place."""
        with self.lock:
            mine = self.files.pop(visit, set())
            others = set().union(*self.files.values()) if self.files else set()
        for path in mine - others:
            shutil.rmtree(path.parent, ignore_errors=True)
