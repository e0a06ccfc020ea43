"""From the film's pixels through the model's square and back onto the drawn film: things stand where they belong.

The film shows a white rectangle and dark crosses. Where the square that the model is given shows the rectangle, there
the features say a finding is; gaze is recorded on the crosses. In the overlay, edges and circles must then surround
the same pixels of the film.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_gaze2report.processing import overlay
from modeling_gaze2report.processing.overlay import overlay_position, overlay_size
from modeling_gaze2report.processing.report_labels import FINDINGS

from ..tiny_export import build_tiny_model

GREY, WHITE = 120, 250
EFFUSION = FINDINGS.index("Pleural Effusion")
CYAN, ORANGE = np.array(overlay.SCANPATH_COLOUR), np.array(overlay.BOX_COLOURS[0])
# Sides in pixels and the rectangle's edges in pixels of the film: columns x0 to x1, rows y0 to y1.
FILMS = {
    "portrait": (900, 600, (60, 450, 240, 690)),
    "landscape": (480, 1024, (704, 60, 960, 300)),
    "narrow": (1600, 400, (100, 1000, 300, 1500)),
    "odd sides": (701, 555, (111, 333, 222, 555)),
}


@pytest.fixture(scope="module")
def tiny():
    return build_tiny_model()


def film_pixels(height, width, box):
    x0, y0, x1, y1 = box
    pixels = np.full((height, width), GREY, dtype=np.uint8)
    pixels[:4] = 0  # so that the film is not all bright
    pixels[y0:y1, x0:x1] = WHITE
    return pixels


def save_png(path, pixels):
    Image.fromarray(pixels).save(path)


def save_dicom(path, pixels):
    """As the scanner stores it: 12 bits, inverted, with the window that shows it as it was."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.PhotometricInterpretation = "DX", "MONOCHROME1"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PixelData = (4095 - pixels.astype(np.uint16) * 16).tobytes()
    dataset.save_as(path, enforce_file_format=True)


def bright_box(square):
    """The white rectangle in the model's square (S, S), in [0, 1] of the square, to a part of a pixel."""
    levels = (square - square.min()) / (square.max() - square.min())
    white = levels > 0.75  # halfway between grey and white
    rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / len(square)


@pytest.mark.parametrize("kind", FILMS)
@pytest.mark.parametrize("save, ending", [(save_png, "png"), (save_dicom, "dcm")])
def test_a_box_and_gaze_are_drawn_where_they_are_on_the_film(tiny, tmp_path, kind, save, ending):
    model, processor = tiny
    processor.image_processor.size = {"height": 448, "width": 448}  # fine enough to see a pixel's fault
    height, width, box = FILMS[kind]
    path = tmp_path / f"film.{ending}"
    save(path, film_pixels(height, width, box))
    x0, y0, x1, y1 = box
    gaze = [[x0 / width, y0 / height, 0.3], [x1 / width, y1 / height, 0.3], [0.5, 0.2, 0.3]]
    try:
        inputs = processor(images=path, gaze=[gaze], return_tensors="pt")
        square = inputs["pixel_values"][0, 0].numpy()
        small = torch.nn.functional.interpolate(inputs["pixel_values"], size=(64, 64), mode="area")
        with torch.no_grad():
            features = model.get_image_features(
                small, inputs["film_boxes"], inputs["fixations"], inputs["fixation_mask"], return_dict=True
            )
        features.findings.logits.fill_(-3.0)
        features.findings.logits[0, EFFUSION] = 3.0
        seen = bright_box(square)
        features.findings.boxes[0, EFFUSION] = torch.tensor(seen)
        ids = processor.tokenizer("pleural effusion.", add_special_tokens=False).input_ids

        (record,) = processor.post_process_evidence([ids], features, [path])
        picture = np.asarray(processor.draw_evidence(record, path)).astype(int)
        sentence_picture = np.asarray(processor.draw_sentence(record, path, 0)).astype(int)
    finally:
        processor.image_processor.size = {"height": 64, "width": 64}

    # The gaze reached the square on the rectangle's corners: a pixel of the square is 1/448.
    corners = inputs["fixations"][0, :2, :2].numpy()
    np.testing.assert_allclose(corners, seen.reshape(2, 2), atol=1.5 / 448)
    finding = next(one for one in record["findings"] if one["box"])
    assert finding["name"] == "Pleural Effusion"
    pixel_of_square = max(height, width) / 448
    np.testing.assert_allclose(
        np.array(finding["box"]) * [width, height, width, height], box, atol=1.5 * pixel_of_square
    )
    drawn_height, drawn_width = overlay_size(height, width)
    tolerance = int(np.ceil(1.5 * max(drawn_height, drawn_width) / 448)) + 3  # and the width of the line
    for drawn in (picture[:drawn_height], sentence_picture[:drawn_height]):
        orange = np.abs(drawn - ORANGE).max(axis=2) < 12
        left, top = overlay_position(x0 / width, y0 / height, height, width)
        right, bottom = overlay_position(x1 / width, y1 / height, height, width)
        middle_row, middle_column = (top + bottom) // 2, (left + right) // 2
        # Along the middle lines an edge lies where it belongs, and across, where no label stands, nowhere else.
        row, column = orange[middle_row], orange[:, middle_column]
        for line, first, last in ((row, left, right), (column, top, bottom)):
            assert line[max(0, first - tolerance) : first + tolerance + 1].any()
            assert line[last - tolerance : last + tolerance + 1].any()
        assert not row[left + tolerance + 4 : right - tolerance - 3].any()
        assert not row[: max(0, left - tolerance)].any() and not row[right + tolerance + 1 :].any()
    # The third fixation's ring lies around its place and nowhere near it is another.
    column, row = overlay_position(0.5, 0.2, height, width)
    cyan = np.abs(picture[:drawn_height] - CYAN).max(axis=2) < 40
    radius = 13 * max(drawn_height, drawn_width) / 768
    ring = cyan[row, int(column - 1.3 * radius) : int(column - 0.6 * radius)]
    assert ring.any()


def test_outside_the_film_there_is_nothing_to_draw(tiny):
    # Gaze on all four corners of a narrow film: inside the square they are on the film's edges, not on the square's.
    _, processor = tiny
    film = np.random.default_rng(0).integers(0, 256, (400, 100), dtype=np.uint8)
    corners = [[0, 0, 0.3], [1, 0, 0.3], [1, 1, 0.3], [0, 1, 0.3]]

    inputs = processor(images=film, gaze=[corners], return_tensors="pt")

    expected = [[0.375, 0], [0.625, 0], [0.625, 1], [0.375, 1]]  # 16 of 64 columns, from the 24th
    np.testing.assert_allclose(inputs["fixations"][0, :, :2].numpy(), expected, atol=1e-6)
