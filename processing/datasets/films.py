"""Films for the record: the file's own bytes where they can be kept, PNG or JPEG where they cannot."""

import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..errors import DataError, InputError
from ..image_processing_gaze2report import load_film

SUFFIXES = (".jpg", ".jpeg", ".png", ".dcm", ".tif", ".tiff", ".bmp", ".webp")


def film_size(path: Path) -> tuple[int, int]:
    """Width and height of the upright film in pixels, without reading its pixels where that is possible.

    Raises:
        DataError: the file is missing or no image.
    """
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else image.size
    except FileNotFoundError as error:
        raise DataError(f"{path}: the image is missing") from error
    except (UnidentifiedImageError, OSError):
        film = _load(path)
        return film.width, film.height


def film_column(path: Path, max_side: int | None = None) -> tuple[dict, int, int]:
    """The `image` column of a film, and the original's width and height in pixels.

    8-bit JPEG and PNG files are taken byte for byte; others (DICOM, 16-bit, turned by their orientation tag) and
    films whose longer side exceeds `max_side` are rendered as they would be for the model, to PNG, or to JPEG of
    quality 95 where the size is limited.

    Raises:
        DataError: the file is missing or broken.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            plain = (
                image.format in ("JPEG", "PNG") and image.mode in ("L", "RGB") and image.getexif().get(0x0112, 1) == 1
            )
            if plain and (max_side is None or max(width, height) <= max_side):
                image.draft("L", (width // 8, height // 8))
                image.load()  # a truncated file is found out here, not in the middle of a training run
                return {"bytes": data, "path": None}, width, height
    except FileNotFoundError as error:
        raise DataError(f"{path}: the image is missing") from error
    except UnidentifiedImageError:
        pass
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: the image is broken: {error}") from error
    film = _load(path)
    image = Image.fromarray(film.pixels)
    buffer = io.BytesIO()
    if max_side is not None and max(image.size) > max_side:
        scale = max_side / max(image.size)
        image = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
        )
        image.save(buffer, "JPEG", quality=95)
    else:
        image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}, film.width, film.height


def _load(path: Path):
    try:
        return load_film(path)
    except InputError as error:
        raise DataError(str(error)) from error


__all__ = ["SUFFIXES", "film_column", "film_size"]
