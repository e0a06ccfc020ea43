"""The phantom simulator as a source: `gaze2report prepare phantom`."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from ..errors import DataError
from .phantom import VERSION, generate_readings
from .phantom_gaze import NUM_READERS
from .writing import Source

ENCODINGS = ("jpeg", "png", "png16")


class PhantomSource(Source):
    """Phantom films 0 ... num_films - 1.

    Args:
        num_films: how many.
        image_size: height and width in pixels.
        seed: of the data set.
        readers: readings per film, each a record.
        encoding: `"jpeg"` (quality 95, as real films are mostly distributed), `"png"` or `"png16"` (the 12-bit
            levels, times 16).
    """

    def __init__(
        self, num_films: int = 1000, image_size: int = 256, seed: int = 0, readers: int = 1, encoding: str = "jpeg"
    ):
        for name, value, low, high in (
            ("--num-films", num_films, 1, 10**7),
            ("--image-size", image_size, 32, 4096),
            ("--readers", readers, 1, NUM_READERS),
            ("--seed", seed, 0, 2**32 - 1),
        ):
            if not low <= value <= high:
                raise DataError(f"phantom: {name} must be {low} to {high}, not {value}")
        if encoding not in ENCODINGS:
            raise DataError(f"phantom: --encoding must be one of {', '.join(ENCODINGS)}, not {encoding!r}")
        settings = {
            "generator_version": VERSION,
            "num_films": num_films,
            "image_size": image_size,
            "seed": seed,
            "readers": readers,
            "encoding": encoding,
        }
        super().__init__("phantom", "generated; no terms", settings)

    def items(self) -> list[int]:
        return list(range(self.settings["num_films"]))

    def records(self, item: int) -> Iterator[dict]:
        s = self.settings
        depth = 12 if s["encoding"] == "png16" else 8
        readings = generate_readings(s["seed"], item, s["readers"], s["image_size"], depth)
        image = {"bytes": encode(readings[0]["image"], s["encoding"]), "path": None}
        for record in readings:
            yield {**record, "image": image}


def encode(film: np.ndarray, encoding: str) -> bytes:
    """A film (H, W), uint8 or 12-bit uint16, as the bytes of a file."""
    buffer = io.BytesIO()
    if encoding == "jpeg":
        Image.fromarray(film).save(buffer, "JPEG", quality=95)
    elif encoding == "png":
        Image.fromarray(film).save(buffer, "PNG", compress_level=6)
    else:
        Image.fromarray(film.astype(np.uint16) * 16).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


__all__ = ["PhantomSource", "encode"]
