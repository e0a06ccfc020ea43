"""Films of every kind of file and array, the square the model sees, and everything that is refused."""

import base64
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_presentation_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    generate_uid,
)
from transformers import ViTImageProcessorPil

from modeling_gaze2report.processing import image_processing_gaze2report
from modeling_gaze2report.processing.errors import InputError
from modeling_gaze2report.processing.gaze_geometry import LetterBox
from modeling_gaze2report.processing.image_processing_gaze2report import Film, Gaze2ReportImageProcessor, load_film

SHARED = Path(os.environ.get("GAZE2REPORT_SHARED", Path(__file__).resolve().parents[3] / "shared"))
PROCESSING = Path(image_processing_gaze2report.__file__).parent


def ramp(height=40, width=64, dtype=np.uint8, top=255):
    """Grows from 0 to `top` from left to right."""
    row = np.linspace(0, top, width)
    return np.tile(row, (height, 1)).astype(dtype)


def saved(image, path, **options):
    image.save(path, **options)
    return path


@pytest.fixture
def processor():
    return Gaze2ReportImageProcessor(size={"height": 32, "width": 32})


# -- files and modes that Pillow reads --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp", "webp"])
def test_an_8_bit_file_is_read_exactly(tmp_path, suffix):
    path = saved(
        Image.fromarray(ramp()), tmp_path / f"film.{suffix}", **({"lossless": True} if suffix == "webp" else {})
    )
    film = load_film(path)
    np.testing.assert_array_equal(film.pixels, ramp())
    assert (film.height, film.width, film.name, film.warnings) == (40, 64, f"film.{suffix}", ())
    assert film.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_grey_and_a_colour_jpeg_of_a_film_agree_without_a_warning(tmp_path):
    noisy = np.clip(ramp(256, 256).astype(int) + np.random.default_rng(0).integers(-9, 9, (256, 256)), 0, 255)
    image = Image.fromarray(noisy.astype(np.uint8))
    grey = load_film(saved(image, tmp_path / "grey.jpg", quality=90))
    colour = load_film(saved(image.convert("RGB"), tmp_path / "colour.jpg", quality=90))
    assert np.abs(grey.pixels.astype(int) - colour.pixels).max() <= 3
    assert colour.warnings == ()


def test_a_photograph_is_accepted_with_a_warning():
    photograph = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    film = load_film(photograph)
    expected = photograph @ [0.299, 0.587, 0.114]
    assert np.abs(film.pixels - expected).max() <= 1
    assert "coloured" in film.warnings[0]


def test_a_film_with_a_coloured_arrow_is_not_called_a_photograph():
    film = np.repeat(ramp(256, 256)[..., None], 3, axis=2)
    film[100:120, 100:140] = (255, 0, 0)
    assert load_film(film).warnings == ()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV", "RGBX", "La"])
def test_every_8_bit_mode_shows_the_same_film(mode):
    # Black and white survive every conversion, greys do not (1, CMYK).
    halves = np.zeros((40, 64), dtype=np.uint8)
    halves[:, 32:] = 255
    image = Image.fromarray(halves)
    image = {"La": lambda: image.convert("LA").convert("La"), "PA": lambda: image.convert("P").convert("PA")}.get(
        mode, lambda: image.convert(mode)
    )()
    assert image.mode == mode
    assert np.abs(load_film(image).pixels.astype(int) - halves).max() <= 1


def test_a_grey_palette_is_resolved(tmp_path):
    # Palette entries in reverse: index 0 is white.
    image = Image.fromarray(ramp(), mode=None).convert("L")
    paletted = Image.fromarray(255 - ramp()).convert("P")
    paletted.putpalette([level for index in range(256) for level in [255 - index] * 3])
    np.testing.assert_array_equal(load_film(saved(paletted, tmp_path / "p.png")).pixels, np.asarray(image))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_pixels_are_black(mode):
    image = Image.fromarray(np.full((40, 64), 200, dtype=np.uint8)).convert(mode)
    alpha = np.full((40, 64), 255, dtype=np.uint8)
    alpha[:20] = 0
    image.putalpha(Image.fromarray(alpha))
    pixels = load_film(image).pixels
    assert (pixels[:20] == 0).all() and (pixels[20:] == 200).all()


def test_a_transparent_palette_entry_is_black(tmp_path):
    image = Image.fromarray(ramp()).convert("P")
    path = saved(image, tmp_path / "p.png", transparency=255)
    pixels = load_film(path).pixels
    assert pixels.max() < 255 and (pixels[:, -1] == 0).all()


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_a_16_bit_file_keeps_its_shades(tmp_path, suffix):
    path = saved(Image.fromarray(ramp(width=1000, dtype=np.uint16, top=65535)), tmp_path / f"deep.{suffix}")
    pixels = load_film(path, window_percentiles=(0, 100)).pixels
    np.testing.assert_array_equal(pixels[0], np.rint(ramp(1, 1000, np.uint16, 65535)[0] / 65535 * 255))


def test_big_endian_16_bit_tiff(tmp_path):
    values = ramp(width=1000, dtype=">u2", top=4095)
    image = Image.frombytes("I;16B", (1000, 40), values.tobytes())
    pixels = load_film(saved(image, tmp_path / "big.tiff"), window_percentiles=(0, 100)).pixels
    np.testing.assert_array_equal(pixels[0], np.rint(values[0] / values.max() * 255))


@pytest.mark.parametrize(("mode", "dtype"), [("I", np.int32), ("F", np.float32)])
def test_32_bit_tiff(tmp_path, mode, dtype):
    image = Image.fromarray(ramp(width=1000, dtype=dtype, top=100000))
    assert image.mode == mode
    pixels = load_film(saved(image, tmp_path / "deep.tiff"), window_percentiles=(0, 100)).pixels
    assert np.abs(pixels[0] - np.linspace(0, 255, 1000)).max() <= 0.51


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_the_orientation_tag_is_applied(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the stored picture must be rotated by 90 degrees clockwise
    path = saved(Image.fromarray(ramp(40, 64)), tmp_path / f"turned.{suffix}", exif=exif)
    film = load_film(path)
    assert (film.height, film.width) == (64, 40)
    assert film.pixels[0].mean() < 20 < 235 < film.pixels[-1].mean()


def test_a_camera_file_with_a_preview_is_its_first_picture(tmp_path):
    picture, preview = Image.fromarray(ramp()), Image.fromarray(ramp()[::2, ::2].copy())
    path = saved(picture, tmp_path / "camera.jpg", format="MPO", save_all=True, append_images=[preview])
    assert (load_film(path).height, load_film(path).width) == (40, 64)


def test_base64_text_is_read(tmp_path):
    data = base64.b64encode(saved(Image.fromarray(ramp()), tmp_path / "film.png").read_bytes()).decode()
    np.testing.assert_array_equal(load_film("data:image/png;base64," + data).pixels, ramp())
    big = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(big, "PNG")
    assert load_film(base64.b64encode(big.getvalue()).decode()).height == 64


# -- arrays -----------------------------------------------------------------------------------------------------------


def test_uint8_values_are_display_levels():
    dark = ramp(top=60)
    np.testing.assert_array_equal(load_film(dark).pixels, dark)


def test_floats_within_0_and_1_are_scaled():
    np.testing.assert_array_equal(load_film(ramp().astype(np.float32) / 255).pixels, ramp())


@pytest.mark.parametrize(
    "dtype", [np.uint16, np.int16, np.int32, np.uint32, np.int64, np.float16, np.float32, np.float64]
)
def test_other_numbers_are_windowed_between_percentiles(dtype):
    # 1001 values 0..1000 in each of 32 rows: percentile 10 is 100 and percentile 90 is 900, to within one value.
    values = np.tile(np.arange(1001), (32, 1))
    pixels = load_film(values.astype(dtype), window_percentiles=(10, 90)).pixels
    expected = np.clip((np.arange(1001) - 100) / 800, 0, 1) * 255
    assert np.abs(pixels[0] - expected).max() < 0.9
    assert pixels.dtype == np.uint8


def test_negative_values_are_windowed_too():
    pixels = load_film(ramp(dtype=np.int16, top=1000) - np.int16(2000), window_percentiles=(0, 100)).pixels
    assert pixels[0, 0] == 0 and pixels[0, -1] == 255


def test_one_hot_pixel_does_not_darken_the_film():
    values = ramp(64, 64, np.uint16, 1000)
    values[0, 0] = 65535
    assert load_film(values).pixels[:, -1].min() == 255


def test_nearly_constant_values_fall_back_to_their_extremes():
    values = np.zeros((64, 64), dtype=np.uint16)
    values[3, 3] = 7
    pixels = load_film(values).pixels
    assert pixels[3, 3] == 255 and pixels.sum() == 255


def test_a_boolean_mask_is_black_and_white():
    assert set(np.unique(load_film(ramp() > 100).pixels)) == {0, 255}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_channels_stand_first_or_last(channels, first, kind):
    array = np.repeat(ramp()[..., None], channels, axis=2)
    array[..., 3:] = 255
    if first:
        array = np.moveaxis(array, -1, 0)
    image = torch.from_numpy(np.ascontiguousarray(array)) if kind == "torch" else array
    np.testing.assert_array_equal(load_film(image).pixels, ramp())


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1), (np.float64, 1)])
def test_equal_channels_are_the_film_itself(dtype, top):
    values = ramp(dtype=dtype, top=top)
    colour = np.repeat(values[..., None], 3, axis=2)
    np.testing.assert_array_equal(load_film(colour).pixels, load_film(values).pixels)


def test_16_bit_alpha_is_applied():
    array = np.repeat(ramp(dtype=np.uint16, top=60000)[..., None], 4, axis=2)
    array[..., 3] = 65535
    array[:20, :, 3] = 0
    pixels = load_film(array, window_percentiles=(0, 100)).pixels
    assert (pixels[:20] == 0).all() and pixels[20:, -1].min() == 255


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_float_tensors_of_any_precision(dtype):
    image = torch.from_numpy(ramp().astype(np.float32) / 255).to(dtype).requires_grad_()
    assert np.abs(load_film(image).pixels.astype(int) - ramp()).max() <= 1


def test_a_film_of_another_copy_of_the_code_is_a_film():
    name = "modeling_gaze2report.processing.image_processing_copy"
    spec = importlib.util.spec_from_file_location(name, image_processing_gaze2report.__file__)
    copy = importlib.util.module_from_spec(spec)
    sys.modules[name] = copy
    spec.loader.exec_module(copy)
    film = copy.Film(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64), "film")

    processor = Gaze2ReportImageProcessor()

    assert load_film(film) is film
    assert processor([film])["image_sizes"].tolist() == [[64, 64]]


def test_a_film_passes_through_unread():
    film = Film(ramp(), "mine.png", "abc", ("note",))
    assert load_film(film) is film


# -- DICOM ------------------------------------------------------------------------------------------------------------


def dicom(stored, **elements):
    """A digital radiograph that stores `stored`; `elements` overwrite or add header elements, `None` removes one."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.PatientName, dataset.Modality, dataset.BurnedInAnnotation = "Doe^Jane", "DX", "NO"
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.SamplesPerPixel = 1 if stored.ndim == 2 else stored.shape[2]
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * stored.dtype.itemsize
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.tobytes()
    for name, value in elements.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.HighBit = dataset.BitsStored - 1
    return dataset


def written(dataset, tmp_path, name="film.dcm"):
    dataset.save_as(tmp_path / name, enforce_file_format=True)
    return tmp_path / name


def lut(table, first=0, bits=16):
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(table), first, bits])
    item.add_new("LUTData", "OW", np.asarray(table, dtype="<u2").tobytes())
    return Sequence([item])


TWELVE_BIT = ramp(32, 1024, np.uint16, 4095)


def test_12_bit_pixels_are_shown_through_the_window(tmp_path):
    path = written(dicom(TWELVE_BIT, BitsStored=12, WindowCenter=2048, WindowWidth=2048), tmp_path)
    film = load_film(path)
    # PS3.3 C.11.2.1.2.1: black up to c - 0.5 - (w - 1) / 2 = 1024, white above c - 0.5 + (w - 1) / 2 = 3071.
    expected = np.clip((TWELVE_BIT[0].astype(float) - 2047.5) / 2047 + 0.5, 0, 1) * 255
    assert np.abs(film.pixels[0] - expected).max() <= 0.5
    assert film.warnings == () and film.name == "film.dcm"
    assert film.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (2.5, -1024)])
def test_windows_equal_pydicom(tmp_path, function, slope, intercept):
    dataset = dicom(
        TWELVE_BIT,
        BitsStored=12,
        RescaleSlope=slope,
        RescaleIntercept=intercept,
        WindowCenter=[1500, 40],
        WindowWidth=[1800, 400],
        VOILUTFunction=function,
    )
    film = load_film(written(dataset, tmp_path))
    reference = apply_voi_lut(apply_modality_lut(TWELVE_BIT, dataset), dataset, index=0)
    black, white = intercept, 4095 * slope + intercept
    np.testing.assert_allclose(film.pixels, (reference - black) / (white - black) * 255, atol=0.51)


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_lookup_tables_equal_pydicom(tmp_path, bits):
    table = (np.sqrt(np.linspace(0, 1, 3000)) * (2**bits - 1)).astype(int)
    dataset = dicom(
        TWELVE_BIT, BitsStored=12, VOILUTSequence=lut(table, first=500, bits=bits), WindowCenter=1, WindowWidth=2
    )
    film = load_film(written(dataset, tmp_path))
    reference = apply_voi_lut(TWELVE_BIT, dataset, prefer_lut=True) / (2**bits - 1) * 255
    np.testing.assert_allclose(film.pixels, reference, atol=0.51)


def test_an_8_bit_table_of_many_entries_does_not_wrap(tmp_path):
    table = np.linspace(0, 255, 4096).astype(int)
    film = load_film(written(dicom(TWELVE_BIT, BitsStored=12, VOILUTSequence=lut(table, bits=8)), tmp_path))
    assert np.abs(film.pixels[0] - TWELVE_BIT[0] / 4095 * 255).max() <= 1


def test_a_table_of_65536_entries_is_announced_as_zero(tmp_path):
    values = ramp(32, 1024, np.uint16, 65535)
    sequence = lut(np.arange(65536))
    sequence[0].LUTDescriptor = [0, 0, 16]
    film = load_film(written(dicom(values, VOILUTSequence=sequence), tmp_path))
    np.testing.assert_allclose(film.pixels, values / 65535 * 255, atol=0.51)


def test_the_modality_table_comes_before_the_window(tmp_path):
    signed = ramp(32, 1024, np.int16, 4095) - np.int16(2048)
    table = np.arange(4096)[::-1] * 10
    dataset = dicom(
        signed, BitsStored=12, ModalityLUTSequence=lut(table, first=-2048), WindowCenter=20480, WindowWidth=40960
    )
    film = load_film(written(dataset, tmp_path))
    reference = apply_modality_lut(signed, dataset).astype(float)
    expected = np.clip((reference - 20479.5) / 40959 + 0.5, 0, 1) * 255
    np.testing.assert_allclose(film.pixels, expected, atol=0.51)


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),  # not twice
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", "IDENTITY", False),
    ],
)
def test_a_film_is_inverted_once(tmp_path, photometric, shape, inverted):
    dataset = dicom(
        TWELVE_BIT, BitsStored=12, WindowCenter=2048, WindowWidth=4096, PhotometricInterpretation=photometric
    )
    if shape:
        dataset.PresentationLUTShape = shape
    pixels = load_film(written(dataset, tmp_path)).pixels
    assert (pixels[0, 0], pixels[0, -1]) == ((255, 0) if inverted else (0, 255))
    if shape:
        reference = apply_presentation_lut(apply_voi_lut(TWELVE_BIT, dataset), dataset) / 4095 * 255
        np.testing.assert_allclose(pixels, reference, atol=0.51)


def test_without_a_window_percentiles_are_used_and_said(tmp_path):
    film = load_film(written(dicom(TWELVE_BIT, BitsStored=12), tmp_path), window_percentiles=(10, 90))
    expected = np.clip((TWELVE_BIT[0] / 4095 - 0.1) / 0.8, 0, 1) * 255
    assert np.abs(film.pixels[0] - expected).max() < 1
    assert film.warnings == ("No window in the DICOM header: percentiles used.",)


@pytest.mark.parametrize(("centre", "width"), [(60000, 10), (2000, 0), (2000, -5)])
def test_a_window_that_shows_nothing_gives_way_to_percentiles(tmp_path, centre, width):
    film = load_film(written(dicom(TWELVE_BIT, BitsStored=12, WindowCenter=centre, WindowWidth=width), tmp_path))
    assert film.pixels.min() == 0 and film.pixels.max() == 255
    assert "percentiles used" in film.warnings[0]


def test_a_falling_rescale_slope_falls(tmp_path):
    film = load_film(written(dicom(TWELVE_BIT, BitsStored=12, RescaleSlope=-1, RescaleIntercept=4095), tmp_path))
    assert film.pixels[0, 0] == 255 and film.pixels[0, -1] == 0


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_outside_the_percentiles(tmp_path, photometric):
    stored = TWELVE_BIT.copy()
    stored[:16] = 65535
    dataset = dicom(stored, PixelPaddingValue=65535, PhotometricInterpretation=photometric)
    pixels = load_film(written(dataset, tmp_path)).pixels
    assert (pixels[:16] == 0).all()
    assert {int(pixels[16, 0]), int(pixels[16, -1])} == {0, 255}


def test_a_padding_range_is_black(tmp_path):
    stored = TWELVE_BIT.copy()
    stored[:16] = np.arange(1024) % 11 + 5000
    dataset = dicom(stored, PixelPaddingValue=5000, PixelPaddingRangeLimit=5010)
    assert (load_film(written(dataset, tmp_path)).pixels[:16] == 0).all()


def compressed_rle(dataset):
    dataset.compress(RLELossless)
    return dataset


def compressed_jpeg2000(dataset):
    dataset.compress(JPEG2000Lossless)
    return dataset


@pytest.mark.parametrize("compress", [compressed_rle, compressed_jpeg2000])
def test_lossless_compression_changes_nothing(tmp_path, compress):
    elements = {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096}
    plain = load_film(written(dicom(TWELVE_BIT, **elements), tmp_path, "plain.dcm"))
    packed = load_film(written(compress(dicom(TWELVE_BIT, **elements)), tmp_path, "packed.dcm"))
    np.testing.assert_array_equal(packed.pixels, plain.pixels)


def jpeg_dicom(stored, **elements):
    dataset = dicom(stored, **elements)
    stream = io.BytesIO()
    Image.fromarray(stored).save(stream, "JPEG", quality=95)
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return dataset


def test_jpeg_baseline(tmp_path):
    film = load_film(written(jpeg_dicom(ramp(32, 1024), WindowCenter=128, WindowWidth=256), tmp_path))
    assert np.abs(film.pixels.astype(int) - ramp(32, 1024)).max() <= 4


def test_a_dicom_file_needs_no_suffix(tmp_path):
    assert load_film(written(dicom(TWELVE_BIT), tmp_path, "IM00001")).width == 1024


def test_a_dicom_file_may_lack_its_preamble(tmp_path):
    path = written(dicom(TWELVE_BIT), tmp_path)
    path.write_bytes(path.read_bytes()[132:])
    assert load_film(path).width == 1024


def test_nothing_about_the_patient_is_read(tmp_path, monkeypatch):
    seen = []
    original = pydicom.dcmread

    def spy(*arguments, **options):
        seen.append(original(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(pydicom, "dcmread", spy)
    load_film(written(dicom(TWELVE_BIT), tmp_path))
    assert "Rows" in seen[0] and "PatientName" not in seen[0]


@pytest.mark.parametrize(
    ("elements", "note"),
    [
        ({"BurnedInAnnotation": None}, "BurnedInAnnotation is absent"),
        ({"Modality": "CT"}, "modality is CT, not a radiograph"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "FOR PROCESSING"),
    ],
)
def test_what_is_unsure_about_a_dicom_file_is_said(tmp_path, elements, note):
    film = load_film(written(dicom(TWELVE_BIT, WindowCenter=2048, WindowWidth=4096, **elements), tmp_path))
    assert len(film.warnings) == 1 and note in film.warnings[0]


@pytest.mark.parametrize(
    ("stored", "elements", "message"),
    [
        (TWELVE_BIT, {"PixelData": None}, "holds no pixel data"),
        (np.tile(TWELVE_BIT, (3, 1)), {"NumberOfFrames": 3, "Rows": 32}, "holds 3 frames"),
        (np.zeros((40, 64, 3), np.uint8), {"PhotometricInterpretation": "RGB"}, "not a film: .* is RGB"),
        (ramp(), {"PhotometricInterpretation": "PALETTE COLOR"}, "not a film: .* is PALETTE COLOR"),
        (TWELVE_BIT, {"BurnedInAnnotation": "YES"}, "burnt-in annotation"),
        (np.full((40, 64), 7, np.uint16), {}, "is blank"),
        (np.full((40, 64), 7, np.uint16), {"PixelPaddingValue": 7}, "every pixel has the padding value"),
        (ramp(8, 64), {}, "64 x 8 pixels; the shorter side"),
        (TWELVE_BIT, {"PixelData": b"\0\0" * 50}, "cannot be decoded"),
        (TWELVE_BIT, {"BitsAllocated": 13}, "cannot be decoded"),
        (TWELVE_BIT, {"Rows": 60000, "Columns": 60000}, "60000 x 60000 pixels, more than the 100000000"),
    ],
)
def test_dicom_files_that_are_no_film_are_refused(tmp_path, stored, elements, message):
    path = written(dicom(stored, **elements), tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        load_film(path)
    assert str(path) in str(caught.value)


def test_a_lookup_table_shorter_than_announced_is_refused(tmp_path):
    sequence = lut(np.arange(100))
    sequence[0].LUTDescriptor = [4096, 0, 16]
    with pytest.raises(InputError, match=r"announces 4096 entries and holds"):
        load_film(written(dicom(TWELVE_BIT, VOILUTSequence=sequence), tmp_path))


@pytest.mark.parametrize("part", [0.1, 0.5, 0.98])
def test_a_truncated_dicom_file_is_refused(tmp_path, part):
    path = written(dicom(TWELVE_BIT), tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(InputError, match=r"film\.dcm"):
        load_film(path)


def test_text_named_dcm_is_refused(tmp_path):
    path = tmp_path / "film.dcm"
    path.write_text("Dear colleague, " * 50)
    with pytest.raises(InputError, match=r"film\.dcm is not a "):
        load_film(path)


def test_a_missing_pydicom_is_named_with_the_command(tmp_path, monkeypatch):
    path = written(dicom(TWELVE_BIT), tmp_path)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r'film\.dcm.*pip install "gaze2report\[dicom\]"'):
        load_film(path)


def test_missing_decoders_are_named_with_the_command(tmp_path, monkeypatch):
    path = written(compressed_jpeg2000(dicom(TWELVE_BIT)), tmp_path)

    def no_plugin(self):
        raise RuntimeError("Unable to decompress, all plugins are missing dependencies: pylibjpeg")

    monkeypatch.setattr(pydicom.Dataset, "pixel_array", property(no_plugin))
    with pytest.raises(InputError, match=r'Install the decoders: pip install "gaze2report\[dicom\]"'):
        load_film(path)


def test_a_decoder_that_panics_is_a_refusal(tmp_path, monkeypatch):
    """A panic of the RLE decoder, written in Rust, is a `BaseException`; found by feeding it damaged files."""

    class PanicException(BaseException):
        pass

    def panic(self):
        raise PanicException("index out of bounds")

    path = written(compressed_rle(dicom(TWELVE_BIT)), tmp_path)
    monkeypatch.setattr(pydicom.Dataset, "pixel_array", property(panic))
    with pytest.raises(InputError, match=r"film\.dcm: the pixel data cannot be decoded \(index out of bounds\)"):
        load_film(path)


def test_an_interruption_is_not_mistaken_for_a_bad_file(tmp_path, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    path = written(dicom(TWELVE_BIT), tmp_path)
    monkeypatch.setattr(pydicom.Dataset, "pixel_array", property(interrupted))
    with pytest.raises(KeyboardInterrupt):
        load_film(path)


# -- refused files and arrays -----------------------------------------------------------------------------------------


def refused(source, message, **options):
    with pytest.raises(InputError, match=message) as caught:
        load_film(source, **options)
    return str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    assert str(tmp_path / "none.png") in refused(tmp_path / "none.png", "No such file")


def test_a_folder_is_refused(tmp_path):
    refused(tmp_path, "cannot be read: Is a directory")


def test_zero_bytes_are_refused(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    refused(tmp_path / "empty.png", r"empty\.png is empty")


def test_text_renamed_to_png_is_refused(tmp_path):
    (tmp_path / "letter.png").write_text("Dear colleague")
    refused(tmp_path / "letter.png", r"letter\.png is not a PNG, JPEG, TIFF, BMP, WebP or DICOM image")


def test_postscript_never_reaches_an_interpreter(tmp_path):
    (tmp_path / "film.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n")
    refused(tmp_path / "film.png", "is not a PNG")


@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "bmp", "webp"])
def test_a_truncated_file_is_refused(tmp_path, suffix, part):
    noise = np.random.default_rng(0).integers(0, 256, (128, 128), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / f"film.{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    assert f"film.{suffix}" in refused(path, ".")


def test_damage_inside_a_png_is_refused(tmp_path):
    path = saved(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128), dtype=np.uint8)), tmp_path / "f.png"
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    refused(path, r"f\.png is truncated or damaged")


@pytest.mark.parametrize("kind", ["png", "jpg", "tiff", "bmp", "webp", "dcm", "rle.dcm", "j2k.dcm"])
def test_damaged_files_are_read_or_refused_by_name_and_nothing_else(tmp_path, kind):
    random = np.random.default_rng(0)
    small = TWELVE_BIT[:, ::16].copy()
    if kind.endswith("dcm"):
        elements = {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096, "PixelPaddingValue": 0}
        pack = {"dcm": lambda dataset: dataset, "rle.dcm": compressed_rle, "j2k.dcm": compressed_jpeg2000}[kind]
        path = written(pack(dicom(small, **elements)), tmp_path, f"film.{kind}")
    else:
        noise = random.integers(0, 256, (64, 64), dtype=np.uint8)
        path = saved(Image.fromarray(noise), tmp_path / f"film.{kind}")
    data = path.read_bytes()
    header = min(len(data), 1200 if kind.endswith("dcm") else 200)
    for _ in range(60):
        damaged = bytearray(data)
        for place in random.integers(0, random.choice([header, len(data)]), random.integers(1, 6)):
            damaged[place] = random.integers(256)
        path.write_bytes(bytes(damaged))
        try:
            assert load_film(path).pixels.dtype == np.uint8
        except InputError as error:
            assert path.name in str(error)


def bomb(path, side):
    """A PNG of `side` x `side` black pixels in a few hundred kilobytes."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    row = zlib.compressobj(9)
    body = b"".join(row.compress(bytes(side + 1)) for _ in range(side)) + row.flush()
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("side", [10_500, 14_200])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, side, monkeypatch):
    path = bomb(tmp_path / "bomb.png", side)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("the bomb was decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(path, r"bomb\.png is (larger than|10500 x 10500 pixels, more than the 100000000)")


def test_the_number_of_pixels_may_be_limited_further(tmp_path):
    refused(
        saved(Image.fromarray(ramp()), tmp_path / "film.png"), "64 x 40 pixels, more than the 1000", max_pixels=1000
    )


@pytest.mark.parametrize("shape", [(1, 1), (400, 15)])
def test_a_tiny_image_is_refused(shape):
    refused(np.arange(np.prod(shape), dtype=np.uint16).reshape(shape), "must have at least 16 pixels")


@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_constant_image_is_refused(tmp_path, value):
    image = Image.fromarray(np.full((40, 64), value, dtype=np.uint8))
    refused(saved(image, tmp_path / "flat.png"), rf"flat\.png is blank: every pixel is displayed as {value} of 255")


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_a_constant_array_is_refused_without_dividing_by_zero(dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(np.full((40, 64), 700, dtype=dtype), "is blank")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(40, 64), (40, 64, 3)])
def test_values_that_are_not_finite_are_refused(value, shape):
    array = np.random.default_rng(0).random(shape).astype(np.float32)
    array[3, 4] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(array, "values that are NaN or infinite", name="image 3")


def test_nan_in_a_float_tiff_is_refused(tmp_path):
    array = ramp(dtype=np.float32)
    array[0, 0] = np.nan
    refused(saved(Image.fromarray(array), tmp_path / "nan.tiff"), r"nan\.tiff holds 1 values that are NaN")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(64, np.uint8), r"has shape \(64,\)"),
        (np.zeros((2, 2, 40, 64), np.uint8), r"has shape \(2, 2, 40, 64\)"),
        (np.zeros((40, 64, 5), np.uint8), "expected 1, 3 or 4 channels"),
        (np.zeros((40, 64), complex), "has dtype complex128"),
        (np.full((40, 64), "x"), "has dtype <U1"),
        (np.zeros((40, 64), object), "has dtype object"),
        ({"image": 1}, "is a dict; expected a path"),
        (None, "is a NoneType"),
    ],
)
def test_arrays_that_are_no_image_are_refused(array, message):
    refused(array, message)


@pytest.mark.parametrize("suffix", ["tiff", "webp", "png"])
def test_several_pages_are_refused(tmp_path, suffix):
    pages = [Image.fromarray(ramp()), Image.fromarray(ramp()[:, ::-1].copy())]
    path = saved(pages[0], tmp_path / f"pages.{suffix}", save_all=True, append_images=pages[1:])
    refused(path, "holds 2 frames or pages")


# -- the square -------------------------------------------------------------------------------------------------------


def test_the_batch_has_the_promised_shapes(processor):
    batch = processor([ramp(40, 64), ramp(64, 40)], return_tensors="pt")
    assert batch.pixel_values.shape == (2, 3, 32, 32) and batch.pixel_values.dtype == torch.float32
    assert batch.image_sizes.tolist() == [[40, 64], [64, 40]] and batch.image_sizes.dtype == torch.int64


def test_normalisation_by_hand(processor):
    # 32 x 32 needs no resizing: level l becomes (l / 255 - mean) / std in each channel.
    levels = ramp(32, 32)
    batch = processor(levels, image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.25, 0.2], return_tensors="np")
    for channel, (mean, std) in enumerate([(0.5, 0.5), (0.4, 0.25), (0.3, 0.2)]):
        np.testing.assert_allclose(batch.pixel_values[0, channel], (levels / 255 - mean) / std, atol=1e-6)


def test_each_step_can_be_left_out(processor):
    levels = ramp(32, 32)
    options = {"return_tensors": "np", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    raw = processor(levels, do_rescale=False, do_normalize=False, **options).pixel_values[0, 0]
    rescaled = processor(levels, do_normalize=False, **options).pixel_values[0, 0]
    np.testing.assert_array_equal(raw, levels)
    np.testing.assert_allclose(rescaled, levels / 255, atol=1e-7)
    unpadded = processor(ramp(40, 64), do_pad=False, **options).pixel_values
    assert unpadded.shape == (1, 3, 20, 32)
    unresized = processor(ramp(20, 30), do_resize=False, **options).pixel_values
    assert unresized.shape == (1, 3, 32, 32)


def test_the_film_lies_where_the_geometry_says():
    # A bright square on black: its edges in the processed image are the box that the geometry predicts.
    film = np.zeros((600, 400), dtype=np.uint8)
    film[150:450, 100:300] = 255
    processor = Gaze2ReportImageProcessor(size=224, do_normalize=False, resample=Image.Resampling.BILINEAR)
    square = processor(film, return_tensors="np").pixel_values[0, 0]
    x0, y0, x1, y1 = LetterBox(600, 400, 224).boxes_to_square([0.25, 0.25, 0.75, 0.75]) * 224
    # The sum of the levels along a line through the middle is the length of the bright part.
    assert square[112].sum() == pytest.approx(x1 - x0, abs=0.02)
    assert square[:, 112].sum() == pytest.approx(y1 - y0, abs=0.02)
    columns, rows = np.arange(224) + 0.5, np.arange(224) + 0.5
    assert (square[112] * columns).sum() / square[112].sum() == pytest.approx((x0 + x1) / 2, abs=0.02)
    assert (square[:, 112] * rows).sum() / square[:, 112].sum() == pytest.approx((y0 + y1) / 2, abs=0.02)


@pytest.mark.parametrize("shape", [(3000, 2500), (517, 900), (64, 33), (16, 700)])
@pytest.mark.parametrize("size", [32, 224])
def test_bars_surround_the_film_exactly(shape, size):
    film = np.random.default_rng(0).integers(100, 256, shape, dtype=np.uint8)
    processor = Gaze2ReportImageProcessor(
        size=size, do_normalize=False, do_rescale=False, resample=Image.Resampling.BOX
    )
    square = processor(film, return_tensors="np").pixel_values[0, 0]
    box = LetterBox(*shape, size)
    bars = np.ones((size, size), dtype=bool)
    bars[box.top : box.top + box.resized_height, box.left : box.left + box.resized_width] = False
    np.testing.assert_array_equal(square == 0, bars)


def test_bars_take_the_pad_value():
    processor = Gaze2ReportImageProcessor(size=32, pad_value=128, do_normalize=False, do_rescale=False)
    assert (processor(ramp(16, 32), return_tensors="np").pixel_values[0, 0, :8] == 128).all()


def test_shrinking_averages_instead_of_skipping(processor):
    # Columns alternate between black and white: an antialiased reduction is grey, nearest neighbours are not.
    film = np.zeros((640, 640), dtype=np.uint8)
    film[:, ::2] = 255
    square = processor(film, do_normalize=False, return_tensors="np").pixel_values
    assert np.abs(square - 0.5).max() < 0.05


def test_a_square_8_bit_film_equals_the_processor_of_vit():
    film = np.repeat(np.random.default_rng(0).integers(0, 256, (100, 100, 1), dtype=np.uint8), 3, axis=2)
    size = {"height": 64, "width": 64}
    resample = Image.Resampling.BICUBIC
    ours = Gaze2ReportImageProcessor(size=size, resample=resample)(film, return_tensors="pt").pixel_values
    theirs = ViTImageProcessorPil(size=size, resample=resample)(film, return_tensors="pt").pixel_values
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_every_source_gives_the_same_square(processor, tmp_path):
    levels = ramp(40, 64)
    path = saved(Image.fromarray(levels), tmp_path / "film.png")
    sources = [str(path), path, Image.open(path), levels, levels[..., None], np.repeat(levels[None], 3, axis=0)]
    sources += [torch.from_numpy(levels), load_film(path), levels.astype(np.float32) / 255]
    squares = [processor(source, return_tensors="pt").pixel_values for source in sources]
    together = processor(sources, return_tensors="pt").pixel_values
    for index, square in enumerate(squares):
        torch.testing.assert_close(square, squares[0], atol=0, rtol=0)
        torch.testing.assert_close(together[index : index + 1], square, atol=0, rtol=0)


def test_nested_lists_and_batched_arrays_are_flattened(processor):
    film = np.repeat(ramp(40, 64)[..., None], 3, axis=2)
    assert processor([[film], [film, film]], return_tensors="np").pixel_values.shape[0] == 3
    assert processor(np.stack([film] * 4), return_tensors="np").pixel_values.shape[0] == 4


def test_fetching_twice_changes_nothing(processor, tmp_path):
    path = saved(Image.fromarray(ramp(dtype=np.uint16, top=5000)), tmp_path / "deep.png")
    once = processor.fetch_images([str(path), [path]])
    twice = processor.fetch_images(once)
    assert isinstance(twice[1], list)
    np.testing.assert_array_equal(once[0], twice[0])
    torch.testing.assert_close(
        processor(once[0], return_tensors="pt").pixel_values, processor(path, return_tensors="pt").pixel_values
    )


def test_an_error_names_the_image_of_a_list(processor):
    with pytest.raises(InputError, match=r"image 2 \(counting from 0\) is blank"):
        processor([ramp(), ramp(), np.zeros((40, 64), np.uint8)])


@pytest.mark.parametrize("images", [[], [None], {"image": 1}, [np.zeros(3)], 7, None])
def test_no_image_is_refused(processor, images):
    with pytest.raises(InputError):
        processor(images)


@pytest.mark.parametrize("size", [{"height": 32, "width": 16}, {"shortest_edge": 32}])
def test_the_size_must_be_a_square(size):
    with pytest.raises(ValueError, match="size must be a square"):
        Gaze2ReportImageProcessor(size=size)(ramp())


@pytest.mark.parametrize("option", ["window_percentiles", "max_pixels", "min_side", "pad_value", "padvalue"])
def test_settings_of_the_processor_cannot_be_given_per_call(processor, option):
    with pytest.raises(TypeError, match=option):
        processor(ramp(), **{option: 1})


def test_cropping_is_refused(processor):
    with pytest.raises(ValueError, match="films are letter-boxed"):
        processor(ramp(), do_center_crop=True, crop_size=16)


def test_an_image_that_does_not_fit_is_refused_without_resizing(processor):
    with pytest.raises(ValueError, match="leave do_resize on"):
        processor(ramp(40, 64), do_resize=False)


@pytest.mark.parametrize(
    "options", [{"window_percentiles": (99, 1)}, {"window_percentiles": (0, 101)}, {"pad_value": 256}]
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError):
        Gaze2ReportImageProcessor(**options)


def test_warnings_of_a_file_are_logged(processor, tmp_path, monkeypatch):
    notes = []
    monkeypatch.setattr(image_processing_gaze2report.logger, "warning", notes.append)
    processor(written(dicom(TWELVE_BIT, BitsStored=12), tmp_path))
    assert len(notes) == 1 and "film.dcm" in notes[0] and "percentiles used" in notes[0]


# -- saving and loading -----------------------------------------------------------------------------------------------


def test_settings_survive_saving(tmp_path):
    first = Gaze2ReportImageProcessor(
        size=48, image_mean=[0.53] * 3, pad_value=9, window_percentiles=(1, 99), max_pixels=10**6, min_side=20
    )
    first.save_pretrained(tmp_path)
    second = Gaze2ReportImageProcessor.from_pretrained(tmp_path)
    assert second.to_dict() == first.to_dict()
    film = ramp(40, 64, np.uint16, 5000)
    torch.testing.assert_close(
        first(film, return_tensors="pt").pixel_values, second(film, return_tensors="pt").pixel_values
    )


def test_a_call_leaves_the_processor_as_it_was(processor):
    before = processor.to_dict()
    processor(ramp(), size=64, image_mean=[0.1] * 3, do_pad=True)
    assert processor.to_dict() == before


def test_a_flat_folder_loads_without_this_package(tmp_path):
    """As on the Hub: the files beside the settings, in a process that cannot import the package."""
    for name in ("image_processing_gaze2report.py", "gaze_geometry.py", "anatomy.py", "errors.py"):
        (tmp_path / name).write_bytes((PROCESSING / name).read_bytes())
    settings = Gaze2ReportImageProcessor(size=32).to_dict()
    settings["auto_map"] = {"AutoImageProcessor": "image_processing_gaze2report.Gaze2ReportImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    saved(Image.fromarray(ramp()), tmp_path / "film.png")
    script = (
        "import sys; sys.modules['modeling_gaze2report'] = None\n"
        "from transformers import AutoImageProcessor\n"
        "processor = AutoImageProcessor.from_pretrained('.', trust_remote_code=True)\n"
        "processor.save_pretrained('again')\n"
        "again = AutoImageProcessor.from_pretrained('again', trust_remote_code=True)\n"
        "square = again('film.png', return_tensors='pt').pixel_values\n"
        "print(tuple(square.shape), float(square.sum()))\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    expected = Gaze2ReportImageProcessor(size=32)(ramp(), return_tensors="pt").pixel_values
    shape, total = result.stdout.rsplit(" ", 1)
    assert shape == "(1, 3, 32, 32)"
    assert float(total) == pytest.approx(float(expected.sum()), abs=1e-3)


# -- real films -------------------------------------------------------------------------------------------------------


needs_shared = pytest.mark.skipif(not (SHARED / "data" / "cxr").is_dir(), reason=f"no shared data under {SHARED}")


@pytest.mark.shared
@needs_shared
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("RG1_J2KI.dcm", (1955, 1841)),  # JPEG 2000
        ("bad_sequence.dcm", (512, 512)),  # JPEG lossless
        ("mlut_18.dcm", (512, 512)),
        ("siim_nih_pa_monochrome2_jpegbaseline.dcm", (1024, 1024)),
    ],
)
def test_real_dicom_files_are_read(name, size):
    film = load_film(SHARED / "data" / "cxr" / "dicom" / name)
    assert (film.height, film.width) == size
    assert np.ptp(film.pixels) > 200


@pytest.mark.shared
@needs_shared
def test_a_real_inverted_film_has_dark_lungs():
    # MONOCHROME1: shown without inversion, lungs would be brighter than the mediastinum between them.
    pixels = load_film(SHARED / "data" / "cxr" / "dicom" / "RG1_J2KI.dcm").pixels
    height, width = pixels.shape
    row = pixels[int(0.25 * height) : int(0.3 * height)].astype(float)
    right_lung, middle = row[:, int(0.25 * width) : int(0.35 * width)], row[:, int(0.45 * width) : int(0.55 * width)]
    assert right_lung.mean() + 30 < middle.mean()


@pytest.mark.shared
@needs_shared
def test_a_real_secondary_capture_is_no_film():
    with pytest.raises(InputError, match=r"SC_rgb\.dcm is not a film: its PhotometricInterpretation is RGB"):
        load_film(SHARED / "data" / "cxr" / "dicom" / "SC_rgb.dcm")


@pytest.mark.shared
@needs_shared
def test_a_sample_of_real_films_goes_through(processor):
    paths = sorted((SHARED / "data" / "cxr" / "images").iterdir())[::30]
    batch = processor(paths, return_tensors="pt")
    assert len(paths) > 50 and batch.pixel_values.shape == (len(paths), 3, 32, 32)
    for path, size in zip(paths, batch.image_sizes.tolist(), strict=True):
        with Image.open(path) as image:
            assert size == [image.height, image.width]
