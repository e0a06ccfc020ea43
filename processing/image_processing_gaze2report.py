# Copyright 2026 The Gaze2Report authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Image processor: any file or array that holds a chest film becomes a letter-boxed, normalised square.

Whatever the source, a film is first brought to 8-bit display levels (0 black, 255 white, dense tissue bright), the form
in which radiologists see it and vision encoders are trained; only then is it resized. Reducing 16-bit data by Pillow's
`convert` instead would clip it to white. The steps of a DICOM file follow PS3.3 C.11: modality LUT, VOI LUT or window,
presentation (inversion).
"""

import base64
import binascii
import hashlib
import io
import os
import urllib.request
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
    make_flat_list_of_images,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import auto_docstring, logging

from .errors import InputError
from .gaze_geometry import LetterBox

logger = logging.get_logger(__name__)

# Percentiles of the pixel values that become black and white where nothing says how to display them.
WINDOW_PERCENTILES = (0.5, 99.5)
MAX_PIXELS = 100_000_000
MIN_SIDE = 16

# The decoders of these formats only parse bytes; others that Pillow offers start programs (EPS) or hold no films.
_PILLOW_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
_DICOM_SUFFIXES = (".dcm", ".dicom")
# Allow-list: nothing else of a DICOM header, and so nothing about the patient, is ever read.
_DICOM_ELEMENTS = [
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData", "FloatPixelData"),
    *("DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelPaddingValue"),
    *("PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "PresentationLUTShape", "LUTDescriptor", "LUTData"),
    *("BurnedInAnnotation", "Modality", "PresentationIntentType"),
]
# Modalities whose pictures may be projection radiographs: computed and digital radiography, film scans, captures.
_RADIOGRAPH_MODALITIES = ("CR", "DX", "RG", "DR", "OT", "SC", "XC", "")
# Mean difference between the channels, as a part of the range, above which a picture counts as coloured. Films saved as
# colour JPEG stay below 0.01, photographs are far above.
_COLOUR_TOLERANCE = 0.03
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, the weights of Pillow's "L"
_DICOM_EXTRA = 'pip install "gaze2report[dicom]"'


@dataclass(frozen=True, eq=False)
class Film:
    """A film as it is displayed.

    Attributes:
        pixels: uint8 (height, width) display levels, 0 black to 255 white.
        name: file name without folders, or what the caller called the image; for messages and records.
        sha256: hexadecimal SHA-256 of the file's bytes, `None` where the film did not come from a file.
        warnings: sentences about assumptions that had to be made, each one for the user to see.
    """

    pixels: np.ndarray
    name: str
    sha256: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def height(self) -> int:
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    @property
    def record(self) -> dict:
        """The film as records name it: name, width and height in pixels, sha256."""
        return {"name": self.name, "width": self.width, "height": self.height, "sha256": self.sha256}


def is_film(image) -> bool:
    """Whether an image is a `Film`, of this file or of another copy of it: transformers copies a model's own code once
    for each class that the model names.
    """
    return isinstance(image, Film) or type(image).__name__ == Film.__name__


def load_film(
    source,
    name: str | None = None,
    input_data_format: str | ChannelDimension | None = None,
    window_percentiles: tuple[float, float] = WINDOW_PERCENTILES,
    max_pixels: int = MAX_PIXELS,
    min_side: int = MIN_SIDE,
) -> Film:
    """Reads a film from a file or takes it from memory, and brings it to display levels.

    8-bit values are display levels already. Float arrays within [0, 1] are multiplied by 255. All other numbers (16-bit
    files, integers, other floats) and DICOM files without a usable window are windowed between two percentiles.
    Transparent pixels are black. Colour becomes luminance, with a warning where the picture is truly coloured. The
    orientation tag of a file is applied first: "original image" means the upright image everywhere.

    Args:
        source: path of a PNG, JPEG, TIFF, BMP, WebP or DICOM file, `http(s)` address, base64 string,
            `PIL.Image.Image`, NumPy array or tensor of shape (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, or
            a `Film`, which is returned as it is.
        name (`str`, *optional*): what messages call the image; default the path, or "the image".
        input_data_format (`str`, *optional*): `"channels_first"` or `"channels_last"`; default by the array's shape.
        window_percentiles (`tuple[float, float]`): percentiles of the pixel values that become black and white.
        max_pixels (`int`): larger images are refused before they are decoded.
        min_side (`int`): images with a shorter side in pixels are refused.

    Returns:
        [`Film`].

    Raises:
        InputError: the image cannot be read completely, is no film (several frames, colour DICOM), is blank, too small
            or too large, holds values that are not finite, or declares burnt-in text. The message names the image.
    """
    if is_film(source):
        return source
    limits = {"max_pixels": max_pixels, "min_side": min_side}
    sha256 = None
    if isinstance(source, (str, os.PathLike)):
        data, label, record_name = _read_bytes(source)
        label = name or label
        sha256 = hashlib.sha256(data).hexdigest()
        if data[128:132] == b"DICM" or Path(record_name).suffix.lower() in _DICOM_SUFFIXES:
            pixels, notes = _levels_from_dicom(data, label, window_percentiles, **limits)
        else:
            pixels, notes = _levels_from_image_file(data, label, window_percentiles, **limits)
    else:
        label = record_name = name or "the image"
        if isinstance(source, PIL.Image.Image):
            pixels, notes = _levels_from_pillow(source, label, window_percentiles, **limits)
        else:
            array = _to_numpy(source, label)
            pixels, notes = _levels_from_array(array, label, input_data_format, window_percentiles, **limits)

    lowest, highest = int(pixels.min()), int(pixels.max())
    if lowest == highest:
        raise InputError(f"{label} is blank: every pixel is displayed as {lowest} of 255. Was it exported in full?")
    return Film(pixels, record_name, sha256, tuple(notes))


def _read_bytes(source) -> tuple[bytes, str, str]:
    """The bytes of a file, address or base64 string, what messages call it, and its name for records."""
    text = os.fspath(source)
    if text.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(text, timeout=30) as response:
                return response.read(), text, text.rpartition("/")[2]
        except (OSError, ValueError) as error:
            raise InputError(f"{text} cannot be fetched: {error}.") from error
    # No file name is longer than 255 characters, so a long string without a file is inline data.
    if text.startswith("data:") or (len(text) > 255 and not os.path.exists(text)):
        try:
            return base64.b64decode(text.rpartition(",")[2], validate=True), "the inline image", "inline image"
        except binascii.Error as error:
            raise InputError(f"{text[:40]!r}... is neither a file nor base64 text ({error}).") from error
    try:
        data = Path(text).read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{text} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if not data:
        raise InputError(f"{text} is empty (0 bytes).")
    return data, text, Path(text).name


def _check_size(width: int, height: int, label: str, max_pixels: int, min_side: int) -> None:
    if width * height > max_pixels:
        raise InputError(
            f"{label} is {width} x {height} pixels, more than the {max_pixels} that are allowed (`max_pixels`)."
        )
    if min(width, height) < min_side:
        raise InputError(
            f"{label} is {width} x {height} pixels; the shorter side of a film must have at least {min_side} pixels."
        )


# -- files that Pillow reads ------------------------------------------------------------------------------------------


def _levels_from_image_file(data, label, window_percentiles, max_pixels, min_side):
    try:
        with warnings.catch_warnings():
            # `max_pixels` decides, not Pillow's lower threshold for a warning.
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            image = PIL.Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS)
        # MPO is how cameras write JPEG: the further frames are small copies of the first.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except PIL.UnidentifiedImageError as error:
        raise InputError(f"{label} is not a PNG, JPEG, TIFF, BMP, WebP or DICOM image.") from error
    except PIL.Image.DecompressionBombError as error:
        raise InputError(f"{label} is larger than Pillow decodes ({error}).") from error
    except Exception as error:  # Pillow's parsers raise whatever a broken header leads them to
        raise InputError(f"{label} has a broken header: {error}.") from error
    with image:
        if frames > 1:
            raise InputError(f"{label} holds {frames} frames or pages; give one film per file.")
        return _levels_from_pillow(image, label, window_percentiles, max_pixels, min_side)


def _levels_from_pillow(image, label, window_percentiles, max_pixels, min_side):
    _check_size(*image.size, label, max_pixels, min_side)
    try:
        image.load()
        upright = PIL.ImageOps.exif_transpose(image)
    except Exception as error:  # see above: a truncated or damaged file surfaces as any of a dozen types
        raise InputError(f"{label} is truncated or damaged and was not decoded in full: {error}.") from error

    if upright.mode == "F" or upright.mode.startswith("I"):
        return _window(np.asarray(upright), label, window_percentiles), []
    if upright.mode in ("1", "L") and "transparency" not in upright.info:
        return np.asarray(upright.convert("L")), []
    if upright.mode == "La":
        upright = upright.convert("LA")
    if upright.has_transparency_data:
        black = PIL.Image.new("RGBA", upright.size, (0, 0, 0, 255))
        upright = PIL.Image.alpha_composite(black, upright.convert("RGBA"))
    return _grey_from_colour(np.asarray(upright.convert("RGB")))


# -- arrays -----------------------------------------------------------------------------------------------------------


def _to_numpy(source, label) -> np.ndarray:
    if hasattr(source, "detach"):
        source = source.detach().cpu()
        # NumPy has no bfloat16.
        source = source.float().numpy() if source.is_floating_point() else source.numpy()
    if not isinstance(source, np.ndarray):
        raise InputError(
            f"{label} is a {type(source).__name__}; expected a path, a PIL image, a NumPy array or a tensor."
        )
    if source.dtype.kind not in "buif":
        raise InputError(f"{label} has dtype {source.dtype}; expected integers or floats.")
    return source


def _levels_from_array(array, label, input_data_format, window_percentiles, max_pixels, min_side):
    if array.ndim == 3:
        array = _channels_last(array, label, input_data_format)
    elif array.ndim != 2:
        raise InputError(f"{label} has shape {array.shape}; expected (H, W), (H, W, C) or (C, H, W).")
    height, width = array.shape[:2]
    _check_size(width, height, label, max_pixels, min_side)
    if array.ndim == 2:
        return _window(array, label, window_percentiles), []
    if array.shape[2] == 4:
        opaque = 1.0 if array.dtype.kind == "f" else np.iinfo(array.dtype).max
        array = (array[..., :3] * (array[..., 3:] / opaque)).astype(array.dtype)
    grey, notes = _grey_from_colour(array)
    return _window(grey, label, window_percentiles), notes


def _channels_last(array, label, input_data_format):
    """(H, W), or (H, W, C) with C of 3 or 4."""
    channels_first = array.shape[0] in (1, 3, 4)
    if input_data_format is not None:
        channels_first = ChannelDimension(input_data_format) == ChannelDimension.FIRST
    elif array.shape[-1] in (1, 3, 4):
        channels_first = False
    if channels_first:
        array = np.moveaxis(array, 0, -1)
    if array.shape[-1] not in (1, 3, 4):
        raise InputError(
            f"{label} has shape {array.shape}; expected 1, 3 or 4 channels in the first or the last place."
        )
    return array[..., 0] if array.shape[-1] == 1 else array


def _grey_from_colour(colour: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Luminance of (H, W, 3), in the same dtype, and a warning where the channels truly differ."""
    # Every eighth row and column is enough to tell a photograph from chroma noise.
    sample = np.array(np.moveaxis(colour[::8, ::8], -1, 0), dtype=np.float64, order="C")
    spread = np.ptp(sample, axis=0).mean()
    if colour.dtype == np.uint8:
        grey = np.asarray(PIL.Image.fromarray(np.ascontiguousarray(colour)).convert("L"))
    else:
        # Rounding must not lift the luminance of white over white, which would take [0, 1] for another scale.
        grey = (colour @ np.asarray(_LUMINANCE)).clip(colour.min(), colour.max())
        grey = (np.rint(grey) if colour.dtype.kind in "ui" else grey).astype(colour.dtype)
    full_range = 255.0 if colour.dtype == np.uint8 else float(np.ptp(sample))
    if spread > _COLOUR_TOLERANCE * full_range:
        return grey, ["The picture is coloured; only its brightness is used. Is it a film?"]
    return grey, []


def _window(array: np.ndarray, label: str, window_percentiles) -> np.ndarray:
    """Display levels, uint8 (H, W), of one channel of any real dtype."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind in "ui" and array.dtype.itemsize <= 2:
        values, index = _distinct_values(array)
        counts = np.bincount(index.ravel(), minlength=len(values))
        return _levels(_between(values, *_percentile_window(values, counts, window_percentiles)))[index]
    if not np.isfinite(array).all():
        raise InputError(f"{label} holds {int((~np.isfinite(array)).sum())} values that are NaN or infinite.")
    lowest, highest = float(array.min()), float(array.max())
    if array.dtype.kind == "f" and lowest >= 0.0 and highest <= 1.0:
        return _levels(array)
    low, high = np.percentile(array, window_percentiles)
    if low == high:
        low, high = lowest, highest
    return _levels(_between(array.astype(np.float64), low, high))


def _distinct_values(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values, int64 (V,), and the index of each pixel's value among them: work per value is far less than per pixel."""
    if array.dtype.itemsize > 2:
        values, index = np.unique(array, return_inverse=True)
        return values.astype(np.int64), index.reshape(array.shape)
    lowest, highest = int(array.min()), int(array.max())
    return np.arange(lowest, highest + 1), array.astype(np.int64) - lowest


def _percentile_window(values, counts, window_percentiles) -> tuple[float, float]:
    """Values at the two percentiles; the extremes where the percentiles coincide."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(counts[order])
    ranks = np.asarray(window_percentiles) / 100 * cumulative[-1]
    low, high = values[order[np.searchsorted(cumulative, np.maximum(ranks, 1))]]
    if low < high:
        return low, high
    present = values[counts > 0]
    return present.min(), present.max()


def _between(values, low, high) -> np.ndarray:
    """Values on a straight line from 0 at `low` to 1 at `high`."""
    return (values - low) / (high - low) if high > low else np.zeros(np.shape(values))


def _levels(shades: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(shades, 0.0, 1.0) * 255.0).astype(np.uint8)


# -- DICOM ------------------------------------------------------------------------------------------------------------


def _levels_from_dicom(data, label, window_percentiles, max_pixels, min_side):
    try:
        import pydicom
    except ImportError as error:
        raise InputError(f"{label} is a DICOM file, and reading it takes pydicom: {_DICOM_EXTRA}.") from error

    # Old scanners break the standard in small ways that pydicom repairs, with a Python warning each time.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(io.BytesIO(data), force=True, specific_tags=_DICOM_ELEMENTS)
            notes = _check_dicom(dataset, label, max_pixels, min_side)
        except InputError:
            raise
        except Exception as error:  # a damaged header surfaces as any of a dozen types
            raise InputError(f"{label} is not a readable DICOM file: {error}.") from error
        try:
            stored = dataset.pixel_array
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # several libraries; a panic of one in Rust is not even an `Exception`
            missing = "missing dependencies" in str(error)
            advice = f" Install the decoders: {_DICOM_EXTRA}." if missing else ""
            raise InputError(f"{label}: the pixel data cannot be decoded ({error}).{advice}") from error
        return _display_dicom(stored, dataset, notes, label, window_percentiles)


def _check_dicom(dataset, label, max_pixels, min_side) -> list[str]:
    """Refuses what is no single grey film, before its pixels are decoded; returns warnings."""
    if not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(dataset.dir()):
        if "Rows" not in dataset and "Modality" not in dataset:
            raise InputError(f"{label} is not a DICOM file.")
        raise InputError(f"{label} holds no pixel data.")
    if str(dataset.get("BurnedInAnnotation", "")).upper() == "YES":
        raise InputError(
            f"{label} declares burnt-in annotation, which may name the patient (BurnedInAnnotation is YES). "
            "Blacken the text, set the attribute to NO and try again."
        )
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise InputError(f"{label} holds {frames} frames; a film is a single image.")
    photometric = str(dataset.get("PhotometricInterpretation", "")).upper()
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise InputError(
            f"{label} is not a film: its PhotometricInterpretation is {photometric or 'absent'}; "
            "expected MONOCHROME1 or MONOCHROME2."
        )
    if "PixelData" not in dataset:
        raise InputError(f"{label} is not a film: it holds computed float values, not pixel data.")
    _check_size(int(dataset.Columns), int(dataset.Rows), label, max_pixels, min_side)

    notes = []
    if "BurnedInAnnotation" not in dataset:
        notes.append("BurnedInAnnotation is absent: make sure that no text in the image names the patient.")
    if (modality := str(dataset.get("Modality", ""))) not in _RADIOGRAPH_MODALITIES:
        notes.append(f"The modality is {modality}, not a radiograph (CR or DX).")
    if dataset.get("PresentationIntentType") == "FOR PROCESSING":
        notes.append("The pixel data are meant for further processing, not for display (FOR PROCESSING).")
    return notes


def _display_dicom(stored, dataset, notes, label, window_percentiles):
    """Display levels of stored pixel values: modality LUT, VOI LUT or window, presentation, one after the other."""
    values, index = _distinct_values(stored)
    counts = np.bincount(index.ravel(), minlength=len(values))
    try:
        padding = _is_padding(values, dataset)
        values = _modality(values, dataset)
        shades = _value_of_interest(values, dataset)
        inverse = _is_inverse(dataset)
    except Exception as error:  # the header is decoded as it is used: see above
        raise InputError(f"{label}: a lookup table or window of the header is malformed ({error}).") from error
    used = (counts > 0) & ~padding
    if not used.any():
        raise InputError(f"{label} is blank: every pixel has the padding value.")

    if shades is not None and np.ptp(_levels(shades)[used]) == 0 < np.ptp(values[used]):
        notes.append("The window of the DICOM header shows a single shade: percentiles used.")
        shades = None
    elif shades is None:
        notes.append("No window in the DICOM header: percentiles used.")
    if shades is None:
        shades = _between(values, *_percentile_window(values, np.where(used, counts, 0), window_percentiles))

    levels = _levels(1.0 - np.clip(shades, 0.0, 1.0) if inverse else shades)
    levels[padding] = 0
    return levels[index], notes


def _is_inverse(dataset) -> bool:
    # The presentation LUT is the last word where it exists; inverting for MONOCHROME1 as well would undo it.
    shape = str(dataset.get("PresentationLUTShape", "")).upper()
    if shape in ("IDENTITY", "INVERSE"):
        return shape == "INVERSE"
    return str(dataset.PhotometricInterpretation).upper() == "MONOCHROME1"


def _is_padding(values, dataset) -> np.ndarray:
    if (first := dataset.get("PixelPaddingValue")) is None:
        return np.zeros(len(values), dtype=bool)
    last = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(first), int(first if last is None else last)))
    return (values >= low) & (values <= high)


def _modality(values, dataset) -> np.ndarray:
    if sequence := dataset.get("ModalityLUTSequence"):
        first, table = _lookup_table(sequence[0])
        return table[np.clip(values - first, 0, len(table) - 1)]
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    return values * float(1 if slope is None else slope) + float(intercept or 0)


def _value_of_interest(values, dataset) -> np.ndarray | None:
    """Shades, 0 black to 1 white, by the first VOI LUT or else the first window; `None` without either."""
    if sequence := dataset.get("VOILUTSequence"):
        first, table = _lookup_table(sequence[0])
        chosen = table[np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)]
        return _between(chosen, table.min(), table.max())
    centre, width = (np.atleast_1d(dataset.get(key) or ())[:1] for key in ("WindowCenter", "WindowWidth"))
    if not (len(centre) and len(width)):
        return None
    return _windowed(values, float(centre[0]), float(width[0]), str(dataset.get("VOILUTFunction") or "LINEAR").upper())


def _windowed(values, centre, width, function) -> np.ndarray | None:
    """PS3.3 C.11.2.1.2 (LINEAR), C.11.2.1.3 (SIGMOID, LINEAR_EXACT); `None` for a width that the standard forbids."""
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1.0
    if width < 0 or (width == 0 and function != "LINEAR"):
        return None
    if function == "SIGMOID":
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700.0, 700.0)))
    if width == 0:
        return (values > centre).astype(np.float64)
    return np.clip((values - centre) / width + 0.5, 0.0, 1.0)


def _lookup_table(item) -> tuple[int, np.ndarray]:
    """First stored value mapped, and the table, int64."""
    entries, first, _ = (int(value) for value in item.LUTDescriptor)
    entries = entries or 2**16  # PS3.3 C.11.1.1: 65536 does not fit the field and is written as 0
    data = item.LUTData
    if isinstance(data, bytes):
        wide = len(data) >= 2 * entries
        data = np.frombuffer(data, dtype="<u2" if wide else "u1")
    table = np.atleast_1d(np.asarray(data)).astype(np.int64)[:entries]
    if len(table) < entries:
        raise ValueError(f"the table announces {entries} entries and holds {len(table)}")
    return first, table


# -- the processor ----------------------------------------------------------------------------------------------------


@auto_docstring(
    custom_intro="""
    Brings films to display levels, letter-boxes them into a square and normalises them; needs no torchvision.

    `images` is one image or a (nested) list of images, each anything that `load_film` takes. The result is a
    `BatchFeature` with `pixel_values`, float32 (B, C, S, S) with as many channels of the same film as `image_mean` has
    entries (3), and `image_sizes`, int64 (B, 2): height and width of each original image, from which `LetterBox`
    computes how points and boxes move. `do_resize` fits the film into the square with its aspect ratio kept and
    `do_pad` centres it between bars; coordinates of `LetterBox` hold with both on, as they are by default.
    """
)
class Gaze2ReportImageProcessor(PilBackend):
    size = {"height": 224, "width": 224}
    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    do_resize = True
    do_pad = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    model_input_names = ["pixel_values", "image_sizes"]

    def __init__(
        self,
        pad_value: int = 0,
        window_percentiles: tuple[float, float] = WINDOW_PERCENTILES,
        max_pixels: int = MAX_PIXELS,
        min_side: int = MIN_SIDE,
        **kwargs: Unpack[ImagesKwargs],
    ):
        r"""
        pad_value (`int`, *optional*, defaults to 0):
            Display level of the bars, 0 to 255, before normalisation. This and the next three belong to the processor
            and cannot be given per call.
        window_percentiles (`tuple[float, float]`, *optional*, defaults to `(0.5, 99.5)`):
            Percentiles of the pixel values that become black and white where nothing says how to display them.
        max_pixels (`int`, *optional*, defaults to 100000000):
            Larger images are refused before they are decoded.
        min_side (`int`, *optional*, defaults to 16):
            Images with a shorter side, in pixels, are refused.
        """
        super().__init__(**kwargs)
        low, high = window_percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"window_percentiles must rise within 0 and 100, like (0.5, 99.5); got ({low}, {high}).")
        if not 0 <= pad_value <= 255:
            raise ValueError(f"pad_value is a display level from 0 to 255; got {pad_value}.")
        self.pad_value = pad_value
        self.window_percentiles = [low, high]
        self.max_pixels = max_pixels
        self.min_side = min_side

    def _load(self, image, name=None, input_data_format=None) -> Film:
        return load_film(
            image,
            name=name,
            input_data_format=input_data_format,
            window_percentiles=self.window_percentiles,
            max_pixels=self.max_pixels,
            min_side=self.min_side,
        )

    def fetch_images(self, image_url_or_urls):
        """
        Reads paths, addresses and `Film`s into uint8 (1, H, W) arrays, gives (H, W) arrays their channel axis and
        leaves other images for `process_image`; the nesting stays. Calling it on its own result changes nothing.
        """
        image = image_url_or_urls
        if isinstance(image, (list, tuple)):
            return [self.fetch_images(item) for item in image]
        if isinstance(image, (str, os.PathLike)):
            film = self._load(image)
            for note in film.warnings:
                logger.warning(f"{image}: {note}")
            return film.pixels[None]
        if is_film(image):
            return image.pixels[None]
        if getattr(image, "ndim", None) == 2:
            return image[None]
        return image

    def _prepare_images_structure(self, images, expected_ndims: int = 3):
        images = self.fetch_images(images)
        try:
            images = make_flat_list_of_images(images, expected_ndims=expected_ndims)
        except (AttributeError, ValueError) as error:
            raise InputError(
                f"The images are a {type(images).__name__} that is not an image or a list of images; expected paths, "
                "PIL images, NumPy arrays or tensors of shape (H, W), (H, W, C) or (C, H, W), or lists of them."
            ) from error
        if len(images) == 0:
            raise InputError("There is no image to process: the list is empty.")
        return images

    def _prepare_image_like_inputs(self, images, *args, expected_ndims: int = 3, **kwargs):
        images = self._prepare_images_structure(images, expected_ndims=expected_ndims)
        if len(images) == 1:
            return [self.process_image(images[0], **kwargs)]
        return [
            self.process_image(image, name=f"image {index} (counting from 0)", **kwargs)
            for index, image in enumerate(images)
        ]

    def process_image(self, image, input_data_format=None, name=None, **kwargs) -> np.ndarray:
        """Display levels of one image, uint8 (1, H, W). `do_convert_rgb` has no effect: a film has one channel."""
        film = self._load(image, name=name, input_data_format=input_data_format)
        for note in film.warnings:
            logger.warning(f"{film.name}: {note}")
        return film.pixels[None]

    def _validate_preprocess_kwargs(self, do_center_crop=None, size=None, **kwargs):
        super()._validate_preprocess_kwargs(do_center_crop=do_center_crop, size=size, **kwargs)
        if do_center_crop:
            raise ValueError("do_center_crop would cut anatomy off; films are letter-boxed: leave it out.")
        if size is None or not size.height or size.height != size.width:
            raise ValueError(f"size must be a square such as {{'height': 224, 'width': 224}}; got {size}.")

    def _preprocess(
        self,
        images: list[np.ndarray],
        do_resize: bool,
        size: SizeDict,
        resample,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean,
        image_std,
        do_pad: bool,
        return_tensors,
        **kwargs,
    ) -> BatchFeature:
        table = _normalisation_table(do_rescale, rescale_factor, do_normalize, image_mean, image_std)  # (C, 256)
        side = size.height
        squares = []
        for image in images:
            levels = image[0]
            if do_resize:
                levels = _fit(levels, side, resample)
            if do_pad:
                levels = _centre(levels, side, self.pad_value)
            squares.append(levels)
        # Levels are whole numbers, so normalising is a look-up.
        if len({square.shape for square in squares}) == 1:
            pixel_values = np.empty((len(squares), len(table), *squares[0].shape), dtype=np.float32)
            for square, normalised in zip(squares, pixel_values, strict=True):
                # No level is out of range; "clip" only spares NumPy a second buffer, and most of the time.
                table.take(square, axis=1, out=normalised, mode="clip")
        else:
            pixel_values = [table.take(square, axis=1) for square in squares]
        image_sizes = np.array([image.shape[1:] for image in images], dtype=np.int64)
        return BatchFeature({"pixel_values": pixel_values, "image_sizes": image_sizes}, tensor_type=return_tensors)


def _normalisation_table(do_rescale, rescale_factor, do_normalize, image_mean, image_std) -> np.ndarray:
    """Normalised value of each display level, float32 (C, 256)."""
    levels = np.arange(256, dtype=np.float64)[None]
    if do_rescale:
        levels = levels * rescale_factor
    mean, std = (np.atleast_1d(np.asarray(value, dtype=np.float64)) for value in (image_mean, image_std))
    channels = max(len(mean), len(std)) if max(len(mean), len(std)) > 1 else 3
    if do_normalize:
        levels = (levels - mean[:, None]) / std[:, None]
    return np.broadcast_to(levels, (channels, 256)).astype(np.float32)


def _fit(levels: np.ndarray, side: int, resample) -> np.ndarray:
    box = LetterBox(*levels.shape, side)
    if levels.shape == (box.resized_height, box.resized_width):
        return levels
    return np.asarray(PIL.Image.fromarray(levels).resize((box.resized_width, box.resized_height), resample))


def _centre(levels: np.ndarray, side: int, pad_value: int) -> np.ndarray:
    height, width = levels.shape
    if height > side or width > side:
        raise ValueError(f"An image of {width} x {height} pixels does not fit a square of {side}; leave do_resize on.")
    if height == width == side:
        return levels
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side), pad_value, dtype=np.uint8)
    square[top : top + height, left : left + width] = levels
    return square


__all__ = ["Film", "Gaze2ReportImageProcessor", "load_film"]
