"""Where gaze and boxes go when a film is letter-boxed, which gaze is refused, and what a place on a film is called."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modeling_gaze2report.processing.anatomy import REGION_BY_NAME, REGION_NAMES, REGIONS
from modeling_gaze2report.processing.errors import InputError
from modeling_gaze2report.processing.gaze_geometry import (
    LetterBox,
    boxes_to_image,
    boxes_to_square,
    check_gaze,
    letterbox_affine,
    points_to_image,
    points_to_square,
    region_of_box,
    region_of_point,
    regions_of_points,
)

TYPICAL_BOXES = np.array([region.typical_box for region in REGIONS])
SIDES = st.integers(min_value=1, max_value=6000)
SQUARES = st.sampled_from([14, 112, 224, 448, 518])
UNIT = st.floats(min_value=0, max_value=1, width=32)


# -- layout -----------------------------------------------------------------------------------------------------------


def test_a_portrait_film_gets_bars_at_its_sides():
    box = LetterBox(height=400, width=200, size=100)
    assert (box.resized_height, box.resized_width, box.top, box.left) == (100, 50, 0, 25)


def test_a_landscape_film_gets_bars_above_and_below():
    box = LetterBox(height=200, width=400, size=100)
    assert (box.resized_height, box.resized_width, box.top, box.left) == (50, 100, 25, 0)


def test_sides_are_rounded_to_the_nearest_pixel():
    # 224 * 2544 / 3056 = 186.47, and 38 spare columns are shared equally.
    box = LetterBox(height=3056, width=2544, size=224)
    assert (box.resized_width, box.left) == (186, 19)


def test_a_very_thin_film_keeps_one_pixel():
    assert LetterBox(height=1, width=5000, size=100).resized_height == 1


@pytest.mark.parametrize("bad", [(0, 10, 10), (10, 0, 10), (10, 10, 0)])
def test_a_layout_without_pixels_is_refused(bad):
    with pytest.raises(InputError, match="at least 1 pixel"):
        LetterBox(*bad)


@given(height=SIDES, width=SIDES, size=SQUARES)
def test_the_film_fills_the_square_in_one_direction_and_fits_in_both(height, width, size):
    box = LetterBox(height, width, size)
    assert max(box.resized_height, box.resized_width) == size
    assert box.top >= 0 and box.top + box.resized_height <= size
    assert box.left >= 0 and box.left + box.resized_width <= size


# -- points and boxes -------------------------------------------------------------------------------------------------


def test_points_of_a_portrait_film_by_hand():
    # The film occupies columns 25..75 of 100.
    box = LetterBox(height=400, width=200, size=100)
    square = box.points_to_square([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]])
    np.testing.assert_allclose(square, [[0.25, 0.0], [0.5, 0.5], [0.75, 1.0]])


def test_a_duration_passes_through():
    square = LetterBox(height=200, width=400, size=100).points_to_square([[0.5, 0.0, 0.31]])
    np.testing.assert_allclose(square, [[0.5, 0.25, 0.31]])


def test_a_box_moves_corner_by_corner():
    square = LetterBox(height=200, width=400, size=100).boxes_to_square([0.1, 0.2, 0.5, 1.0])
    np.testing.assert_allclose(square, [0.1, 0.35, 0.5, 0.75])


def test_a_point_in_the_bar_is_outside_the_film():
    point = LetterBox(height=400, width=200, size=100).points_to_image([[0.0, 0.5]])
    np.testing.assert_allclose(point, [[-0.5, 0.5]])


def test_the_input_array_is_left_alone():
    points = np.full((2, 3), 0.5)
    LetterBox(height=400, width=200, size=100).points_to_square(points)
    assert (points == 0.5).all()


@given(
    height=SIDES,
    width=SIDES,
    size=SQUARES,
    points=hnp.arrays(np.float64, st.tuples(st.integers(0, 8), st.sampled_from([2, 3])), elements=UNIT),
)
def test_points_come_back(height, width, size, points):
    box = LetterBox(height, width, size)
    square = box.points_to_square(points)
    assert square.shape == points.shape
    assert ((square[..., :2] >= 0) & (square[..., :2] <= 1 + 1e-12)).all()
    np.testing.assert_allclose(box.points_to_image(square), points, rtol=0, atol=1e-9)


@given(height=SIDES, width=SIDES, size=SQUARES, boxes=hnp.arrays(np.float64, (3, 4), elements=UNIT))
def test_boxes_come_back(height, width, size, boxes):
    box = LetterBox(height, width, size)
    np.testing.assert_allclose(box.boxes_to_image(box.boxes_to_square(boxes)), boxes, rtol=0, atol=1e-9)


@given(sizes=hnp.arrays(np.int64, (4, 2), elements=SIDES), size=SQUARES)
def test_a_batch_equals_its_images_one_by_one(sizes, size):
    points = np.random.default_rng(0).random((4, 5, 3))
    boxes = np.random.default_rng(1).random((4, 6, 4))
    square_points, square_boxes = points_to_square(points, sizes, size), boxes_to_square(boxes, sizes, size)
    for index, (height, width) in enumerate(sizes.tolist()):
        box = LetterBox(height, width, size)
        np.testing.assert_array_equal(square_points[index], box.points_to_square(points[index]))
        np.testing.assert_array_equal(square_boxes[index], box.boxes_to_square(boxes[index]))
    np.testing.assert_allclose(points_to_image(square_points, sizes, size), points, atol=1e-9)
    np.testing.assert_allclose(boxes_to_image(square_boxes, sizes, size), boxes, atol=1e-9)


def test_image_sizes_may_be_a_tensor():
    scale, offset = letterbox_affine(torch.tensor([[400, 200], [200, 400]]), 100)
    np.testing.assert_allclose(scale, [[0.5, 1.0], [1.0, 0.5]])
    np.testing.assert_allclose(offset, [[0.25, 0.0], [0.0, 0.25]])


# -- gaze arrays ------------------------------------------------------------------------------------------------------


def test_good_gaze_becomes_float32():
    gaze = check_gaze([[0.0, 1.0, 0.2], [0.5, 0.25, 3.0]])
    assert gaze.dtype == np.float32
    np.testing.assert_array_equal(gaze, np.array([[0.0, 1.0, 0.2], [0.5, 0.25, 3.0]], dtype=np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gaze_may_be_a_tensor_of_any_precision(dtype):
    gaze = check_gaze(torch.tensor([[0.5, 0.25, 0.5]], dtype=dtype, requires_grad=True))
    np.testing.assert_array_equal(gaze, [[0.5, 0.25, 0.5]])


def test_rounding_over_the_edge_is_put_back():
    np.testing.assert_array_equal(check_gaze([[1 + 5e-7, -5e-7, 0.2]])[0, :2], [1.0, 0.0])


@pytest.mark.parametrize(
    ("gaze", "message"),
    [
        ([[0.1, 0.1, 0.2], [1.3, 0.5, 0.2]], r"gaze of image 2, fixation 1 .*x = 1\.3 is outside \[0, 1\].*divided by"),
        ([[0.1, -0.4, 0.2]], r"fixation 0 .*y = -0\.4 is outside"),
        ([[float("nan"), 0.1, 0.2]], "x = nan"),
        ([[0.1, float("inf"), 0.2]], "y = inf"),
        ([[0.1, 0.1, float("nan")]], "duration = nan"),
        ([[0.1, 0.1, 0.0]], "duration = 0 s is not positive"),
        ([[0.1, 0.1, -0.2]], r"duration = -0\.2 s is not positive"),
        ([[0.1, 0.1, 310.0]], "milliseconds must be divided by 1000"),
        ([[0.1, 0.1]], r"has shape \(1, 2\); expected \(N, 3\)"),
        ([0.1, 0.1, 0.2], r"has shape \(3,\)"),
        (np.zeros((2, 5, 3)), r"has shape \(2, 5, 3\)"),
        ([], "holds no fixation"),
        (np.zeros((0, 3)), "holds no fixation"),
        ([["a", "b", "c"]], "not an array of numbers"),
        ([[0.1, 0.1, 0.2], [0.1]], "not an array of numbers"),
        ({"x": 1}, "not an array of numbers"),
    ],
)
def test_bad_gaze_is_refused_with_its_place(gaze, message):
    with pytest.raises(InputError, match=message) as caught:
        check_gaze(gaze, "gaze of image 2")
    assert "gaze of image 2" in str(caught.value)


# -- anatomical regions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["right costophrenic angle", "trachea", "left clavicle", "right lower lung zone"])
def test_the_smallest_region_wins(name):
    # A point of the region that only larger regions share, by the table of typical boxes.
    place = {
        "right costophrenic angle": (0.16, 0.78),  # also in the right lung and its lower zone
        "trachea": (0.50, 0.20),  # also in the upper mediastinum
        "left clavicle": (0.80, 0.15),  # also in the left lung and its upper zone
        "right lower lung zone": (0.30, 0.65),  # also in the right lung
    }[name]
    x0, y0, x1, y1 = REGION_BY_NAME[name].typical_box
    assert x0 < place[0] < x1 and y0 < place[1] < y1
    assert region_of_point(*place, TYPICAL_BOXES) == name


def test_a_point_just_outside_takes_the_nearest_region():
    # 0.02 to the left of the right costophrenic angle, whose box begins at x = 0.08.
    assert region_of_point(0.06, 0.78, TYPICAL_BOXES) == "right costophrenic angle"


def test_a_point_far_from_every_region_has_none():
    assert region_of_point(0.5, 0.99, TYPICAL_BOXES) is None


def test_points_are_named_in_one_call():
    points = [[0.50, 0.20, 0.3], [0.5, 0.99, 0.3]]
    assert regions_of_points(points, TYPICAL_BOXES) == ["trachea", None]
    assert regions_of_points(np.zeros((0, 3)), TYPICAL_BOXES) == []


def test_regions_may_be_a_mapping():
    assert region_of_point(0.2, 0.2, {"somewhere": (0.1, 0.1, 0.3, 0.3)}) == "somewhere"


def test_an_empty_or_undefined_box_is_never_chosen():
    regions = {"empty": (0.5, 0.5, 0.5, 0.5), "undefined": (np.nan, 0, 1, 1), "whole": (0.0, 0.0, 1.0, 1.0)}
    assert region_of_point(0.5, 0.5, regions) == "whole"
    assert region_of_point(0.5, 0.5, {"empty": (0.5, 0.5, 0.5, 0.5)}) is None


@pytest.mark.parametrize("name", REGION_NAMES)
def test_a_box_equal_to_a_region_has_its_name(name):
    assert region_of_box(REGION_BY_NAME[name].typical_box, TYPICAL_BOXES) == name


def test_a_small_box_is_named_after_the_smallest_region_around_it():
    assert region_of_box((0.24, 0.60, 0.28, 0.64), TYPICAL_BOXES) == "right lower lung zone"


def test_a_box_beside_every_region_is_named_by_its_centre():
    assert region_of_box((0.02, 0.74, 0.06, 0.78), TYPICAL_BOXES) == "right costophrenic angle"
    assert region_of_box((0.4, 0.95, 0.6, 0.99), TYPICAL_BOXES) is None


def test_region_boxes_of_the_wrong_number_are_refused():
    with pytest.raises(InputError, match=r"\(3, 4\); expected \(17, 4\)"):
        region_of_point(0.5, 0.5, np.zeros((3, 4)))
