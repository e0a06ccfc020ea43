"""The overlay, pixel by pixel: what is drawn stands where it should, in its colour, and the film stays visible."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modeling_gaze2report.processing import overlay
from modeling_gaze2report.processing.errors import InputError
from modeling_gaze2report.processing.overlay import draw_overlay, fixation_heat_map, overlay_position, overlay_size

GREY = 90
CYAN = np.array(overlay.SCANPATH_COLOUR)
SIDES = st.integers(16, 5000)


def flat(height=768, width=768):
    return np.full((height, width), GREY, dtype=np.uint8)


def drawn(*arguments, **options):
    """The overlay without its footer, int (H, W, 3), and its size."""
    film = arguments[0]
    height, width = overlay_size(*film.shape)
    picture = draw_overlay(*arguments, **options)
    assert picture.mode == "RGB" and picture.width == width and picture.height > height
    return np.asarray(picture)[:height].astype(int)


def no_heat():
    return np.zeros((1, 1))


# -- size and place ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("film", "expected"),
    [((512, 474), (768, 711)), ((100, 50), (768, 384)), ((1000, 900), (1000, 900)), ((3056, 2544), (1536, 1279))],
)
def test_small_films_grow_and_large_ones_shrink(film, expected):
    assert overlay_size(*film) == expected


def test_a_point_is_found_by_hand():
    # 512 x 256 (height x width) is drawn 768 x 384.
    assert overlay_position(0.5, 0.25, 512, 256) == (192, 192)
    assert overlay_position(1.0, 1.0, 512, 256) == (383, 767)
    assert overlay_position(0.0, 0.0, 512, 256) == (0, 0)


@given(height=SIDES, width=SIDES, x=st.floats(0, 1), y=st.floats(0, 1))
def test_a_point_of_the_film_is_a_pixel_of_the_overlay(height, width, x, y):
    column, row = overlay_position(x, y, height, width)
    drawn_height, drawn_width = overlay_size(height, width)
    assert 0 <= column < drawn_width and 0 <= row < drawn_height


def test_a_bare_film_is_shown_unchanged():
    film = np.random.default_rng(0).integers(0, 256, (800, 900), dtype=np.uint8)
    np.testing.assert_array_equal(drawn(film), np.repeat(film[..., None], 3, axis=2))


# -- fixations --------------------------------------------------------------------------------------------------------


def test_a_fixation_is_a_ring_around_its_place():
    # 0.3 s is drawn with a radius of 13 pixels at the smallest size; the line is a little over 2 pixels wide.
    pixels = drawn(flat(), [[0.25, 0.5, 0.3]], heat_map=no_heat())
    column, row = overlay_position(0.25, 0.5, 768, 768)
    for dx, dy in [(12, 0), (-12, 0), (0, 12), (0, -12)]:
        assert np.abs(pixels[row + dy, column + dx] - CYAN).max() < 40
    assert (pixels[row + 30, column] == GREY).all()
    assert (pixels[row, column + 30] == GREY).all()


def ring_radius(duration):
    pixels = drawn(flat(), [[0.5, 0.5, duration]], heat_map=no_heat())
    cyan = np.abs(pixels[384] - CYAN).max(axis=1) < 40
    return np.abs(np.flatnonzero(cyan) - 384).max()


def test_four_times_the_duration_is_twice_the_radius():
    assert ring_radius(1.2) == pytest.approx(2 * ring_radius(0.3), abs=2)


def test_very_short_and_very_long_fixations_stay_legible():
    assert 6 <= ring_radius(0.001) <= 10
    assert 30 <= ring_radius(50.0) <= 40


def test_the_scanpath_is_a_line_between_fixations():
    pixels = drawn(flat(), [[0.2, 0.5, 0.3], [0.8, 0.5, 0.3]], heat_map=no_heat())
    column, row = overlay_position(0.5, 0.5, 768, 768)
    assert np.abs(pixels[row, column] - CYAN).max() < 60
    assert (pixels[row + 20, column] == GREY).all()


def test_fixations_are_numbered_from_one():
    """The ink of a number depends on the number alone, wherever the fixation is."""

    def number(fixations, index):
        pixels = drawn(flat(), fixations, heat_map=no_heat())
        column, row = overlay_position(*fixations[index][:2], 768, 768)
        return pixels[row - 8 : row + 9, column - 8 : column + 9]

    places = [[0.25, 0.25, 0.6], [0.75, 0.25, 0.6], [0.75, 0.75, 0.6]]
    # The line of the scanpath ends at the ring, so the inside of a circle holds nothing but the number.
    np.testing.assert_array_equal(number(places, 0), number(places[::-1], 0))
    np.testing.assert_array_equal(number(places, 1), number([places[0], places[2]], 1))
    assert (number(places, 0) != number(places, 1)).any()
    assert number(places, 0).max() > 240


def test_a_glance_is_not_hidden_by_a_long_dwell_on_the_same_place():
    glance, dwell = [0.5, 0.5, 0.05], [0.505, 0.5, 3.0]
    for order in ([glance, dwell], [dwell, glance]):
        pixels = drawn(flat(), order, heat_map=no_heat())
        column, row = overlay_position(0.5, 0.5, 768, 768)
        assert np.abs(pixels[row + 8, column] - CYAN).max() < 60


def test_fixations_at_the_corners_are_drawn():
    pixels = drawn(flat(), [[0, 0, 0.5], [1, 0, 0.5], [1, 1, 0.5], [0, 1, 0.5]])
    for corner in (pixels[:30, :30], pixels[:30, -30:], pixels[-30:, -30:], pixels[-30:, :30]):
        assert (np.abs(corner - CYAN).max(axis=2) < 40).any()


# -- heat map ---------------------------------------------------------------------------------------------------------


def test_heat_of_one_fixation_by_hand():
    # 96 cells along the long side: the fixation lies in the middle of cell (24, 48).
    heat = fixation_heat_map(np.array([[48.5 / 96, 24.5 / 96, 0.8]]), 500, 500)
    assert heat.shape == (96, 96)
    assert heat[24, 48] == pytest.approx(0.8)
    assert heat[24, 52] == pytest.approx(0.8 * np.exp(-0.5 * (4 / 96 / 0.04) ** 2))


def test_heat_is_round_on_a_film_that_is_not_square():
    heat = fixation_heat_map(np.array([[0.5, 0.5, 1.0]]), 1000, 500)
    assert heat.shape == (96, 48)
    assert heat[48, 24 + 5] == pytest.approx(heat[48 + 5, 24])


def test_heat_adds_up_durations():
    one, other = np.array([[0.3, 0.3, 0.2]]), np.array([[0.6, 0.7, 0.5]])
    both = fixation_heat_map(np.concatenate([one, other]), 300, 200)
    np.testing.assert_allclose(both, fixation_heat_map(one, 300, 200) + fixation_heat_map(other, 300, 200))


def test_the_film_shows_through_the_heat_and_is_clear_elsewhere():
    film = flat()
    film[:, ::2] = 150
    heat = np.zeros((8, 8))
    heat[2, 2] = 1.0
    pixels = drawn(film, heat_map=heat)
    np.testing.assert_array_equal(pixels[500:, 500:, 0], film[500:, 500:])
    hot = pixels[240, 240:242]
    assert hot[0].max() - hot[0].min() > 40  # coloured
    assert np.abs(hot[0] - hot[1]).max() >= 0.4 * 60  # and the stripes of the film still differ


def test_more_heat_is_lighter():
    heat = np.tile(np.linspace(0.2, 1, 64), (64, 1))
    pixels = drawn(np.zeros((768, 768), np.uint8), heat_map=heat)
    luminance = pixels[384] @ [0.299, 0.587, 0.114]
    assert (np.diff(luminance[::16]) > 0).all()


TO_CONES = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
TO_LAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]


def oklab(colour):
    """OKLab of an sRGB colour, 0 to 255 (Ottosson 2020)."""
    srgb = np.asarray(colour) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ np.transpose(TO_CONES)) @ np.transpose(TO_LAB)


def test_heat_colours_are_evenly_spaced_and_ever_lighter():
    lab = oklab(overlay.HEAT_COLOURS)
    steps = np.linalg.norm(np.diff(lab, axis=0), axis=1)
    assert steps.max() / steps.min() < 1.1
    assert (np.diff(lab[:, 0]) > 0.03).all()


# -- boxes ------------------------------------------------------------------------------------------------------------


def test_a_box_has_its_edges_where_it_should():
    pixels = drawn(flat(), boxes=[(0.25, 0.5, 0.75, 0.9, "", "#d55e00")])
    colour = np.array([0xD5, 0x5E, 0x00])
    (left, top), (right, bottom) = overlay_position(0.25, 0.5, 768, 768), overlay_position(0.75, 0.9, 768, 768)
    middle_row, middle_column = (top + bottom) // 2, (left + right) // 2
    for row, column in [(middle_row, left), (middle_row, right), (top, middle_column), (bottom, middle_column)]:
        np.testing.assert_array_equal(pixels[row, column], colour)
    assert (pixels[middle_row, middle_column] == GREY).all()
    assert (pixels[middle_row, left - 4] == GREY).all()


def test_a_label_stands_above_its_box_in_its_colour():
    colour = (0, 114, 178)
    bare, labelled = (drawn(flat(), boxes=[(0.3, 0.5, 0.7, 0.9, text, colour)]) for text in ("", "Cardiomegaly"))
    left, top = overlay_position(0.3, 0.5, 768, 768)
    changed = np.flatnonzero((bare != labelled).any(axis=(1, 2)))
    assert top - 24 <= changed.min() and changed.max() <= top
    np.testing.assert_array_equal(labelled[top - 18, left + 1], colour)
    text = labelled[top - 18 : top - 2, left : left + 60]
    assert (text > 230).all(axis=2).any()  # white letters on dark blue


def test_boxes_without_a_colour_take_different_ones():
    boxes = [(0.1, 0.1 + 0.15 * index, 0.9, 0.2 + 0.15 * index, "") for index in range(6)]
    pixels = drawn(flat(), boxes=boxes)
    rows = [overlay_position(0, box[1], 768, 768)[1] for box in boxes]
    assert len({tuple(pixels[row, 384]) for row in rows}) == 6


def label_ground(pixels, colour):
    """Pixels of a colour that do not belong to the edges of the box (0.3, 0.3, 0.6, 0.8)."""
    found = (pixels == np.array(colour)).all(axis=2)
    found[228:236] = found[610:618] = False
    found[:, 228:236] = found[:, 456:464] = False
    return found.sum()


def test_labels_of_boxes_at_one_place_do_not_hide_each_other():
    colours = [(230, 159, 0), (0, 158, 115), (213, 94, 0)]
    boxes = [(0.3, 0.3, 0.6, 0.8, "finding", colour) for colour in colours]
    together = drawn(flat(), boxes=boxes)
    for box, colour in zip(boxes, colours, strict=True):
        alone = label_ground(drawn(flat(), boxes=[box]), colour)
        assert alone > 500
        assert label_ground(together, colour) >= 0.7 * alone


def test_a_label_does_not_hide_a_fixation():
    fixation = [[0.33, 0.485, 0.5]]
    boxes = [(0.3, 0.5, 0.7, 0.9, "Cardiomegaly", (0, 114, 178))]
    with_box, without = (drawn(flat(), fixation, boxes=each, heat_map=no_heat()) for each in (boxes, ()))
    column, row = overlay_position(0.33, 0.485, 768, 768)
    inside = slice(row - 7, row + 4), slice(column - 7, column + 8)
    np.testing.assert_array_equal(with_box[inside], without[inside])


def test_a_label_at_the_edge_stays_on_the_picture():
    for box in [(0.0, 0.0, 0.05, 0.05), (0.95, 0.95, 1.0, 1.0), (0.95, 0.0, 1.0, 0.05), (0.0, 0.0, 1.0, 1.0)]:
        pixels = drawn(flat(), boxes=[(*box, "a rather long label", (0, 158, 115))])
        assert (pixels == np.array((0, 158, 115))).all(axis=2).sum() > 1000


def test_an_endless_label_is_cut():
    picture = draw_overlay(flat(), boxes=[(0.1, 0.1, 0.2, 0.2, "label\n" * 300)], caption="caption " * 300)
    assert picture.width == 768


# -- footer -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(512, 474), (3000, 2500), (900, 260), (64, 64)])
def test_every_overlay_says_that_it_is_not_for_clinical_use(shape):
    picture = draw_overlay(flat(*shape))
    footer = np.asarray(picture)[overlay_size(*shape)[0] :]
    assert footer.shape[0] >= 20
    assert (footer > 200).all(axis=2).sum() > 100  # light letters
    assert overlay.FOOTER == "Research software. Not for clinical use."


def test_a_caption_stands_at_the_left_of_the_footer():
    bare, captioned = (np.asarray(draw_overlay(flat(), caption=text))[768:].astype(int) for text in ("", "film.png"))
    columns = np.flatnonzero((bare != captioned).any(axis=(0, 2)))
    assert columns.min() > 0 and columns.max() < 120


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("film", "options", "message"),
    [
        (flat().astype(float), {}, "expected uint8 display levels"),
        (np.zeros((768, 768, 3), np.uint8), {}, r"shape \(768, 768, 3\)"),
        (flat(), {"fixations": [[1.3, 0.5, 0.2]]}, r"x = 1\.3 is outside"),
        (flat(), {"fixations": [[0.3, 0.5, -1]]}, "not positive"),
        (flat(), {"boxes": [(0.5, 0.5, 0.4, 0.9, "")]}, "Box 0"),
        (flat(), {"boxes": [(0.1, 0.1, 0.2, 0.2, ""), (0, 0, 1.2, 1, "")]}, "Box 1"),
        (flat(), {"boxes": [(0, 0, float("nan"), 1, "")]}, "Box 0"),
        (flat(), {"heat_map": np.full((8, 8), -1.0)}, "heat map"),
        (flat(), {"heat_map": np.full((8, 8), np.nan)}, "heat map"),
        (flat(), {"heat_map": np.zeros(8)}, "heat map"),
    ],
)
def test_what_cannot_be_drawn_is_refused(film, options, message):
    with pytest.raises(InputError, match=message):
        draw_overlay(film, **options)


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(16, 900),
    width=st.integers(16, 900),
    fixations=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 10)), max_size=20),
)
def test_any_gaze_on_any_film_can_be_drawn(height, width, fixations):
    film = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    drawn(film, fixations, boxes=[(0.0, 0.0, 1.0, 1.0, "whole film")])


def test_the_picture_is_a_plain_file(tmp_path):
    draw_overlay(flat(), [[0.5, 0.5, 0.3]]).save(tmp_path / "overlay.png")
    with Image.open(tmp_path / "overlay.png") as image:
        assert image.mode == "RGB" and image.info == {}
